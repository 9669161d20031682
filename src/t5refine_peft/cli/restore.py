"""`t5refine restore`: fill the gaps in a text, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t5refine_peft.cli import options
from t5refine_peft.errors import RefineError

if TYPE_CHECKING:
    from t5refine_peft.restoration.restorer import Restoration

_LINES_AT_ONCE = 64
_FIELDS = ("inputs", "text")


def restore(
    text: Annotated[str | None, typer.Argument(help="A text with gaps, or - for standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A .txt or .jsonl file, a text a line.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The domain's adapter; without it the base answers alone.")
    ] = None,
    base: options.Base = "google/mt5-base",
    adapters_dir: options.AdaptersDir = Path("adapters"),
    gap: Annotated[
        str | None, typer.Option(help="The only mark that stands for a gap, instead of the usual ones.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Fill the gaps in a text. Gaps are <extra_id_0>, [MASK], ___, ＿＿, □ or {gap}; all else is left as it is.

    Example: t5refine restore "The patient takes ___ for oedema." --adapter cardiology --base google/mt5-base
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text (or -) or --file")
    from t5refine_peft.config import Quantization
    from t5refine_peft.restoration.restorer import Restorer

    scheme = Quantization.named(quantization) if quantization is not None else None
    jsonl = file is not None and file.suffix.lower() == ".jsonl"
    lines = iter([text]) if text is not None and text != "-" else _lines(file)
    restorer = Restorer(base, adapters_dir=adapters_dir, quantization=scheme, device=device)
    if adapter is not None:
        restorer.load_adapter(adapter)
    written: list[str] = []
    number = 0
    while batch := list(islice(lines, _LINES_AT_ONCE)):
        rows = [_read_row(line, file, number + at) for at, line in enumerate(batch, start=1)] if jsonl else batch
        number += len(batch)
        texts = [_text_of(row) if isinstance(row, dict) else row.rstrip("\r\n") for row in rows]
        for row, source, restored in zip(rows, texts, restorer.restore(texts, adapter=adapter, gap=gap), strict=True):
            if jsonl or as_json:
                extra = row if isinstance(row, dict) else {}
                line = json.dumps({**extra, **_as_object(restored)}, ensure_ascii=False) + "\n"
            else:
                ending = row[len(source) :] if isinstance(row, str) else ""
                line = restored.text + (ending or ("\n" if text is not None and text != "-" else ""))
            if output is None:
                _write(line)
            else:
                written.append(line)
    if output is not None:
        _write_file(output, "".join(written))


def _lines(file: Path | None) -> Iterator[str]:
    """The lines with their ends as they are."""
    try:
        if file is None:
            for raw in sys.stdin.buffer:
                yield raw.decode("utf-8")
        else:
            with file.open(encoding="utf-8", newline="") as stream:
                yield from stream
    except UnicodeDecodeError as error:
        raise RefineError(f"{file or 'standard input'} is not UTF-8 ({error.reason}); convert it first") from None
    except OSError as error:
        raise RefineError(f"{file} can't be read: {error.strerror}") from None


def _read_row(line: str, file: Path | None, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RefineError(f"{file}, line {number}: expected a JSON object, found {error.msg}") from None
    if not isinstance(row, dict) or not any(isinstance(row.get(field), str) for field in _FIELDS):
        raise RefineError(f"{file}, line {number}: expected an object with text in 'inputs' or 'text'")
    return row


def _text_of(row: dict[str, Any]) -> str:
    return str(next(row[field] for field in _FIELDS if isinstance(row.get(field), str)))


def _as_object(restored: Restoration) -> dict[str, Any]:
    gaps = [
        {
            "start": gap.start,
            "end": gap.end,
            "text": gap.text,
            "score": round(gap.score, 6),
            "candidates": [{"text": c.text, "score": round(c.score, 6)} for c in gap.candidates],
        }
        for gap in restored.gaps
    ]
    return {"text": restored.text, "gaps": gaps}


def _write(line: str) -> None:
    """Bytes as they are: no translation of line ends."""
    sys.stdout.flush()
    sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def _write_file(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content.encode("utf-8"))
        temporary.replace(path)
    except OSError as error:
        raise RefineError(f"{path} can't be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
