from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5refine_peft import RefineError
from t5refine_peft.registry.names import check_name, is_name


@pytest.mark.parametrize(
    "name", ["cardiology", "law.v2", "合同法", "a", "Herz_und-Kreislauf", "x" * 100, "_", "con-law"]
)
def test_plain_file_names_are_taken(name: str):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a.", ".a", "../a", "a/b", "a\\b", "/a", "C:a", "a\0", "a\n", "a b", "-a", "x" * 101, "字" * 67,
     "con", "NUL", "aux.txt", "COM1", "lpt9.zip", "a:b", "a*", "~", "\ud800", "\u202ea",
     "\u212b", "\u1100\u1161"],
)  # fmt: skip
def test_anything_else_is_refused(name: str):
    assert not is_name(name)
    with pytest.raises(RefineError, match="can't name an adapter"):
        check_name(name)


def test_one_of_two_names_that_look_the_same_is_taken():
    assert check_name("\xc5") == "\xc5"
    with pytest.raises(RefineError, match=r"some systems take it for '\\xc5', which looks the same; give that"):
        check_name("\u212b")


@given(st.text(max_size=120))
def test_a_name_that_is_taken_stays_in_its_directory(tmp_path_factory, name: str):
    if is_name(name):
        directory = tmp_path_factory.getbasetemp()
        assert (directory / name).resolve().parent == directory.resolve()
        assert len(f".{name}.12345678.part.old".encode()) <= 255
