"""The demo domains' documents: generated, the same for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.demo.generator import Subject
from t5refine_peft.storage import atomic_directory, free_path

DOMAINS = ("cardiology", "contract_law")

TRAIN_DOCUMENTS = 1200
VALIDATION_DOCUMENTS = 200
TEST_DOCUMENTS = 150
DAMAGED_DOCUMENTS = 20

_SEED = 0


def load_domain(name: str) -> Subject:
    """The facts of a demo domain."""
    return Subject.load(Path(str(files("t5refine_peft"))) / "demo" / "facts" / f"{name}.toml")


def training_documents(domain: Subject) -> list[str]:
    """Documents to train on."""
    return list(domain.documents(TRAIN_DOCUMENTS, split="train", seed=_SEED))


def validation_documents(domain: Subject) -> list[str]:
    """Documents in the test's wordings, none of them of the test, to choose the best checkpoint and fit the scores."""
    test = set(held_out_documents(domain))
    documents = domain.documents(VALIDATION_DOCUMENTS, split="test", seed=_SEED + 1)
    return [text for text in documents if text not in test]


def held_out_documents(domain: Subject) -> list[str]:
    """Documents in wordings that training never shows."""
    return list(domain.documents(TEST_DOCUMENTS, split="test", seed=_SEED))


def export_texts(directory: Path) -> None:
    """Write the demo's domains as the files that a user has of a domain of their own, a folder each.

    `texts.txt` holds the training documents, one a line, and `terms.txt` the terms; `damaged.txt` held-out documents,
    each with a term taken out, and `whole.txt` the same as they were.

    Raises:
        RefineError: `directory` is there already, or can't be written.
    """
    with atomic_directory(free_path(directory)) as staged:
        for name in DOMAINS:
            domain = load_domain(name)
            glossary = Glossary(domain.terms())
            whole = [text for text in held_out_documents(domain) if glossary.find(text)][:DAMAGED_DOCUMENTS]
            damaged = [with_gaps(text, [glossary.find(text)[0][:2]]) for text in whole]
            lines_of = {
                "texts.txt": training_documents(domain),
                "terms.txt": domain.terms(),
                "damaged.txt": damaged,
                "whole.txt": whole,
            }
            (staged / name).mkdir()
            for file, lines in lines_of.items():
                (staged / name / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def with_gaps(text: str, ranges: Sequence[tuple[int, int]]) -> str:
    """A text with `____` in place of each range of characters; ranges are in order and apart."""
    for start, end in reversed(ranges):
        text = text[:start] + "____" + text[end:]
    return text
