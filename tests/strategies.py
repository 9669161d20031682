"""Hypothesis strategies: texts of mixed scripts with everything that trips tokenizers, and recipes of corruption."""

from __future__ import annotations

from hypothesis import strategies as st

from t5refine_peft import CorruptionConfig

_PIECES = [
    "furosemide", " heart", "心力衰竭", "合同", "，", "。", ". ", " ", "\n", "\t", "ﬁ", "Ａ１", "é", "e\u0301",
    "😀", "👩\u200d⚕️", "한국어",
    "ไทย", "かな", "\u0000", "\u200b", "<extra_id_3>", " <extra_id_0>", "<extra_id_", "▁", "___",
    "\u00ad", "\n\n", "龘", "½", "㍿", "ｶﾞ", "ß", "\u1112\u1161", "x\u0302", "🇩🇪",
    "x", "-", "(", ")", "①",
    "＜extra_id_5＞", " <extra\x01_id_²>",
]  # fmt: skip

texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=6)), max_size=25).map("".join)

shares = st.floats(0.05, 0.6)
configs = st.builds(
    CorruptionConfig,
    mask_share=st.one_of(shares, st.tuples(shares, shares).map(lambda pair: (min(pair), max(pair)))),
    mean_span_tokens=st.floats(1, 6),
    max_span_tokens=st.integers(1, 30),
    term_probability=st.floats(0, 1),
    all_occurrences=st.floats(0, 1),
    random_only=st.floats(0, 1),
    touching=st.sampled_from(["apart", "joined"]),
    max_label_tokens=st.integers(3, 60),
)
