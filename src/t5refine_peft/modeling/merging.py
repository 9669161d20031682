"""An adapter merged into its base: a model of its own, in bf16, with what the rounding changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.identity import identify
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.modeling.lora import load_adapted
from t5refine_peft.modeling.precision import Precision
from t5refine_peft.modeling.probe import TEXTS, Question, ask, log_probabilities
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.registry.card import adapter_fingerprint
from t5refine_peft.registry.files import CARD_FILE
from t5refine_peft.storage import atomic_directory, free_path

_TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a model's beliefs lie from those of base and adapter computed in fp32.

    At each place of the probe's answers the total variation distance between the two distributions over the vocabulary
    is taken: the share of probability, from 0 to 1, that lies elsewhere.
    """

    mean: float
    largest: float
    agreement: float
    """Share of places where the most probable token is the same."""
    places: int


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merged model that was written."""

    path: Path
    drift: Drift
    """Of the merged model, read back from its files."""
    unmerged_drift: Drift
    """Of the adapter on the base in bf16, as it is used otherwise: the yardstick."""


def merge_adapter(
    registry: AdapterRegistry,
    name: str,
    *,
    output: str | Path,
    base: str | Path | None = None,
    device: str | None = None,
    texts: Sequence[str] = TEXTS,
) -> Merge:
    """Merge an adapter into its base and write a model directory that any T5 program reads, and so does `load_base`.

    The sum is taken in fp32 and rounded once to bf16. A quantised base is never merged into: rounding the sum to 4 bits
    would change the answers.

    Args:
        registry: where the adapter lies.
        name: the adapter.
        output: the directory to write, which must not be there yet.
        base: the adapter's base; None takes the one in its card.
        device: `cpu`, `cuda`; None takes the GPU where there is one.
        texts: what the drift is measured on.

    Raises:
        RefineError: the adapter does not fit the base, or `output` is there already or can't be written.
    """
    target = free_path(output)
    registry.layout(name)  # a broken adapter is told before gigabytes are read
    source = base if base is not None else registry.base_of(name)
    exact, model = _adapted(registry, name, source, device, "float32")
    questions = ask(model, exact, texts)
    if not questions:
        raise RefineError("the drift can't be measured: expected texts of at least ten tokens")
    reference = log_probabilities(model, exact, questions)
    with atomic_directory(target) as staged:
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise RefineError(f"the adapter {name!r} can't be merged: {error}; verify it") from None
        merged.to(torch.bfloat16).save_pretrained(staged)
        del merged, model
        for file in _TOKENIZER_FILES:
            if (base_directory(source) / file).is_file():
                shutil.copyfile(base_directory(source) / file, staged / file)
        written = load_base(staged, device=device, precision="bfloat16")
        drift = _drift(written.model, written, questions, reference)
        del written
        unmerged, adapted = _adapted(registry, name, source, device, "bfloat16")
        yardstick = _drift(adapted, unmerged, questions, reference)
        card = {
            "base": str(source),
            "base_fingerprint": exact.fingerprint,
            "tokenizer_fingerprint": exact.vocabulary.fingerprint,
            "adapter": name,
            "adapter_fingerprint": adapter_fingerprint(registry.find(name)),
            "drift": asdict(drift),
            "unmerged_drift": asdict(yardstick),
        }
        (staged / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Merge(path=target, drift=drift, unmerged_drift=yardstick)


def _adapted(
    registry: AdapterRegistry, name: str, source: str | Path, device: str | None, precision: Precision
) -> tuple[Base, PeftModel]:
    base = load_base(source, device=device, precision=precision)
    registry.check(name, identify(base))
    return base, load_adapted(base.model, registry.find(name)).eval()


def _drift(
    model: PreTrainedModel, base: Base, questions: Sequence[Question], reference: Sequence[torch.Tensor]
) -> Drift:
    distances, agreed = [], []
    for known, found in zip(reference, log_probabilities(model, base, questions), strict=True):
        distances.append((known.exp() - found.exp()).abs().sum(-1) / 2)
        agreed.append(known.argmax(-1) == found.argmax(-1))
    distance, same = torch.cat(distances), torch.cat(agreed)
    return Drift(
        mean=float(distance.mean()),
        largest=float(distance.max()),
        agreement=float(same.float().mean()),
        places=len(distance),
    )
