"""What a user can choose, as frozen dataclasses. Every default names its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t5refine_peft.errors import RefineError


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How a passage is masked."""

    mask_share: float = 0.2
    """Share of a passage's tokens that is masked. T5 takes 0.15 (Raffel et al. 2020); terms come out of it first."""
    mean_span_tokens: float = 3.0
    """Mean length of a random span, in tokens (Raffel et al. 2020)."""
    term_probability: float = 0.5
    """Chance of each occurrence of a term to be masked; the rest of the budget goes to random spans, since masking
    terms alone does worse on general text (SpanBERT, Joshi et al. 2020)."""
    all_occurrences: float = 0.5
    """Share of passages in which a masked term is masked wherever it stands, so that it can't be copied."""
    random_only: float = 0.2
    """Share of passages that get T5's own random spans and no term masking."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must lie between 0 and 1, found {getattr(self, name)}"
            for name in ("term_probability", "all_occurrences", "random_only")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 < self.mask_share < 1:
            faults.append(f"mask_share must lie between 0 and 1 and be neither, found {self.mask_share}")
        if self.mean_span_tokens < 1:
            faults.append(f"mean_span_tokens must be at least 1, found {self.mean_span_tokens}")
        if faults:
            raise RefineError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The low-rank adapter: rank-stabilised LoRA (Kalajdzievski 2023) on all linear layers but the head."""

    rank: int = 16
    """Rank of each update. Its parameters grow in proportion."""
    alpha: float = 16.0
    """Scale: the update is multiplied by alpha / sqrt(rank)."""
    dropout: float = 0.05
    """Dropout on the adapter's input (QLoRA's value for small models, Dettmers et al. 2023)."""

    def __post_init__(self) -> None:
        faults = []
        if self.rank < 1:
            faults.append(f"rank must be at least 1, found {self.rank}")
        if self.alpha <= 0:
            faults.append(f"alpha must be above 0, found {self.alpha}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout must be at least 0 and below 1, found {self.dropout}")
        if faults:
            raise RefineError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an adapter is trained."""

    adapter: AdapterConfig = AdapterConfig()
    corruption: CorruptionConfig = CorruptionConfig()
    learning_rate: float = 1e-3
    """Peak rate of AdamW. LoRA on all linear layers wants about ten times full fine-tuning's (Biderman et al. 2024)."""
    epochs: float = 5.0
    """Passes over the corpus."""
    max_steps: int | None = None
    """Steps; instead of epochs where given."""
    batch: int = 16
    """Passages in a step, over all micro-batches."""
    micro_batch: int | None = None
    """Passages in memory at once; None takes the whole batch. It divides `batch`."""
    warmup_share: float = 0.1
    """Share of the steps in which the rate rises; it falls linearly afterwards."""
    max_gradient_norm: float = 1.0
    """Gradients are clipped to this norm (Hugging Face's default)."""
    eval_steps: int | None = None
    """Steps between evaluations on the validation split; None makes about ten in a run."""
    save_steps: int | None = None
    """Steps between checkpoints; None writes one at each evaluation, and so does any other value besides."""
    metric: Literal["loss", "term_exact_match"] = "loss"
    """What is judged on the validation split: it chooses the best checkpoint and stops the run."""
    patience: int = 5
    """Evaluations without betterment after which it is looked whether to stop; see `DelayedEarlyStoppingCallback`."""
    start_step: float = 0.3
    """Share of the run (below 1) or step (1 and above) before which it never stops early."""
    threshold: float = 0.001
    """By how much the metric must better the best to count."""
    relative_threshold: bool = False
    """Take `threshold` as a share of the best."""
    window: int = 3
    """Further evaluations over which the trend must be flat, too."""
    report_to: tuple[str, ...] = ()
    """Hugging Face's names of trackers, `tensorboard` say; none gets anything otherwise."""
    max_passage_tokens: int = 256
    """Longest passage."""
    validation_share: float = 0.1
    """Share of documents that choose the best checkpoint."""
    test_share: float = 0.1
    """Share of documents that base and adapter are scored on."""
    evaluation_passages: int = 500
    """At most so many passages of the test split, and of the validation split, are used."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base and of computing; `auto` is bf16 where the hardware has it."""
    device: str | None = None
    """`cpu`, `cuda`; None takes the GPU where there is one."""
    seed: int = 0
    """Of the split, the masks, the order and the adapter's first values."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be above 0, found {getattr(self, name)}"
            for name in ("learning_rate", "epochs", "batch", "max_passage_tokens", "patience", "evaluation_passages")
            if getattr(self, name) <= 0
        ]
        faults += [
            f"{name} must lie between 0 and 1, found {getattr(self, name)}"
            for name in ("warmup_share", "validation_share", "test_share")
            if not 0 <= getattr(self, name) < 1
        ]
        faults += [
            f"{name} must be at least 0, found {getattr(self, name)}"
            for name in ("start_step", "threshold", "window")
            if getattr(self, name) < 0
        ]
        for name in ("max_steps", "eval_steps", "save_steps", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append(f"{name} must be at least 1, found {value}")
        if self.micro_batch and self.batch % self.micro_batch:
            faults.append(f"micro_batch must divide batch, found {self.micro_batch} and {self.batch}")
        if self.validation_share == 0 or self.test_share == 0 or self.validation_share + self.test_share >= 1:
            faults.append("validation_share and test_share must be above 0 and leave something for training")
        if faults:
            raise RefineError("; ".join(faults))
