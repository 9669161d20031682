from __future__ import annotations

import random

import numpy as np
import pytest

from t5refine_peft.corpus.duplicates import NearDuplicates, first_of_each, signatures, text_key


def jaccard(first: str, second: str) -> float:
    """The similarity that the signatures estimate, by sets."""

    def shingles(text: str) -> set[str]:
        padded = " ".join(text.casefold().split()) + "\0" * 4
        return {padded[at : at + 5] for at in range(len(padded) - 4)}

    one, two = shingles(first), shingles(second)
    return len(one & two) / len(one | two)


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    words = [f"w{n}" for n in range(3000)] + ["心力衰竭", "撤销权", "😀"]
    return [" ".join(rng.choices(words, k=60)) for _ in range(count)]


def test_signatures_estimate_the_jaccard_similarity():
    rng = random.Random(1)
    errors = []
    for text in texts(300):
        cut, at = rng.randrange(1, 200), rng.randrange(len(text))
        other = text[:at] + text[at + cut :]
        first, second = signatures([text, other])
        errors.append((first == second).mean() - jaccard(text, other))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.045  # the theory says sqrt(J (1 - J) / 128), at most 0.044


def test_a_text_has_the_same_signature_in_any_company():
    some = [*texts(5), "x", "ab", "合同", "Heart  Failure\n", "heart failure"]
    together = signatures(some)
    assert all((signatures([text]) == together[n]).all() for n, text in enumerate(some))
    assert (together[-1] == together[-2]).all()
    assert signatures([]).shape == (0, 128)


def test_near_duplicates_are_found_and_nothing_else():
    originals = texts(400)
    index = NearDuplicates(signatures(originals[:200]))
    near = [text.replace("w1", "v1", 1) + " end" for text in originals[:200]]
    assert min(jaccard(a, b) for a, b in zip(originals, near, strict=False)) > 0.85
    assert index.among(signatures(near)).mean() > 0.98
    assert not index.among(signatures(originals[200:])).any()
    assert not NearDuplicates(signatures([])).among(signatures(near)).any()


def test_many_copies_held_out_are_no_obstacle():
    original = texts(1)[0]
    index = NearDuplicates(signatures([original] * 1000))
    assert index.among(signatures([original, "w1 w2 w3"])).tolist() == [True, False]


@pytest.mark.parametrize("parts", [[], [[1, 2, 1]], [[1, 2], [2, 3, 1, 3]]])
def test_the_first_of_each_key_is_kept(parts: list[list[int]]):
    seen: set[int] = set()
    expected = [not (key in seen or seen.add(key)) for part in parts for key in part]
    assert first_of_each(np.array(part, dtype=np.uint64) for part in parts).tolist() == expected


def test_keys_pass_over_blanks_around_a_text():
    assert text_key(" a b\n") == text_key("a b") != text_key("a  b")
