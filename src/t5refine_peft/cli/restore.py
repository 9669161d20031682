"""`t5refine restore`: fill the gaps in a text, a file or standard input."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from io import UnsupportedOperation
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from t5refine_peft.cli import options
from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_file

if TYPE_CHECKING:
    from t5refine_peft.restoration.lines import LineResult
    from t5refine_peft.restoration.restorer import Restorer

_PROGRESS_FROM_BYTES = 100_000
"""Smaller files are done before a bar is of use."""


def restore(
    text: Annotated[str | None, typer.Argument(help="A text with gaps, or - for standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A .txt or .jsonl file, a text a line, or a .docx document.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The domain's adapter; without it the base answers alone.")
    ] = None,
    base: options.CardBase = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
    gap: Annotated[
        str | None, typer.Option(help="The only mark that stands for a gap, instead of the usual ones.")
    ] = None,
    terms: Annotated[Path | None, typer.Option(help="A term list: answer with its terms alone.")] = None,
    terms_bias: Annotated[
        float | None, typer.Option(help="Favour the terms by so many nats instead of allowing them alone.")
    ] = None,
    detect: Annotated[
        bool, typer.Option("--detect", help="Find damaged words that no mark tells of, and restore them too.")
    ] = False,
    detect_threshold: Annotated[
        float | None, typer.Option(help="How improbable a damaged word is, in nats; by default the adapter's own.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Answers to each gap, shown with --json and --html.")] = 1,
    beams: Annotated[int | None, typer.Option(help="Search answers with so many beams.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw answers by probability.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    count_marks: Annotated[
        bool, typer.Option("--count-marks", help="Fill □ and ＿ with exactly as many characters as there are.")
    ] = False,
    max_gap_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 24,
    min_score: Annotated[float, typer.Option(help="Leave gaps open whose answer is less probable.")] = 0.0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a batch.")] = 4096,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that fails.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Write a page on which restored pieces are marked by score.")
    ] = False,
) -> None:
    """Fill the gaps in a text. Gaps are <extra_id_0>, [MASK], ___, ＿＿, □ or {gap}; all else is left as it is.

    A line of a .jsonl file may name its own adapter in the field "adapter".

    Example: t5refine restore "Iron test showed ___." --adapter cardiology
    """
    options.stay_offline(offline)
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text (or -) or --file")
    if as_json and as_html:
        raise typer.BadParameter("give either --json or --html")
    if sample and beams is not None:
        raise typer.BadParameter("give either --beams or --sample")
    is_document = file is not None and file.suffix.lower() == ".docx"
    if is_document and (output is None or as_json or as_html):
        raise typer.BadParameter("a .docx document is written as one: give --output, and neither --json nor --html")
    if file is not None and not file.is_file():
        raise RefineError(f"{file} can't be read: expected a .txt, .jsonl or .docx file")
    from t5refine_peft.corpus.glossary import Glossary
    from t5refine_peft.restoration.decoding import Decoding
    from t5refine_peft.restoration.restorer import Restorer

    chosen: dict[str, Any] = {
        "adapter": adapter,
        "gap": gap,
        "glossary": Glossary.load(terms) if terms is not None else None,
        "glossary_bias": math.inf if terms_bias is None else terms_bias,
        "detect": detect,
        "detect_threshold": detect_threshold,
        "num_candidates": candidates,
        "decoding": Decoding.sampling(seed=seed) if sample else Decoding.beam(beams) if beams is not None else None,
        "max_gap_tokens": max_gap_tokens,
        "count_marks": count_marks,
        "min_score": min_score,
        "batch_tokens": batch_tokens,
    }
    scheme = options.parse_quantization(quantization)
    base = base or options.base_for(adapter, adapters_dir)
    restorer = Restorer(base, adapters_dir=adapters_dir, quantization=scheme, device=device)
    if adapter is not None:
        restorer.load_adapter(adapter)
    if is_document and file is not None and output is not None:
        from t5refine_peft.restoration.word_documents import restore_document

        paragraphs = _Told(restore_document(restorer, file, output, strict=strict, **chosen))
        gaps = sum(len(one.restoration.gaps) for one in paragraphs if one.restoration is not None)
        print(f"{output}: {gaps} gaps restored", file=sys.stderr)
        paragraphs.end("paragraphs with gaps")
        return
    as_json = as_json or (file is not None and file.suffix.lower() == ".jsonl" and not as_html)
    results = _Told(_results(restorer, text, file, strict, chosen))
    with _written_to(output) as stream:
        for piece in _page(results) if as_html else _plain(results, as_json):
            stream.write(piece)
            stream.flush()
    results.end("lines")


@contextmanager
def _written_to(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        return
    with atomic_file(output) as temporary, temporary.open("wb") as stream:
        yield stream


class _Told:
    """Results whose failures are told on standard error as they come."""

    def __init__(self, results: Iterable[LineResult]) -> None:
        self._results = results
        self.lines = self.failed = 0

    def __iter__(self) -> Iterator[LineResult]:
        for result in self._results:
            self.lines += not result.line.goes_on
            if result.error is not None:
                self.failed += 1
                print(f"t5refine: {result.error}", file=sys.stderr, flush=True)
            yield result

    def end(self, what: str) -> None:
        """End with exit 1 where any failed."""
        if self.failed:
            print(f"{self.failed} of {self.lines} {what} could not be restored", file=sys.stderr)
            raise typer.Exit(1)


def _standard_input() -> IO[bytes]:
    """Standard input with a buffer of its own.

    A thread may be waiting in it when the program ends, and Python can't end while one holds `sys.stdin`.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except UnsupportedOperation:  # it is no file: a caller's own stream
        return sys.stdin.buffer


def _results(
    restorer: Restorer, text: str | None, file: Path | None, strict: bool, chosen: dict[str, Any]
) -> Iterator[LineResult]:
    from t5refine_peft.restoration.lines import Line, as_bytes, bounded_lines, json_lines, restore_lines, text_lines

    if file is None and text == "-":
        piped = text_lines(bounded_lines(_standard_input()), source="standard input")
        yield from restore_lines(restorer, piped, strict=strict, live=True, **chosen)
        return
    if file is None:
        text = text or ""
        line = Line(number=1, raw=as_bytes(text) + b"\n", text=text, end=b"\n")
        yield from restore_lines(restorer, [line], strict=True, **chosen)
        return
    read = json_lines if file.suffix.lower() == ".jsonl" else text_lines
    size = file.stat().st_size
    shown = sys.stderr.isatty() and size > _PROGRESS_FROM_BYTES
    bar = typer.progressbar(length=size, label=file.name, file=sys.stderr) if shown else nullcontext()
    with file.open("rb") as stream, bar as progress:
        lines = read(bounded_lines(stream), source=str(file))
        for result in restore_lines(restorer, lines, strict=strict, **chosen):
            if progress is not None:
                progress.update(len(result.line.raw))
            yield result


def _plain(results: Iterable[LineResult], as_json: bool) -> Iterator[bytes]:
    for result in results:
        yield result.as_json() if as_json else result.as_text()


def _page(results: Iterable[LineResult]) -> Iterator[bytes]:
    from t5refine_peft.restoration.page import render_page

    texts = (
        result.restoration if result.restoration is not None else result.line.raw.decode("utf-8", "replace")
        for result in results
    )
    for piece in render_page(texts):
        yield piece.encode("utf-8", "replace")
