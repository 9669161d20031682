from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from t5refine_peft import Glossary, RefineError
from t5refine_peft.errors import NoNumberError
from t5refine_peft.restoration import decoding as decoding_module
from t5refine_peft.restoration.constraints import GapLogitsProcessor, GapRule
from t5refine_peft.restoration.decoding import Decoding, _longest, decode_at_temperatures, decode_batch, decode_gaps
from t5refine_peft.restoration.encoding import EncoderCache, encode_batch
from t5refine_peft.restoration.gaps import find_gaps
from t5refine_peft.restoration.trie import TermTrie
from t5refine_peft.restoration.windows import make_windows


def allowed(vocabulary, generated: list[int], rules: list[GapRule]) -> set[int]:
    rows = len(vocabulary) + 12
    scores = GapLogitsProcessor(vocabulary, [rules])(torch.tensor([[0, *generated]]), torch.zeros(1, rows))
    return set((scores[0] == 0).nonzero()[:, 0].tolist())


def window_of(text: str, vocabulary) -> np.ndarray:
    (window,) = make_windows(text, find_gaps(text), vocabulary, max_tokens=512)
    return window.input_ids


def piece(vocabulary, text: str) -> int:
    """The id of a piece that is this text, with its word mark as a space."""
    (token,) = (n for n in np.flatnonzero(vocabulary.byte_values < 0).tolist() if vocabulary.decode([n]) == text)
    return token


def test_only_the_next_sentinel_or_text_is_allowed(vocabulary):
    s, eos = vocabulary.sentinel_ids, vocabulary.eos_id
    rules = [GapRule(max_tokens=3)] * 2
    text = {n for n in range(3, len(vocabulary)) if vocabulary.byte_values[n] < 0} - set(s)
    heart, bytes_ = piece(vocabulary, " pul"), allowed(vocabulary, [s[0]], rules) - text
    assert {int(vocabulary.byte_values[n]) for n in bytes_} == {*range(0x21, 0x7F), *range(0xC2, 0xF5)}
    assert allowed(vocabulary, [], rules) == {s[0]}
    assert allowed(vocabulary, [s[0]], rules) == text | bytes_
    assert allowed(vocabulary, [s[0], heart], rules) == text | bytes_ | {s[1]}
    assert allowed(vocabulary, [s[0], heart, heart, heart], rules) == {s[1]}
    assert allowed(vocabulary, [s[0], heart, s[1], heart], rules) == text | bytes_ | {eos}
    assert allowed(vocabulary, [s[0], heart, s[1], heart, heart, heart], rules) == {eos}
    assert allowed(vocabulary, [s[0], heart, s[1], heart, eos, 0], rules) == {eos}


def test_an_answer_shows_something(vocabulary):
    s = vocabulary.sentinel_ids
    bare = piece(vocabulary, " ")
    after = allowed(vocabulary, [s[0], bare], [GapRule()])
    assert vocabulary.eos_id not in after
    assert bare not in after


@pytest.mark.parametrize("char", ["é", "ß", "\u0800", "\ud7ff", "鹽", "\U00010000", "\U0010ffff", "😀"])
def test_characters_in_bytes_are_finished_before_the_gap_is(vocabulary, char):
    s = vocabulary.sentinel_ids
    by_value = {int(value): n for n, value in enumerate(vocabulary.byte_values) if value >= 0}
    encoded = char.encode()
    for end in range(1, len(encoded)):
        tokens = [by_value[value] for value in encoded[:end]]
        after = allowed(vocabulary, [s[0], *tokens], [GapRule(max_tokens=1)])
        assert by_value[encoded[end]] in after
        for token in after:  # whatever is allowed can still become a character
            begun = bytes([*encoded[:end], int(vocabulary.byte_values[token])])
            endings = ([], [0x80], [0xBF], [0x80, 0x80], [0xBF, 0xBF])
            assert any(_decodes(begun + bytes(more)) for more in endings)
    tokens = [by_value[value] for value in encoded]
    assert allowed(vocabulary, [s[0], *tokens], [GapRule(max_tokens=1)]) == {vocabulary.eos_id}


