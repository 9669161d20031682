"""`t5refine prepare`: a corpus and a term list into a dataset, with an audit of both."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t5refine_peft.cli import options
from t5refine_peft.config import RunConfig
from t5refine_peft.errors import RefineError

if TYPE_CHECKING:
    from t5refine_peft.corpus.export import ShownPassage
    from t5refine_peft.corpus.glossary import Glossary
    from t5refine_peft.corpus.prepared import Prepared
    from t5refine_peft.corpus.tokenization import Vocabulary


class UnitName(StrEnum):
    """What a document is in running text."""

    line = "line"
    paragraphs = "paragraphs"
    file = "file"


class ExportFormat(StrEnum):
    """A format to write examples in."""

    jsonl = "jsonl"


def prepare(
    corpus: Annotated[list[Path], typer.Argument(help="Text files (.txt .md .jsonl .csv .docx .pdf) or folders.")],
    terms: Annotated[Path | None, typer.Option(help="A term list: one term a line, or CSV with variants.")] = None,
    base: options.Base = RunConfig.base,
    output: Annotated[Path | None, typer.Option(help="Where the dataset, or what is exported, is written.")] = None,
    export: Annotated[
        ExportFormat | None, typer.Option(help="Write fixed pairs of inputs and targets to --output instead.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many corrupted passages.")] = 0,
    suggest_terms: Annotated[
        bool, typer.Option("--suggest-terms", help="Propose terms, to --output or standard output; prepare nothing.")
    ] = False,
    background: Annotated[
        Path | None, typer.Option(help="Text of no domain, to tell the domain's terms from, for --suggest-terms.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most terms that are proposed.")] = 200,
    unit: Annotated[
        UnitName | None, typer.Option(help="What a document is; by default a line in .txt, else the file.")
    ] = None,
    field: Annotated[str, typer.Option(help="The text's name in .jsonl and .csv.")] = "text",
    max_tokens: Annotated[int, typer.Option(min=8, help="The longest passage.")] = 256,
    context_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the passage before, put in front.")] = 0,
    keep_near_duplicates: Annotated[
        bool, typer.Option("--keep-near-duplicates", help="Train on near copies of test documents, too.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="By default one for each processor.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where what was made lies; may be deleted.")] = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Prepare a corpus for training, once; tell what is in it, and what its term list is worth.

    An interrupted call goes on where it stopped; a second one opens what is there. Train on --output, or on the
    corpus itself.

    Example: t5refine prepare demo/cardiology/texts.txt --terms demo/cardiology/terms.txt --base builtin:mt5-mini
    --output prepared --show 3
    """
    from t5refine_peft.cli.audit import audit_lines, passage_lines, summary_lines
    from t5refine_peft.corpus.audit import audit_prepared
    from t5refine_peft.corpus.glossary import Glossary
    from t5refine_peft.corpus.preparation import prepare_corpus
    from t5refine_peft.corpus.tokenization import Vocabulary
    from t5refine_peft.modeling.location import base_directory

    options.stay_offline(offline)
    if export is not None and output is None:
        raise typer.BadParameter("--export needs --output, a .jsonl file or a folder")
    read_as: dict[str, Any] = {"field": field, "unit": None if unit is None else unit.value}
    vocabulary = Vocabulary.load(base_directory(base))
    glossary = None if terms is None else Glossary.load(terms)
    if suggest_terms:
        _suggest(corpus, vocabulary, glossary, background, limit, output, as_json, read_as)
        return
    prepared = prepare_corpus(
        corpus,
        vocabulary=vocabulary,
        glossary=glossary,
        max_tokens=max_tokens,
        context_tokens=context_tokens,
        seed=seed,
        keep_near_duplicates=keep_near_duplicates,
        processes=processes or _processors(),
        cache_dir=cache_dir,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        **read_as,
    )
    for notice in prepared.summary.notices():
        print(notice, file=sys.stderr)
    audit = None
    if glossary is not None:
        audit = audit_prepared(prepared, corpus, glossary, vocabulary=vocabulary, **read_as)
    directory = prepared.directory
    if output is not None and export is None:
        prepared.save(output)
        directory = output
    examples: list[ShownPassage] = []
    if export is not None or show:
        examples = _examples(prepared, vocabulary, glossary, seed, show, output if export is not None else None)
    if as_json:
        told = {
            "directory": str(directory),
            "summary": asdict(prepared.summary),
            "audit": None if audit is None else asdict(audit),
            "examples": [asdict(example) for example in examples],
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    for line in (f"dataset: {directory}", *summary_lines(prepared.summary), *(audit_lines(audit) if audit else ())):
        print(line)
    for example in examples:
        for line in passage_lines(example):
            print(line)


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _suggest(
    corpus: list[Path],
    vocabulary: Vocabulary,
    glossary: Glossary | None,
    background: Path | None,
    limit: int,
    output: Path | None,
    as_json: bool,
    read_as: dict[str, Any],
) -> None:
    """A term list to edit: a term a line, on standard output or in a file that is not there yet."""
    from t5refine_peft.corpus.suggestions import suggest_terms
    from t5refine_peft.storage import atomic_file

    if output is not None and output.exists():
        raise RefineError(f"{output} is there already, and may be edited; choose another --output")
    found = suggest_terms(
        corpus, vocabulary=vocabulary, background=background, glossary=glossary, limit=limit, **read_as
    )
    if as_json:
        text = json.dumps([asdict(one) for one in found], ensure_ascii=False) + "\n"
    else:
        text = "".join(f"{one.text}\n" for one in found)
    if output is None:
        print(text, end="")
        return
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{len(found)} candidates, the most telling first, in {output}: strike out what is no term", file=sys.stderr)


def _examples(
    prepared: Prepared, vocabulary: Vocabulary, glossary: Glossary | None, seed: int, show: int, output: Path | None
) -> list[ShownPassage]:
    """Export all passages, where there is an `output`, and give the first ones of the training split to be shown."""
    from t5refine_peft.config import CorruptionConfig
    from t5refine_peft.corpus.collator import DataCollatorForTermCorruption
    from t5refine_peft.corpus.export import export_pairs, shown_passages

    weights = glossary.weights if glossary else None
    collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig(), seed=seed, term_weights=weights)
    if output is not None:
        pairs = export_pairs(prepared.splits, collator, output)
        print(f"{pairs.written:,} pairs of inputs and targets in {output}", file=sys.stderr)
        if pairs.left_out:
            print(
                f"{pairs.left_out:,} passages left out: their text spells <extra_id_N> itself, which a file of pairs "
                "can't tell from a masked span; train on the corpus itself",
                file=sys.stderr,
            )
    return shown_passages(prepared.splits["train"], collator, count=show)
