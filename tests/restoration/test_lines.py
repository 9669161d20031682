from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from t5refine_peft import RefineError, Restorer, load_base
from t5refine_peft.restoration import lines as module
from t5refine_peft.restoration.arrivals import arriving
from t5refine_peft.restoration.lines import Line, as_bytes, bounded_lines, json_lines, restore_lines, text_lines


@pytest.fixture(scope="module")
def restorer(tiny_base: Path, adapters: Path) -> Restorer:
    return Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir=adapters)


def test_lines_keep_their_ends_and_bad_ones_come_back_as_they_were(restorer):
    raw = [b"a ___\r\n", b"caf\xe9 ___\n", b"\n", "\ufeff合同□".encode()]
    first, bad, empty, last = restore_lines(restorer, text_lines(raw, source="in.txt"), max_gap_tokens=2)
    assert first.as_text().startswith(b"a ")
    assert first.as_text().endswith(b"\r\n")
    assert len(first.restoration.gaps) == 1
    assert (bad.as_text(), bad.restoration) == (raw[1], None)
    assert bad.error == "in.txt, line 2: expected UTF-8, found invalid continuation byte; convert it first"
    assert empty.as_text() == b"\n"
    assert last.as_text().decode().startswith("\ufeff合同")


def test_a_line_that_fails_does_not_stop_the_rest(restorer):
    rows = [
        {"text": "a ___", "id": 1},
        {"text": "b ___", "adapter": "heart"},
        {"text": "c ___", "adapter": "hart"},
        {"text": 5},
        {"inputs": "d <extra_id_0>", "adapter": "law"},
        {"text": "e", "adapter": 5},
    ]
    raw = [json.dumps(row).encode() + b"\n" for row in rows]
    raw[3:3] = [b"{\n", b"  \n", b"[" * 100_000 + b"\n"]
    results = list(restore_lines(restorer, json_lines(raw, source="in.jsonl"), max_gap_tokens=2))
    assert [result.line.number for result in results] == [1, 2, 3, 4, 6, 7, 8, 9]
    messages = [result.error or "" for result in results]
    expected = ["", "", "in.jsonl, line 3: no adapter 'hart'", "in.jsonl, line 4: expected a JSON object",
                "line 6: expected a JSON object, found one that is nested too deep", "line 7: expected an object with",
                "", "line 9: 'adapter' must be the name of an adapter, found 5"]  # fmt: skip
    assert all(want in found and bool(want) == bool(found) for want, found in zip(expected, messages, strict=True))
    out = [json.loads(result.as_json()) for result in results]
    assert out[0]["id"] == 1
    assert out[2] == {"text": "c ___", "adapter": "hart", "line": 3, "error": messages[2]}
    alone = restorer.restore(["b ___", "d <extra_id_0>"], adapter=["heart", "law"], max_gap_tokens=2)
    assert [out[1]["text"], out[6]["text"]] == [one.text for one in alone]


def test_strict_stops_at_the_first_that_fails(restorer):
    raw = [b'{"text": "a"}\n', b"{\n", b'{"text": "b"}\n']
    results = restore_lines(restorer, json_lines(raw, source="x"), strict=True)
    assert next(results).restoration.text == "a"
    with pytest.raises(RefineError, match="x, line 2: expected a JSON object"):
        next(results)


def test_memory_does_not_grow_with_the_file(restorer, monkeypatch):
    monkeypatch.setattr(module, "_LINES_AT_ONCE", 4)
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield b"no gap\n"

    results = restore_lines(restorer, text_lines(endless(), source="x"))
    for _ in range(9):
        next(results)
    assert len(taken) == 12
    monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", 10)
    taken.clear()
    next(restore_lines(restorer, text_lines(endless(), source="x")))
    assert len(taken) == 2


def test_a_stream_is_answered_while_it_is_open(restorer):
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb", buffering=0) as sink:
        results = restore_lines(restorer, text_lines(source, source="x"), live=True, max_gap_tokens=2)
        for number in (1, 2):
            sink.write(f"line {number} ___\n".encode())
            assert next(results).as_text().startswith(f"line {number}".encode())
        sink.write(b"c\n" * 700 + b"\xff\n")
        sink.close()
        rest = list(results)
    assert [result.line.number for result in rest] == list(range(3, 704))
    assert [result.error is None for result in rest] == [True] * 700 + [False]


def test_a_stream_is_not_read_far_ahead_and_its_reader_ends_with_its_listener():
    taken = []
    done = threading.Event()

    def endless():
        try:
            while True:
                taken.append(None)
                yield Line(number=len(taken), raw=b"", text="x")
        finally:
            done.set()

    parts = arriving(endless(), count=4, characters=100)
    assert next(parts)[0].number == 1
    assert len(taken) <= 1 + 4 + 4 + 1  # out of the queue, in it, and in the reader's hand
    parts.close()
    assert done.wait(10)


def test_what_a_stream_raises_comes_behind_the_lines_before():
    def broken():
        yield Line(number=1, raw=b"", text="x")
        raise OSError("the pipe is gone")

    parts = arriving(broken(), count=4, characters=100)
    assert [line.number for line in next(parts)] == [1]
    with pytest.raises(OSError, match="the pipe is gone"):
        next(parts)


def test_a_number_that_python_does_not_read_is_its_lines_fault_alone(restorer):
    raw = [b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", b'{"text": "b", "adapter": ""}\n', b'{"text": "c"}\n']
    results = list(restore_lines(restorer, json_lines(raw, source="x")))
    assert results[0].error == "x, line 1: expected a JSON object, found one with a number that is too long"
    assert results[1].error.startswith("x, line 2: '' can't name an adapter")
    assert results[2].restoration.text == "c"


def test_half_characters_are_written_as_the_bytes_that_they_stand_for():
    assert as_bytes(b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf\xe9"
    assert as_bytes("\ud83d") == b"\xed\xa0\xbd"


def test_a_line_that_is_too_long_fails_alone_and_comes_back_in_pieces(restorer, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE_BYTES", 8)
    whole = b"a ___\n" + b"x" * 21 + b"\nb ___\n" + b"y" * 9
    stream = io.BytesIO(whole)
    found = list(restore_lines(restorer, text_lines(bounded_lines(stream), source="in.txt"), max_gap_tokens=2))
    assert [result.line.number for result in found] == [1, 2, 2, 2, 3, 4, 4]
    told = [result.error for result in found if result.error is not None]
    assert told == [f"in.txt, line {number}: expected at most 8 bytes, found more; break the line" for number in (2, 4)]
    assert b"".join(result.as_text() for result in found[1:4]) == b"x" * 21 + b"\n"
    assert b"".join(result.as_text() for result in found[5:]) == b"y" * 9
    assert len(b"".join(result.as_json() for result in found).splitlines()) == 4
    assert b"___" not in found[0].as_text() + found[4].as_text()
    with pytest.raises(RefineError, match="line 2"):
        list(restore_lines(restorer, text_lines(bounded_lines(io.BytesIO(whole)), source="in.txt"), strict=True))
