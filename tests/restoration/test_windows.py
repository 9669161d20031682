from __future__ import annotations

from hypothesis import given
from strategies import texts

from t5refine_peft.restoration.gaps import Gap, find_gaps
from t5refine_peft.restoration.windows import make_windows


def shown(window, vocabulary) -> str:
    """The text of a window, its sentinels as stars."""
    parts, kept = [], []
    for token in window.input_ids.tolist():
        if token in vocabulary.sentinel_ids:
            parts += [vocabulary.decode(kept), "*"]
            kept = []
        else:
            kept.append(token)
    return "".join([*parts, vocabulary.decode(kept)])


@given(text=texts)
def test_a_text_that_fits_is_one_window(vocabulary, text):
    gaps = [Gap(at, at + 1) for at in range(0, len(text), 4)]
    windows = make_windows(text, gaps, vocabulary, max_tokens=10_000)
    assert len(windows) == min(1, len(gaps))
    for window in windows:
        assert window.gaps == window.covered == range(len(gaps))


def test_gaps_that_stand_close_are_read_with_the_text_behind_their_neighbours(vocabulary):
    text = "The patient takes □ " * 250
    windows = make_windows(text, find_gaps(text), vocabulary, max_tokens=512)
    assert [number for window in windows for number in window.gaps] == list(range(250))
    for window in windows:
        assert len(window.input_ids) <= 512
        assert len(window.covered) <= 100
        inner = range(window.gaps.start - window.covered.start, window.gaps.stop - window.covered.start)
        sides = shown(window, vocabulary).split("*")
        left = sum(map(len, sides[: inner.start + 1]))
        right = sum(map(len, sides[inner.stop :]))
        assert window.gaps.start == 0 or left > 30
        assert window.gaps.stop == 250 or right > 30


def test_a_long_text_is_cut_around_its_gap(vocabulary):
    text = "The heart is sick. " * 300 + "___" + " The pulse is well." * 300
    (window,) = make_windows(text, find_gaps(text), vocabulary, max_tokens=64)
    left, right = shown(window, vocabulary).split("*")
    assert len(window.input_ids) == 64
    assert "sick" in left
    assert "well" in right
    assert abs(len(left) - len(right)) < 20
