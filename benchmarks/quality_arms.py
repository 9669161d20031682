"""The strategies that are compared, each said as what differs from the library's own defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from t5refine_peft import CorruptionConfig, TrainingConfig

FULL_RATE = 1e-3
"""Full fine-tuning's rate on the built-in base. The predecessors' 5e-5 is for mT5-base and tens of thousands of steps:
on 7 M parameters and some hundred steps it learns next to nothing (arm `full_5e-05`), which would make the comparison
too easy for ours."""
DEFAULTS = TrainingConfig()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A strategy of training."""

    name: str
    says: str
    """What it is, for the table."""
    untrained: Literal["base", "frequency"] | None = None
    parameters: Literal["lora", "lora-attention", "full"] = "lora"
    rank: int = DEFAULTS.adapter.rank
    learning_rate: float = DEFAULTS.learning_rate
    corruption: CorruptionConfig | Literal["predecessor"] = DEFAULTS.corruption
    fresh_masks: bool = True
    padding_in_loss: bool = False
    stopping: Literal["ours", "predecessor", "none"] = "ours"
    quantized: bool = False


def _arm(name: str, says: str, **changes: Any) -> Arm:
    return Arm(name=name, says=says, **changes)


def _corruption(name: str, says: str, **changes: float) -> Arm:
    return Arm(name=name, says=says, corruption=replace(DEFAULTS.corruption, **changes))


_PREDECESSOR: dict[str, Any] = {
    "corruption": "predecessor",
    "fresh_masks": False,
    "padding_in_loss": True,
    "stopping": "predecessor",
}

MAIN = (
    Arm(name="base", says="the base as it is", untrained="base"),
    Arm(name="frequency", says="most frequent filling between these words", untrained="frequency"),
    _corruption("random_spans", "LoRA, random spans only (T5)", random_only=1.0, mask_share=0.15),
    _arm(
        "predecessor", "predecessors: full, fixed masks, padding in the loss", **_PREDECESSOR,
        parameters="full", learning_rate=FULL_RATE,
    ),
    _arm(
        "predecessor_no_stop", "the same without their delayed stop", **{**_PREDECESSOR, "stopping": "none"},
        parameters="full", learning_rate=FULL_RATE,
    ),
    _arm("predecessor_lora", "predecessors' masks and loss, our LoRA", **_PREDECESSOR),
    _arm(
        "predecessor_lora_mended", "the same, padding out of the loss", **{**_PREDECESSOR, "padding_in_loss": False}
    ),
    _arm("ours", "ours"),
    _arm("full", "our corruption, full fine-tuning", parameters="full", learning_rate=FULL_RATE),
    _arm("nf4", "ours on an NF4 base", quantized=True),
)  # fmt: skip
"""Arms 1 to 5 and 7."""

ABLATION = (
    _arm("fixed_masks", "ours with masks drawn once", fresh_masks=False),
    _corruption("one_occurrence", "ours, each occurrence on its own", all_occurrences=0.0),
    _corruption("every_occurrence", "ours, always every occurrence", all_occurrences=1.0),
    _corruption("random_only_20", "ours, a fifth of the passages with random spans only", random_only=0.2),
    _corruption("random_only_50", "ours, half of the passages with random spans only", random_only=0.5),
    *(
        _corruption(f"term_probability_{round(100 * share)}", f"ours, term probability {share}", term_probability=share)
        for share in (0.3, 0.5, 0.7, 1.0)
        if share != DEFAULTS.corruption.term_probability
    ),
    *(
        _arm(f"rank_{rank}", f"ours, rank {rank}", rank=rank)
        for rank in (4, 8, 16, 32, 64)
        if rank != DEFAULTS.adapter.rank
    ),
    _arm(
        "full_5e-05",
        "our corruption, full fine-tuning at the predecessors' rate",
        parameters="full",
        learning_rate=5e-5,
    ),
    _arm("attention_only", "ours without the feed-forward's adapters", parameters="lora-attention"),
    *(
        _arm(f"learning_rate_{rate:.0e}", f"ours, learning rate {rate:g}", learning_rate=rate)
        for rate in (3e-4, 1e-3, 2e-3, 3e-3)
        if rate != DEFAULTS.learning_rate
    ),
)
"""Arm 6: ours without one part at a time."""

GROUPS = {"main": MAIN, "ablation": ABLATION, "all": (*MAIN, *ABLATION)}
ARMS = {arm.name: arm for arm in GROUPS["all"]}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What all trained arms share."""

    steps: int
    batch: int
    tokens: int
    """Longest passage."""
    evaluations: int = 20
    validation_passages: int = 200
    warmup_share: float = DEFAULTS.warmup_share
