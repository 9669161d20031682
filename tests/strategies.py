"""Hypothesis strategies: texts of mixed scripts with everything that trips tokenizers."""

from __future__ import annotations

from hypothesis import strategies as st

_PIECES = [
    "furosemide", " heart", "心力衰竭", "合同", "，", "。", ". ", " ", "\n", "\t", "ﬁ", "Ａ１", "é", "e\u0301",
    "😀", "👩\u200d⚕️", "한국어",
    "ไทย", "かな", "\u0000", "\u200b", "<extra_id_3>", " <extra_id_0>", "<extra_id_", "▁", "___",
    "x", "-", "(", ")", "①",
    "＜extra_id_5＞", " <extra\x01_id_²>",
]  # fmt: skip

texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=6)), max_size=25).map("".join)