def _decodes(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("rule", [GapRule(max_tokens=1), GapRule(max_tokens=5), GapRule(characters=2)])
def test_the_longest_answers_that_the_rules_allow_are_not_cut_off(vocabulary, rule: GapRule):
    """Of what is allowed, take a word mark, then bytes of four-byte characters, and close only where one must."""
    rules = [rule] * 3
    mark = int(np.flatnonzero(vocabulary.word_marked & (vocabulary.visible_characters == 0))[0])
    byte = {int(value): n for n, value in enumerate(vocabulary.byte_values) if value >= 0}
    wanted = [mark, byte[0xF0], byte[0x9F], byte[0x98], byte[0x80]]
    ids = [vocabulary.sentinel_ids[0]]
    text = set(range(len(vocabulary))) - set(vocabulary.sentinel_ids) - {vocabulary.eos_id}
    while ids[-1] != vocabulary.eos_id:
        may = allowed(vocabulary, ids, rules)
        tail_is_empty = ids[-1] in vocabulary.sentinel_ids
        order = wanted if tail_is_empty or not may & set(wanted[1:]) else wanted[1:]
        ids.append(next((token for token in order if token in may), min(may & text or may)))
    assert len(ids) - 1 <= _longest(rules)


def test_exactly_so_many_characters(base):
    inputs = [window_of("合同___生效 ___.", base.vocabulary), window_of("the ___ patient", base.vocabulary)]
    for characters in (1, 2, 7):
        rules = [[GapRule(characters=characters)] * 2, [GapRule(characters=characters)]]
        encoded = encode_batch(base.model, inputs, pad_id=0)
        for candidates in (1, 3):
            for gap in itertools.chain(
                *decode_batch(base.model, base.vocabulary, encoded, rules, num_candidates=candidates)
            ):
                assert len(gap) <= candidates
                for answer in gap:
                    text = base.vocabulary.decode(answer.ids).strip()
                    assert (len(text), "\ufffd" in text) == (characters, False)


@pytest.mark.parametrize("num_candidates", [1, 3])
@pytest.mark.parametrize("decoding", [None, Decoding.beam(2), Decoding.sampling(seed=3)])
def test_batches_of_different_gaps_are_answered_and_scored(base, num_candidates, decoding):
    texts = ["___ heart", "the ___ takes ___ for ___.", "合同___" * 7]
    inputs = [window_of(text, base.vocabulary) for text in texts]
    rules = [[GapRule(max_tokens=4)] * count for count in (1, 3, 7)]

    def decode(numbers: list[int]):
        encoded = encode_batch(base.model, [inputs[n] for n in numbers], pad_id=0)
        return decode_batch(
            base.model, base.vocabulary, encoded, [rules[n] for n in numbers],
            num_candidates=num_candidates, decoding=decoding,
        )  # fmt: skip

    together = decode([0, 1, 2])
    assert [len(gaps) for gaps in together] == [1, 3, 7]
    for gap in itertools.chain(*together):
        assert 1 <= len(gap) <= num_candidates
        assert len({answer.ids for answer in gap}) == len(gap)
        assert all(answer.ids and 0 <= answer.probability <= 1 for answer in gap)
        assert [a.probability for a in gap[1:]] == sorted((a.probability for a in gap[1:]), reverse=True)
    if decoding is None or decoding.strategy != "sampling":
        alone = [decode([n])[0] for n in range(3)]
        flat = [itertools.chain(*itertools.chain(*found)) for found in (together, alone)]
        for one, other in zip(*flat, strict=True):
            assert one.ids == other.ids
            assert one.probability == pytest.approx(other.probability, rel=1e-4)
    else:
        assert decode([0, 1, 2]) == together


def probability_by_hand(base, input_ids, sequence: list[int], first: int, temperature: float = 1.0) -> float:
    """One forward a token, in double precision."""
    total = 0.0
    for at in range(first, len(sequence)):
        logits = base.model(
            input_ids=torch.from_numpy(np.asarray(input_ids))[None], decoder_input_ids=torch.tensor([sequence[:at]])
        ).logits[0, -1]
        total += float(torch.log_softmax(logits.double() / temperature, -1)[sequence[at]])
    return math.exp(total)


def test_the_score_is_the_probability_of_the_answer_and_its_end(base):
    input_ids, s = window_of("the patient ___ takes ___ .", base.vocabulary), base.vocabulary.sentinel_ids
    rules = [[GapRule(max_tokens=3)] * 2]
    encoded = encode_batch(base.model, [input_ids], pad_id=0)
    first, second = decode_batch(
        base.model, base.vocabulary, encoded, rules, num_candidates=3, temperatures=[1.7]
    )[0]  # fmt: skip
    for answer in first:
        by_hand = probability_by_hand(base, input_ids, [0, s[0], *answer.ids, s[1]], 2, 1.7)
        assert answer.probability == pytest.approx(by_hand, rel=1e-4)
    for answer in second:
        prefix = [0, s[0], *first[0].ids, s[1]]
        by_hand = probability_by_hand(base, input_ids, [*prefix, *answer.ids, 1], len(prefix), 1.7)
        assert answer.probability == pytest.approx(by_hand, rel=1e-4)


def test_temperatures_are_applied_to_the_logits(base):
    input_ids, s = window_of("the patient ___.", base.vocabulary), base.vocabulary.sentinel_ids
    ((ids, logs),) = decode_at_temperatures(base.model, base.vocabulary, [input_ids], [1], [0.5, 1.0, 4.0])[0]
    for temperature, log in zip([0.5, 1.0, 4.0], logs.tolist(), strict=True):
        by_hand = probability_by_hand(base, input_ids, [0, s[0], *ids, 1], 2, temperature)
        assert math.exp(log) == pytest.approx(by_hand, rel=1e-4)


def test_the_best_answers_to_a_gap_are_the_best_there_are(base):
    """All answers of one token, scored by hand: the beams find the most probable ones."""
    input_ids, s = window_of("the patient ___ takes ___ .", base.vocabulary), base.vocabulary.sentinel_ids
    one, two = GapRule(max_tokens=1), GapRule(max_tokens=1)
    encoded = encode_batch(base.model, [input_ids], pad_id=0)
    wide = Decoding.beam(300)
    found = decode_batch(base.model, base.vocabulary, encoded, [[one, two]], num_candidates=5, decoding=wide)[0]
    choices = allowed(base.vocabulary, [s[0]], [one])
    complete = [n for n in choices if base.vocabulary.byte_values[n] < 0x80 and base.vocabulary.visible_characters[n]]
    by_hand = {n: probability_by_hand(base, input_ids, [0, s[0], n, s[1]], 2) for n in complete}
    best = sorted(by_hand, key=lambda n: -by_hand[n])[:5]
    others = [answer.ids[0] for answer in found[0][1:]]
    assert others == [n for n in best if n != found[0][0].ids[0]][:4]


@pytest.fixture
def trie(vocabulary) -> TermTrie:
    return TermTrie.of_terms(Glossary(["furosemide", "loop diuretic", "撤销权"]), vocabulary)


def test_strict_terms_are_the_only_answers(base, trie):
    inputs = [window_of(text, base.vocabulary) for text in ("a ___ and ___ or", "依据___请求", "___")]
    encoded = encode_batch(base.model, inputs, pad_id=0)
    rules = [[GapRule(max_tokens=1, terms=trie)] * count for count in (2, 1, 1)]
    for num_candidates in (1, 4):
        for decoding in (None, Decoding.sampling()):
            found = decode_batch(
                base.model, base.vocabulary, encoded, rules, num_candidates=num_candidates, decoding=decoding
            )
            for answer in itertools.chain(*itertools.chain(*found)):
                text = base.vocabulary.decode(answer.ids).strip()
                assert text in {"furosemide", "Furosemide", "loop diuretic", "Loop diuretic", "撤销权"}


def test_more_candidates_than_terms_give_the_terms_alone(base):
    few = TermTrie.of_terms(Glossary(["撤销权"]), base.vocabulary)
    encoded = encode_batch(base.model, [window_of("依据___请求", base.vocabulary)], pad_id=0)
    for rule in (GapRule(terms=few), GapRule(characters=1, max_tokens=1)):
        found = decode_batch(base.model, base.vocabulary, encoded, [[rule]], num_candidates=20)[0][0]
        answers = [base.vocabulary.decode(answer.ids).strip() for answer in found]
        assert set(answers) == {"撤销权"} if rule.terms else {len(answer) for answer in answers} == {1}


def test_only_gaps_with_terms_are_restricted(base, trie):
    encoded = encode_batch(base.model, [window_of("a ___ and ___ or", base.vocabulary)], pad_id=0)
    free = decode_batch(base.model, base.vocabulary, encoded, [[GapRule(max_tokens=3)] * 2])[0]
    half = decode_batch(base.model, base.vocabulary, encoded, [[GapRule(max_tokens=3), GapRule(terms=trie)]])[0]
    assert half[0][0].ids == free[0][0].ids
    assert trie.node(half[1][0].ids).term


def test_a_bias_lifts_each_whole_term_by_as_much_and_nothing_else(base, trie):
    """Summed over its steps, what is added to an answer's log-probability is the same for all terms, else nothing."""
    vocabulary, s = base.vocabulary, base.vocabulary.sentinel_ids
    processor = GapLogitsProcessor(vocabulary, [[GapRule(terms=trie, term_bias=2.5)]])
    heart = piece(vocabulary, " pul")
    term = vocabulary.encode("loop diuretic").ids.tolist()
    answers = [term, vocabulary.encode("furosemide").ids.tolist(), [heart], [term[0], heart], term[:-1], [*term, heart]]

    def total(ids: list[int]) -> float:
        added, tokens = 0.0, [0, s[0]]
        for token in [*ids, vocabulary.eos_id]:
            scores = torch.zeros(1, len(vocabulary) + 12)
            added += float(processor(torch.tensor([tokens]), scores)[0, token])
            tokens.append(token)
        return added

    assert [total(ids) for ids in answers] == [0.0, 0.0, -2.5, -2.5, -2.5, -2.5]


def test_a_cached_text_is_not_encoded_again_and_a_full_cache_drops_the_oldest(base):
    cache = EncoderCache(limit_bytes=10**6)
    inputs = [window_of(text, base.vocabulary) for text in ("the ___ heart", "___ it is. The heart.", "合同___")]
    calls = []
    hook = base.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    fresh = encode_batch(base.model, inputs, pad_id=0, cache=cache)
    again = encode_batch(base.model, inputs[::-1], pad_id=0, cache=cache)
    hook.remove()
    assert len(calls) == 1
    for row, states in enumerate(fresh.states):
        length = len(inputs[row])
        assert torch.equal(states[:length], again.states[2 - row][:length])
    encode_batch(base.model, inputs, pad_id=0, cache=cache, adapters=["heart", None, "heart"])
    assert len(cache) == 5
    cache.drop_adapter("heart")
    assert len(cache) == 3
    small = EncoderCache(limit_bytes=sum(len(ids) for ids in inputs[1:]) * 32 * 4)
    encode_batch(base.model, inputs, pad_id=0, cache=small)
    assert len(small) == 2


def test_decode_gaps_is_greedy_with_one_rule_for_all(base):
    inputs = [window_of("the ___ heart", base.vocabulary)]
    (((answer,),),) = decode_gaps(base.model, base.vocabulary, inputs, [1], max_gap_tokens=2)
    assert 1 <= len(answer.ids) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy must be greedy, beams or sampling, found 'best'"),
        ({"beams": 0}, "beams must be at least 1, found 0"),
        ({"temperature": 0.0}, "temperature must lie between 0.01 and 100, found 0"),
        ({"temperature": float("inf")}, "temperature must lie between 0.01 and 100, found inf"),
        ({"seed": 10**20}, "seed must lie between 0 and 2\\^63"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, found 1.5"),
    ],
)
def test_a_search_that_can_not_be_is_refused(options, message):
    with pytest.raises(RefineError, match=message):
        Decoding(**options)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_search_stops_at_scores_that_are_no_finite_numbers(vocabulary, odd):
    processor = GapLogitsProcessor(vocabulary, [[GapRule()]])
    begun = torch.tensor([[0, vocabulary.sentinel_ids[0]]])
    scores = torch.zeros((1, len(vocabulary)))
    processor(begun, scores)
    scores[0, 7] = odd
    with pytest.raises(NoNumberError, match="the model gives scores that are no numbers"):
        processor(begun, scores)


