from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, texts

from t5refine_peft import CorruptionConfig, Glossary, RefineError
from t5refine_peft.corpus.corruption import Example, build_example, corrupt
from t5refine_peft.corpus.passages import term_token_spans
from t5refine_peft.corpus.tokenization import Encoding

GLOSSARY = Glossary(["furosemide", "heart", "心力衰竭", "合同", "x", "龘", "㍿", "衰竭"])
TERMS_ONLY = CorruptionConfig(term_probability=1.0, all_occurrences=1.0, random_only=0.0, mask_share=0.9)
seeds = st.integers(0, 99)


@dataclass(frozen=True)
class Case:
    """A text, corrupted."""

    text: str
    encoding: Encoding
    term_spans: list[tuple[int, int, int]]
    example: Example

    @property
    def masked(self) -> int:
        return sum(end - start for start, end in self.example.spans)


def corrupted(
    vocabulary, text: str, config: CorruptionConfig, seed: int, glossary: Glossary = GLOSSARY, **options
) -> Case:
    encoding = vocabulary.encode(text)
    spans = [tuple(span) for span in term_token_spans(text, encoding, glossary, vocabulary).tolist()]
    example = corrupt(
        encoding.ids,
        word_starts=vocabulary.words(encoding, text),
        term_spans=spans,
        vocabulary=vocabulary,
        config=config,
        rng=np.random.default_rng(seed),
        **options,
    )
    return Case(text, encoding, spans, example)


def rebuilt(example: Example, vocabulary) -> list[int]:
    """The passage from the example alone, as a reader of T5's paper would put it together."""
    fillings: dict[int, list[int]] = {}
    for token in example.labels[:-1].tolist():
        if token in vocabulary.sentinel_ids:
            fillings[token] = []
        else:
            list(fillings.values())[-1].append(token)
    return [piece for token in example.input_ids[:-1].tolist() for piece in fillings.get(token, [token])]


@given(text=texts, config=configs, seed=seeds)
def test_the_passage_is_rebuilt_from_the_example(vocabulary, text, config, seed):
    case = corrupted(vocabulary, text, config, seed)
    assert rebuilt(case.example, vocabulary) == case.encoding.ids.tolist()
    assert case.example.input_ids[-1] == case.example.labels[-1] == vocabulary.eos_id


@given(text=texts, config=configs, seed=seeds)
def test_sentinels_are_in_order_and_spans_never_overlap(vocabulary, text, config, seed):
    example = corrupted(vocabulary, text, config, seed).example
    for ids in (example.labels, example.input_ids):
        sentinels = [token for token in ids.tolist() if token in vocabulary.sentinel_ids]
        assert sentinels == list(vocabulary.sentinel_ids[: len(example.spans)])
    assert len(example.spans) <= 100
    assert all(start < end for start, end in example.spans)
    firsts, lasts = {start for start, _, _ in example.terms}, {end for _, end, _ in example.terms}
    for (_, end), (start, _) in pairwise(example.spans):
        if config.touching == "joined":
            assert end < start
        else:  # only two terms may stand side by side
            assert end < start or (end == start and end in lasts and start in firsts)


