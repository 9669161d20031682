"""Gaps given as ranges that do not fit their text, made from good ones: each is refused before the model is asked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from t5refine_peft import RefineError, Restorer, load_base

TEXT = "The patient takes furosemide, 患者服用利尿剂, for congestion 😀."


def spoiled(rng: random.Random) -> list[tuple[int, int]]:
    """Three good ranges of TEXT with one fault."""
    ends = sorted(rng.sample(range(len(TEXT)), 6))
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    at = rng.randrange(3)
    start, end = ranges[at]
    match rng.randrange(5):
        case 0:
            ranges[at] = (end, start)
        case 1:
            ranges[-1] = (ranges[-1][0], len(TEXT) + rng.randrange(1, 1000))
        case 2:
            ranges[at] = (start - 1000, end)
        case 3:
            ranges.insert(0, ranges[-1])
        case 4:
            ranges.insert(at, (start, end + 1))
    return ranges


def test_sixty_spoiled_ranges_are_refused(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = load_base(tiny_base, device="cpu", precision="float32")
    restorer = Restorer(base, adapters_dir=tmp_path)
    monkeypatch.setattr(type(base.model), "forward", lambda *_, **__: pytest.fail("the model was asked"))
    rng = random.Random(3)
    for _ in range(60):
        with pytest.raises(RefineError, match="gaps must be ranges") as caught:
            restorer.restore([TEXT], gaps=[spoiled(rng)])
        assert str(caught.value).isprintable()
    with pytest.raises(RefineError, match="expected 1, found 2"):
        restorer.restore([TEXT], gaps=[[], []])
    assert list(tmp_path.iterdir()) == []
