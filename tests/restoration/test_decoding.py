from __future__ import annotations

import numpy as np
import pytest
import torch

from t5refine_peft.restoration.decoding import SentinelOrderLogitsProcessor, decode_gaps
from t5refine_peft.restoration.gaps import find_gaps, make_windows


def allowed(vocabulary, generated: list[int], gaps: int, max_gap_tokens: int = 3) -> set[int]:
    rows = len(vocabulary) + 12
    processor = SentinelOrderLogitsProcessor(
        vocabulary, rows=rows, gaps=torch.tensor([gaps]), max_gap_tokens=max_gap_tokens
    )
    scores = processor(torch.tensor([[0, *generated]]), torch.zeros(1, rows))
    return set((scores[0] == 0).nonzero()[:, 0].tolist())


def test_only_the_next_sentinel_or_text_is_allowed(vocabulary):
    s = vocabulary.sentinel_ids
    ordinary = set(range(3, len(vocabulary))) - set(s)
    assert allowed(vocabulary, [], 2) == {s[0]}
    assert allowed(vocabulary, [s[0]], 2) == ordinary
    assert allowed(vocabulary, [s[0], 50], 2) == ordinary | {s[1]}
    assert allowed(vocabulary, [s[0], 50, 51, 52], 2) == {s[1]}
    assert allowed(vocabulary, [s[0], 50, s[1], 51], 2) == ordinary | {vocabulary.eos_id}
    assert allowed(vocabulary, [s[0], 50, s[1], 51, 52, 53], 2) == {vocabulary.eos_id}


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_batches_of_different_gaps_are_answered_and_scored(base, num_candidates):
    texts = ["___ heart", "the ___ takes ___ for ___.", "合同___" * 7]
    windows = [make_windows(text, find_gaps(text), base.vocabulary, max_tokens=512)[0] for text in texts]
    counts = [len(window.gaps) for window in windows]
    inputs = [window.input_ids for window in windows]
    together = decode_gaps(base.model, base.vocabulary, inputs, counts, num_candidates=num_candidates, max_gap_tokens=4)
    assert [len(gaps) for gaps in together] == [1, 3, 7]
    for gaps in together:
        for answers in gaps:
            assert 1 <= len(answers) <= num_candidates
            assert len({answer.ids for answer in answers}) == len(answers)
            assert all(1 <= len(answer.ids) <= 4 and 0 <= answer.probability <= 1 for answer in answers)
    alone = [
        decode_gaps(base.model, base.vocabulary, [ids], [count], num_candidates=num_candidates, max_gap_tokens=4)[0]
        for ids, count in zip(inputs, counts, strict=True)
    ]
    if num_candidates == 1:
        assert [[a[0].ids for a in gaps] for gaps in together] == [[a[0].ids for a in gaps] for gaps in alone]


def test_the_score_is_the_probability_of_the_answers_tokens(base):
    text = "the patient takes ___ ."
    (window,) = make_windows(text, find_gaps(text), base.vocabulary, max_tokens=512)
    answer = decode_gaps(base.model, base.vocabulary, [window.input_ids], [1], max_gap_tokens=3)[0][0][0]
    sequence = [0, base.vocabulary.sentinel_ids[0], *answer.ids]
    probability = 1.0
    for at in range(2, len(sequence)):
        logits = base.model(
            input_ids=torch.from_numpy(np.asarray(window.input_ids))[None],
            decoder_input_ids=torch.tensor([sequence[:at]]),
        ).logits[0, -1]
        probability *= float(torch.softmax(logits.double(), -1)[sequence[at]])
    assert answer.probability == pytest.approx(probability, rel=1e-4)