def test_a_batch_that_is_drawn_bit_by_bit_is_not_drawn_alike(base, monkeypatch):
    inputs = [window_of("the ___ heart", base.vocabulary)] * 8
    encoded = encode_batch(base.model, inputs, pad_id=0)
    sampling = Decoding.sampling(temperature=5.0, top_p=1.0)

    def first_answers():
        answers = decode_batch(
            base.model, base.vocabulary, encoded, [[GapRule(max_tokens=3)]] * 8, decoding=sampling, num_candidates=2
        )
        return [tuple(answer.ids for answer in gaps[0]) for gaps in answers]

    together = first_answers()
    monkeypatch.setattr(decoding_module, "LOGITS_BYTES", 4 * base.model.config.vocab_size * 4)
    apart = first_answers()
    assert len({ids[0] for ids in together}) == len({ids[0] for ids in apart}) == 8
    assert len(set(apart)) == 8
    assert apart == first_answers()  # from the same seed


@pytest.mark.parametrize("decoding", [None, Decoding.beam(3)])
def test_texts_that_are_decoded_bit_by_bit_are_answered_alike(base, monkeypatch, decoding):
    inputs = [window_of(text, base.vocabulary) for text in ("the ___ heart", "___ it is ___.", "合同___", "a ___ b")]
    encoded = encode_batch(base.model, inputs, pad_id=0)
    rules = [[GapRule(max_tokens=3)] * count for count in (1, 2, 1, 1)]
    together = decode_batch(base.model, base.vocabulary, encoded, rules, num_candidates=3, decoding=decoding)
    rows = []
    generate = base.model.generate
    monkeypatch.setattr(decoding_module, "LOGITS_BYTES", 4 * base.model.config.vocab_size * 8)
    monkeypatch.setattr(
        base.model, "generate", lambda **o: rows.append(len(o["decoder_input_ids"]) * o["num_beams"]) or generate(**o)
    )
    apart = decode_batch(base.model, base.vocabulary, encoded, rules, num_candidates=3, decoding=decoding)
    assert max(rows) <= 8 < sum(rows)
    for one, other in zip(itertools.chain(*together), itertools.chain(*apart), strict=True):
        assert [answer.ids for answer in one] == [answer.ids for answer in other]
        assert [a.probability for a in one] == pytest.approx([a.probability for a in other], rel=1e-4)