@given(text=texts, config=configs, seed=seeds)
def test_budgets_hold(vocabulary, text, config, seed):
    case = corrupted(vocabulary, text, config, seed)
    tokens = len(case.encoding.ids)
    share = config.mask_share[1] if isinstance(config.mask_share, tuple) else config.mask_share
    assert case.masked <= max(1, round(share * tokens), min(tokens // 2, 2 * config.max_span_tokens))
    assert case.masked < tokens or tokens < 2
    assert bool(case.example.spans) == (tokens > 1)
    assert len(case.example.labels) <= config.max_label_tokens
    assert len(case.example.input_ids) <= tokens + 1
    if not case.example.terms and config.touching == "apart":
        assert all(end - start <= config.max_span_tokens for start, end in case.example.spans)
        words = int(vocabulary.words(case.encoding, text).sum())
        shortest = config.max_span_tokens if words > 1 else 1
        assert case.masked <= max(1, round(share * tokens), min(shortest, tokens // 2))


@given(text=texts, config=configs, seed=seeds)
def test_no_character_of_a_chosen_term_is_visible(vocabulary, text, config, seed):
    case = corrupted(vocabulary, text, replace(config, random_only=0.0), seed)
    visible = np.ones(len(case.encoding.ids), dtype=bool)
    for start, end in case.example.spans:
        visible[start:end] = False
    matches = GLOSSARY.find(text)
    for term in case.example.terms:
        assert any(start <= term[0] and term[1] <= end for start, end in case.example.spans)
        match = matches[case.term_spans.index(term)]
        overlap = (case.encoding.starts < match.end) & (case.encoding.ends > match.start)
        assert not (overlap & visible).any()


@given(text=texts, config=configs, seed=seeds)
def test_term_mask_marks_the_label_tokens_of_whole_terms(vocabulary, text, config, seed):
    case = corrupted(vocabulary, text, config, seed)
    spans = case.example.spans
    hidden = {
        token
        for start, end, _ in case.term_spans
        for token in range(start, end)
        if any(begin <= start and end <= stop for begin, stop in spans)
    }
    in_labels = [token for start, end in spans for token in (-1, *range(start, end))]
    assert case.example.term_mask.tolist() == [token in hidden for token in in_labels] + [False]


@given(text=texts, config=configs, seed=seeds)
def test_the_same_seed_gives_the_same_example(vocabulary, text, config, seed):
    noisy = replace(config, noise=0.2)
    first, second = (corrupted(vocabulary, text, noisy, seed).example for _ in range(2))
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.labels.tolist() == second.labels.tolist()


@given(text=texts, config=configs, seed=seeds)
def test_noise_touches_the_visible_text_alone(vocabulary, text, config, seed):
    plain = corrupted(vocabulary, text, config, seed).example
    noisy = corrupted(vocabulary, text, replace(config, noise=0.3), seed).example
    assert noisy.labels.tolist() == plain.labels.tolist()
    assert noisy.spans == plain.spans
    count = len(plain.spans)
    sentinels = [token for token in noisy.input_ids.tolist() if token in vocabulary.sentinel_ids]
    assert sentinels == list(vocabulary.sentinel_ids[:count])
    assert len(noisy.input_ids) <= len(vocabulary.encode(text).ids) + 1
    assert noisy.input_ids[-1] == vocabulary.eos_id


def test_noise_changes_about_its_share_of_the_characters(vocabulary):
    text = "The patient takes furosemide for pulmonary congestion. " * 4
    config = CorruptionConfig(mask_share=0.4, term_probability=0.0, noise=0.05)
    changed = 0
    for seed in range(50):
        plain = corrupted(vocabulary, text, replace(config, noise=0.0), seed).example
        noisy = corrupted(vocabulary, text, config, seed).example
        changed += noisy.input_ids.tolist() != plain.input_ids.tolist()
    assert changed == 50


@given(text=texts, config=configs, seed=seeds, context=st.integers(0, 10))
def test_context_stays_visible_but_for_copies_of_a_masked_term(vocabulary, text, config, seed, context):
    tokens = len(vocabulary.encode(text).ids)
    context = min(context, max(0, tokens - 2))
    case = corrupted(vocabulary, text, config, seed, context_tokens=context)
    own_terms = {term for _, end, term in case.example.terms if end > context}
    for start, end in case.example.spans:
        if start < context:
            copies = [t for t in case.example.terms if start <= t[0] and t[1] <= end]
            assert copies
            assert {term for _, _, term in copies} <= own_terms
    assert rebuilt(case.example, vocabulary) == case.encoding.ids.tolist()
    assert any(end > context for _, end in case.example.spans) or tokens - context < 2


def test_all_occurrences_of_a_chosen_term_are_masked(vocabulary):
    text = "heart, then the patient, then heart and much more of other text here, then heart."
    case = corrupted(vocabulary, text, TERMS_ONLY, 0)
    assert len(case.term_spans) == 3
    assert {(start, end) for start, end, _ in case.term_spans} <= set(case.example.spans)


def test_terms_side_by_side_are_both_hidden(vocabulary):
    text = "买受人应当依据合同心力衰竭furosemide交付标的物。" * 2
    apart = corrupted(vocabulary, text, replace(TERMS_ONLY, mask_share=0.8), 0)
    assert len(apart.term_spans) == 6
    assert {(start, end) for start, end, _ in apart.term_spans} <= set(apart.example.spans)
    assert apart.example.terms == tuple(apart.term_spans)
    joined = corrupted(vocabulary, text, replace(TERMS_ONLY, mask_share=0.8, touching="joined"), 0)
    assert joined.example.terms == tuple(joined.term_spans)
    assert len(joined.example.spans) < len(apart.example.spans)
    assert all(end < start for (_, end), (start, _) in pairwise(joined.example.spans))


def test_terms_that_share_a_piece_are_one_span(vocabulary):
    ids = np.arange(10, 30, dtype=np.int32)
    example = corrupt(
        ids,
        word_starts=np.ones(20, dtype=bool),
        term_spans=[(2, 5, 0), (4, 7, 1)],
        vocabulary=vocabulary,
        config=replace(TERMS_ONLY, mask_share=0.3),
        rng=np.random.default_rng(0),
    )
    assert (2, 7) in example.spans
    assert example.terms == ((2, 5, 0), (4, 7, 1))
    assert rebuilt(example, vocabulary) == ids.tolist()


def test_random_spans_have_the_mean_length_and_fill_the_budget(vocabulary):
    words = np.random.default_rng(1).random(256) < 0.6  # words of 1.7 tokens
    words[0] = True
    lengths, masked = [], []
    for seed in range(200):
        example = corrupt(
            np.arange(256, dtype=np.int32) + 10,
            word_starts=words,
            term_spans=(),
            vocabulary=vocabulary,
            config=CorruptionConfig(mask_share=(0.15, 0.2), mean_span_tokens=3.0),
            rng=np.random.default_rng(seed),
        )
        lengths += [end - start for start, end in example.spans]
        masked.append(sum(end - start for start, end in example.spans) / 256)
        assert all(words[start] and (end == 256 or words[end]) for start, end in example.spans)
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.25)
    assert 0.15 - 3 / 256 <= min(masked) < 0.16
    assert 0.19 < max(masked) <= 0.2 + 1 / 256
    assert np.mean(masked) == pytest.approx(0.175, abs=0.006)


def share_of(count: int, vocabulary, config: CorruptionConfig, **options) -> float:
    """Share of `count` examples in which the one term of a long text is chosen."""
    text = "the doctor watches the pulse of the patient and the heart may cause congestion " * 2
    glossary = Glossary(["congestion"])
    text = text.replace("congestion", "pressure", 1)
    return (
        sum(bool(corrupted(vocabulary, text, config, seed, glossary, **options).example.terms) for seed in range(count))
        / count
    )


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        (CorruptionConfig(), None, 0.4),  # half of the 80% that mask terms
        (CorruptionConfig(random_only=0.0), None, 0.5),
        (CorruptionConfig(random_only=1.0), None, 0.0),
        (CorruptionConfig(random_only=0.0, term_probability=0.3), (2.0,), 0.6),
        (CorruptionConfig(random_only=0.0), (0.0,), 0.0),
        (CorruptionConfig(random_only=0.0, max_span_tokens=1), None, 0.0),
    ],
)
def test_terms_are_chosen_as_often_as_configured(vocabulary, config, weights, expected):
    share = share_of(400, vocabulary, config, term_weights=weights)
    assert share == pytest.approx(expected, abs=4 * (0.25 / 400) ** 0.5 * (0 < expected < 1))


@pytest.mark.parametrize("tokens", [2, 3, 40])
def test_one_long_word_is_masked_in_part(vocabulary, tokens):
    ids = np.arange(10, 10 + tokens, dtype=np.int32)
    starts = np.arange(tokens) == 0
    for spans in ([], [(0, tokens, 0)]):
        example = corrupt(
            ids,
            word_starts=starts,
            term_spans=spans,
            vocabulary=vocabulary,
            config=CorruptionConfig(),
            rng=np.random.default_rng(0),
        )
        assert len(example.spans) == 1
        assert rebuilt(example, vocabulary) == ids.tolist()


def test_long_texts_use_no_more_than_the_sentinels(vocabulary):
    config = CorruptionConfig(mask_share=0.6, mean_span_tokens=1.0, random_only=1.0, max_label_tokens=1000)
    assert len(corrupted(vocabulary, "合同，" * 400, config, 0).example.spans) == 100
    terms = replace(TERMS_ONLY, max_label_tokens=1000, all_occurrences=0.0)
    assert len(corrupted(vocabulary, "合同，" * 400, terms, 0).example.spans) == 100


def test_a_worked_example(vocabulary):
    ids = np.arange(10, 18, dtype=np.int32)
    first, second = vocabulary.sentinel_ids[:2]
    example = build_example(ids, [(1, 3, True), (5, 6, False)], term_spans=[(5, 7, 0)], vocabulary=vocabulary)
    assert example.input_ids.tolist() == [10, first, 13, 14, second, 16, 17, vocabulary.eos_id]
    assert example.labels.tolist() == [first, 11, 12, second, 15, vocabulary.eos_id]
    assert example.term_mask.tolist() == [False, True, True, False, False, False]


def test_all_faults_of_a_configuration_are_told_at_once():
    with pytest.raises(
        RefineError,
        match=r"term_probability .* found 2; noise .* found -1; mask_share .* found 0; mean_span_tokens .* found 0; "
        r"max_span_tokens .* found 0; touching must be 'apart' or 'joined', found 'near'; max_label_tokens .* found 2",
    ):
        CorruptionConfig(
            term_probability=2,
            noise=-1,
            mask_share=0,
            mean_span_tokens=0,
            max_span_tokens=0,
            touching="near",
            max_label_tokens=2,
        )
    with pytest.raises(RefineError, match=r"the least and the most, found \(0\.3, 0\.2\)"):
        CorruptionConfig(mask_share=(0.3, 0.2))
