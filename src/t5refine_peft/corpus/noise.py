"""Damage to visible text: characters dropped, swapped with their neighbour, or confused as OCR confuses them."""

from __future__ import annotations

import numpy as np

_LOOKALIKES = (
    # Latin, digits and marks (Rice, Nagy and Nartker 1999, Optical Character Recognition: An Illustrated Guide)
    "O0QD", "o0", "l1I|", "i1j", "S5", "s5", "B8", "Z2", "z2", "G6C", "b6", "g9q", "ce", "eo", "uv", "vy", "nh", "nr",
    "ft", "ec", "tr", "ao", "EF", "PR", "MN", "VU", "XK", ".,", ":;", "'`", "-~", "áà", "éè", "ñn", "üu", "öo", "äa",
    # Han (similar shapes, as in the SIGHAN 2013 bake-off, Wu, Liu and Lee 2013)
    "己已巳", "未末", "土士", "日曰", "人入八", "大太犬", "天夫无", "干千于", "王玉主", "木本术", "午牛", "甲申由田",
    "白自百", "目且", "贝见", "刀力", "九丸", "戊戌戍", "手毛", "问间闻", "折拆析", "侯候", "处外", "住往", "拔拨",
    "治冶", "请清情", "今令", "代伐", "兔免", "鸟乌", "幻幼", "厂广", "亨享", "茶荼", "栗粟", "辨辩", "提堤", "枚牧",
    "密蜜", "准淮", "券卷", "崇祟", "晴睛", "胀账", "赔陪", "订汀", "竞竟", "哀衰衷", "候侯", "肓盲", "炙灸", "微徽",
    "傅传", "抵低", "坏环", "很恨", "持特", "轮输", "渴喝", "杨扬", "历厉", "斤斥", "了子", "口囗",
    # Kana
    "シツ", "ソン", "ハバパ", "ヒビピ", "ろる", "わね", "ぬめ", "さき",
    # Cyrillic
    "шщ", "ипн", "ес", "ьъ", "зэ",
)  # fmt: skip
_SPLITS = {"m": "rn", "d": "cl", "w": "vv", "k": "lc", "M": "IVI", "H": "I-I", "明": "日月", "林": "木木", "胆": "月旦"}
"""Characters that are read as several."""


def _confusions() -> dict[str, tuple[str, ...]]:
    table: dict[str, dict[str, None]] = {}
    for group in _LOOKALIKES:
        for char in group:
            table.setdefault(char, {}).update(dict.fromkeys(other for other in group if other != char))
    for char, split in _SPLITS.items():
        table.setdefault(char, {})[split] = None
    return {char: tuple(others) for char, others in table.items()}


CONFUSIONS = _confusions()
"""What each character may be taken for."""


def damage(text: str, *, share: float, rng: np.random.Generator) -> str:
    """Damage a share of the characters of `text` that are no spaces.

    A character that is hit is dropped, swapped with the one behind it or taken for one that looks like it, a third
    each; one that looks like no other is dropped or swapped.

    Args:
        text: any text.
        share: chance of each character to be hit, from 0 to 1.
        rng: the same state gives the same damage.
    """
    hits = np.flatnonzero(rng.random(len(text)) < share)
    chars = list(text)
    for at, kind in zip(hits.tolist(), rng.integers(3, size=len(hits)).tolist(), strict=True):
        char = chars[at]
        if not char or char.isspace():
            continue
        if kind == 0:
            lookalikes = CONFUSIONS.get(char, ("",))
            chars[at] = lookalikes[int(rng.integers(len(lookalikes)))]
        elif kind == 1 and at + 1 < len(chars):
            chars[at], chars[at + 1] = chars[at + 1], char
        else:
            chars[at] = ""
    return "".join(chars)
