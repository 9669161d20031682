"""Restore a stream of lines in constant memory; a line that fails is told of and does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Unpack

from t5refine_peft.corpus.chunks import in_chunks
from t5refine_peft.errors import RefineError
from t5refine_peft.restoration.arrivals import arriving
from t5refine_peft.restoration.restorer import RestoreOptions, Restorer
from t5refine_peft.restoration.results import Restoration

_LINES_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 200_000
_FIELDS = ("inputs", "text")
LONGEST_LINE_BYTES = 64 << 20
"""A line is held whole; this is far beyond a book, and far below the memory of a computer."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line as it was read, and what is to be restored of it."""

    number: int
    """From 1."""
    raw: bytes
    """With its end."""
    where: str = ""
    """File and line, for messages."""
    text: str = ""
    """Without its end."""
    end: bytes = b""
    """What ends the line."""
    row: dict[str, Any] | None = None
    """The object, where the line is JSON."""
    adapter: str | None = None
    """The one that the line names."""
    error: str | None = None
    """Why it can't be restored."""
    goes_on: bool = False
    """Whether it is a further piece of a line that is too long, and was told of with its first."""


@dataclass(frozen=True)
class LineResult:
    """A line and what came of it: a restoration, or None and `error`."""

    line: Line
    restoration: Restoration | None
    error: str | None = None

    def as_text(self) -> bytes:
        """The restored line with its end; the line as it was where it failed."""
        if self.restoration is None:
            return self.line.raw
        return as_bytes(self.restoration.text) + self.line.end

    def as_json(self) -> bytes:
        """An object in a line: the line's own fields, and text and gaps, or where it failed, its number and why."""
        if self.line.goes_on:
            return b""
        own = self.line.row or {}
        if self.restoration is None:
            found: dict[str, Any] = {**own, "line": self.line.number, "error": self.error}
        else:
            found = {**own, **self.restoration.as_object()}
        return (json.dumps(found, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def as_bytes(text: str) -> bytes:
    """`text` in UTF-8; half characters that stand for bytes which were no UTF-8 become those bytes again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of pairs, as JSON can spell them
        return text.encode("utf-8", "surrogatepass")


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file or a pipe with their ends, longer ones in pieces of `LONGEST_LINE_BYTES`."""
    while line := stream.readline(LONGEST_LINE_BYTES):
        yield line


def text_lines(stream: Iterable[bytes], *, source: str) -> Iterator[Line]:
    """Lines of plain text, UTF-8; `source` names it in messages.

    A piece of `bounded_lines` has no end: the line that it begins fails, and comes out in pieces as it came in.
    """
    number = 0
    too_long = ""
    for raw in stream:
        goes_on = bool(too_long)
        number += not goes_on
        where = f"{source}, line {number}"
        if goes_on or (len(raw) == LONGEST_LINE_BYTES and not raw.endswith(b"\n")):
            too_long = f"{where}: expected at most {LONGEST_LINE_BYTES:,} bytes, found more; break the line"
            text = raw.decode("latin-1")  # nobody reads it, but its length says how much is held
            yield Line(number=number, raw=raw, text=text, error=too_long, goes_on=goes_on)
            too_long = "" if raw.endswith(b"\n") else too_long
            continue
        content = raw.rstrip(b"\r\n")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Line(number=number, raw=raw, error=f"{where}: expected UTF-8, found {error.reason}; convert it first")
        else:
            yield Line(number=number, raw=raw, where=where, text=text, end=raw[len(content) :])


def json_lines(stream: Iterable[bytes], *, source: str) -> Iterator[Line]:
    """Lines of JSON: objects with text in `inputs` or `text`, and an adapter's name in `adapter` if they like."""
    for line in text_lines(stream, source=source):
        if line.error is not None:
            yield line
        elif line.text.strip():
            yield _json_line(line)


def _json_line(line: Line) -> Line:
    def failed(reason: str) -> Line:
        return replace(line, text="", error=f"{line.where}: {reason}")

    try:
        row = json.loads(line.text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        return failed(f"expected a JSON object, found {error.msg}")
    except ValueError:  # Python reads no number of more than 4,300 digits
        return failed("expected a JSON object, found one with a number that is too long")
    except RecursionError:
        return failed("expected a JSON object, found one that is nested too deep")
    if not isinstance(row, dict) or not any(isinstance(row.get(field), str) for field in _FIELDS):
        return failed("expected an object with text in 'inputs' or 'text'")
    adapter = row.get("adapter")
    if not isinstance(adapter, str | None):
        return failed(f"'adapter' must be the name of an adapter, found {json.dumps(adapter)[:40]}")
    text = next(row[field] for field in _FIELDS if isinstance(row.get(field), str))
    return replace(line, text=text, row=row, adapter=adapter)


def restore_lines(
    restorer: Restorer,
    lines: Iterable[Line],
    *,
    strict: bool = False,
    live: bool = False,
    **options: Unpack[RestoreOptions],
) -> Iterator[LineResult]:
    """Restore lines in order, a few hundred at once.

    Args:
        restorer: the model.
        lines: of `text_lines` or `json_lines`.
        strict: raise at the first line that fails.
        live: answer what has arrived as soon as `lines` keeps one waiting, as a pipe does that stays open.
        options: as `Restorer.restore` takes them; `adapter` is for lines that name none.

    Raises:
        RefineError: `strict` is asked for and a line failed.
    """
    adapter = options.pop("adapter", None)
    if not isinstance(adapter, str | None):
        raise RefineError("lines take one adapter for those that name none")
    cut = arriving if live else in_chunks
    for part in cut(lines, characters=_CHARACTERS_AT_ONCE, count=_LINES_AT_ONCE):
        good = [line for line in part if line.error is None]
        done = _restore(restorer, good, adapter, options)
        for line in part:
            if line.goes_on:
                result = LineResult(line, None)
            else:
                result = LineResult(line, None, line.error) if line.error is not None else next(done)
            if strict and result.error is not None:
                raise RefineError(result.error)
            yield result


def _restore(
    restorer: Restorer, lines: Sequence[Line], adapter: str | None, options: RestoreOptions
) -> Iterator[LineResult]:
    """All lines together; if that fails, each by itself, so that only those fail that must."""
    own: RestoreOptions = {**options, "adapter": [adapter if line.adapter is None else line.adapter for line in lines]}
    try:
        found = restorer.restore([line.text for line in lines], **own)
    except RefineError as error:
        if len(lines) == 1:
            where = f"{lines[0].where}: " if lines[0].where else ""
            yield LineResult(lines[0], None, f"{where}{error}")
        else:
            for line in lines:
                yield from _restore(restorer, [line], adapter, options)
        return
    yield from (LineResult(line, restoration) for line, restoration in zip(lines, found, strict=True))
