"""The demo domains' documents: generated, the same for everyone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from t5refine_peft.demo.generator import Subject

DOMAINS = ("cardiology", "contract_law")

TRAIN_DOCUMENTS = 1200
VALIDATION_DOCUMENTS = 60
TEST_DOCUMENTS = 150

_SEED = 0


def load_domain(name: str) -> Subject:
    """The facts of a demo domain."""
    return Subject.load(Path(str(files("t5refine_peft"))) / "demo" / "facts" / f"{name}.toml")


def training_documents(domain: Subject) -> list[str]:
    """Documents to train on."""
    return list(domain.documents(TRAIN_DOCUMENTS, split="train", seed=_SEED))


def validation_documents(domain: Subject) -> list[str]:
    """Documents in the training wordings, for choosing the best checkpoint."""
    return list(domain.documents(VALIDATION_DOCUMENTS, split="train", seed=_SEED + 1))


def held_out_documents(domain: Subject) -> list[str]:
    """Documents in wordings that training never shows."""
    return list(domain.documents(TEST_DOCUMENTS, split="test", seed=_SEED))
