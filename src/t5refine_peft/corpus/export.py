"""Examples as text: pairs of inputs and targets as the predecessors' scripts read them, and passages for the eye."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets

from t5refine_peft.corpus.collator import CorruptionDataset, CorruptionItem, DataCollatorForTermCorruption
from t5refine_peft.corpus.corruption import Example
from t5refine_peft.corpus.documents import SPLITS, Split
from t5refine_peft.corpus.pairs import SENTINEL
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_file

_PASSAGES_AT_ONCE = 256
_FILES: Mapping[Split, str] = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}


def pair_of_texts(example: Example, vocabulary: Vocabulary) -> dict[str, str]:
    """An example as `inputs` and `targets`, with `<extra_id_0>` and so on for its sentinels.

    A space stands before each sentinel that does not begin the text: SentencePiece finds a sentinel behind a space
    only, and drops the space.
    """
    texts = {}
    for name, ids in (("inputs", example.input_ids[:-1]), ("targets", example.labels[:-1])):
        numbers = {token: number for number, token in enumerate(vocabulary.sentinel_ids)}
        parts = [""]
        start = 0
        for at, token in enumerate([*ids.tolist(), None]):
            if token is None or token in numbers:
                parts[-1] += vocabulary.decode(ids[start:at])
                start = at + 1
                if token is not None:
                    parts.append(f"<extra_id_{numbers[token]}>")
        texts[name] = " ".join(part for part in parts if part).removeprefix(" ")
    return texts


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export, in pairs."""

    written: int
    left_out: int
    """Their text spells a sentinel itself, which as text can't be told from a masked span's."""


def export_pairs(splits: datasets.DatasetDict, collator: DataCollatorForTermCorruption, output: Path) -> Exported:
    """Write each passage once, with masks that are drawn once and for all, as JSONL of `inputs` and `targets`.

    Args:
        splits: of `prepare_dataset`.
        collator: gives vocabulary, recipe and seed.
        output: a file that ends in `.jsonl` takes all splits, one after the other; any other name is a folder, for
            `train.jsonl`, `valid.jsonl` and `test.jsonl`.

    Raises:
        RefineError: the place can't be written to.
    """
    whole = output.suffix.lower() == ".jsonl"
    try:
        (output.parent if whole else output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefineError(f"{output} can't be written: {error.strerror}; choose another --output") from None
    written = left_out = 0
    for path, names in [(output, SPLITS)] if whole else [(output / _FILES[split], (split,)) for split in SPLITS]:
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for name in names:
                for item in _items(splits[name]):
                    example = collator.example(item)
                    pair = pair_of_texts(example, collator.vocabulary)
                    if any(len(SENTINEL.findall(text)) > len(example.spans) for text in pair.values()):
                        left_out += 1
                        continue
                    stream.write(json.dumps(pair, ensure_ascii=False) + "\n")
                    written += 1
    return Exported(written=written, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class ShownPassage:
    """A corrupted passage for the eye."""

    document: str
    """Where it is from."""
    text: str
    """See `marked_passage`."""
    terms: tuple[str, ...]
    """Those that were found in it, in order."""
    tokens: int
    masked_tokens: int
    inputs: str
    targets: str


def shown_passages(
    rows: datasets.Dataset, collator: DataCollatorForTermCorruption, *, count: int
) -> list[ShownPassage]:
    """The first `count` passages of a split, corrupted as in an evaluation."""
    rows = rows.select(range(min(count, len(rows))))
    found = []
    for item, document in zip(_items(rows), rows["document"], strict=True):
        example = collator.example(item)
        found.append(
            ShownPassage(
                document=document,
                text=marked_passage(item, example, collator.vocabulary),
                terms=tuple(
                    collator.vocabulary.decode(item.ids[start:end]).strip() for start, end, *_ in item.term_spans
                ),
                tokens=len(item.ids),
                masked_tokens=sum(end - start for start, end in example.spans),
                **pair_of_texts(example, collator.vocabulary),
            )
        )
    return found


def marked_passage(item: CorruptionItem, example: Example, vocabulary: Vocabulary) -> str:
    """A passage's text with `[...]` around what is masked and `*...*` around terms."""
    opening: dict[int, str] = {}
    closing: dict[int, str] = {}
    for spans, marks in ((example.spans, "[]"), (item.term_spans, "**")):
        for start, end, *_ in spans:
            opening[start] = opening.get(start, "") + marks[0]
            closing[end] = marks[1] + closing.get(end, "")
    text = ""
    borders = sorted({0, len(item.ids), *opening, *closing})
    for at, border in enumerate(borders):
        text += closing.get(border, "")
        part = vocabulary.decode(item.ids[border : borders[at + 1]]) if at + 1 < len(borders) else ""
        blanks = len(part) - len(part.lstrip(" "))
        text += part[:blanks] + opening.get(border, "") + part[blanks:]
    return text.strip()


def _items(rows: datasets.Dataset) -> Iterator[CorruptionItem]:
    dataset = CorruptionDataset(rows, fresh=False)
    for at in range(0, len(dataset), _PASSAGES_AT_ONCE):
        yield from dataset.__getitems__(range(at, min(len(dataset), at + _PASSAGES_AT_ONCE)))
