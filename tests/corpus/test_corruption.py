from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft import CorruptionConfig, Glossary, RefineError
from t5refine_peft.corpus.corruption import Example, corrupt
from t5refine_peft.corpus.preparation import term_token_spans

GLOSSARY = Glossary(["furosemide", "heart", "心力衰竭", "合同", "x"])
configs = st.builds(
    CorruptionConfig,
    mask_share=st.floats(0.05, 0.6),
    mean_span_tokens=st.floats(1, 6),
    term_probability=st.floats(0, 1),
    all_occurrences=st.floats(0, 1),
    random_only=st.floats(0, 1),
)


def corrupted(vocabulary, text: str, config: CorruptionConfig, seed: int) -> tuple[np.ndarray, list, Example]:
    encoding = vocabulary.encode(text)
    spans = term_token_spans(text, encoding.starts, encoding.ends, GLOSSARY)
    example = corrupt(
        encoding.ids,
        word_starts=vocabulary.words(encoding, text),
        term_spans=spans,
        vocabulary=vocabulary,
        config=config,
        rng=np.random.default_rng(seed),
    )
    return encoding.ids, spans, example


def rebuilt(example: Example, vocabulary) -> list[int]:
    """The passage from the example alone, as a reader of T5's paper would put it together."""
    fillings: dict[int, list[int]] = {}
    for token in example.labels[:-1].tolist():
        if token in vocabulary.sentinel_ids:
            fillings[token] = []
        else:
            list(fillings.values())[-1].append(token)
    return [piece for token in example.input_ids[:-1].tolist() for piece in fillings.get(token, [token])]


@given(text=texts, config=configs, seed=st.integers(0, 99))
def test_the_passage_is_rebuilt_and_spans_stay_apart(vocabulary, text, config, seed):
    ids, _, example = corrupted(vocabulary, text, config, seed)
    assert rebuilt(example, vocabulary) == ids.tolist()
    assert example.input_ids[-1] == example.labels[-1] == vocabulary.eos_id
    assert all(end < start for (_, end), (start, _) in zip(example.spans, example.spans[1:], strict=False))
    sentinels = [token for token in example.labels.tolist() if token in vocabulary.sentinel_ids]
    assert sentinels == list(vocabulary.sentinel_ids[: len(example.spans)])
    assert len(example.spans) <= 100
    assert len(example.term_mask) == len(example.labels)


@given(text=texts, config=configs, seed=st.integers(0, 99))
def test_a_masked_term_is_hidden_wholly(vocabulary, text, config, seed):
    _, spans, example = corrupted(vocabulary, text, config, seed)
    masked = int(example.term_mask.sum())
    inside = sum(
        min(end, stop) - max(start, begin)
        for start, end, _ in spans
        for begin, stop in example.spans
        if begin <= start and end <= stop
    )
    assert masked >= inside
    assert not example.term_mask[np.isin(example.labels, vocabulary.sentinel_ids)].any()


@given(text=texts, seed=st.integers(0, 99))
def test_the_same_seed_gives_the_same_example(vocabulary, text, seed):
    config = CorruptionConfig()
    first, second = (corrupted(vocabulary, text, config, seed)[2] for _ in range(2))
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.labels.tolist() == second.labels.tolist()


def test_the_budget_holds_for_random_spans(vocabulary):
    text = "the patient takes furosemide for heart failure and rests " * 8
    config = CorruptionConfig(random_only=1.0, mask_share=0.2)
    for seed in range(20):
        ids, _, example = corrupted(vocabulary, text, config, seed)
        masked = sum(end - start for start, end in example.spans)
        longest_word = 12
        assert 0.1 * len(ids) <= masked <= 0.2 * len(ids) + longest_word


def test_all_occurrences_of_a_chosen_term_are_masked(vocabulary):
    text = "heart, then the patient, then heart and much more of other text here, then heart. " * 1
    config = CorruptionConfig(term_probability=1.0, all_occurrences=1.0, random_only=0.0, mask_share=0.9)
    _, spans, example = corrupted(vocabulary, text, config, 0)
    assert len(spans) == 3
    assert {(start, end) for start, end, _ in spans} <= set(example.spans)


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
    config = CorruptionConfig(mask_share=0.6, mean_span_tokens=1.0, random_only=1.0)
    _, _, example = corrupted(vocabulary, "合同，" * 400, config, 0)
    assert len(example.spans) == 100


def test_all_faults_of_a_configuration_are_told_at_once():
    with pytest.raises(
        RefineError, match=r"term_probability .* found 2; mask_share .* found 0; mean_span_tokens .* found 0"
    ):
        CorruptionConfig(term_probability=2, mask_share=0, mean_span_tokens=0)
