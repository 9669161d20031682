"""What a user can choose, as frozen dataclasses. Every default names its source.

The names, the defaults and the words below each field are also those of the configuration file: see `config_file`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from t5refine_peft.errors import ConfigError, RefineError


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How a passage is masked."""

    mask_share: float | tuple[float, float] = (0.15, 0.2)
    """Share of a passage's tokens that is masked, at most; of a pair, each passage draws its share evenly between the
    two. T5 takes 0.15 (Raffel et al. 2020), T5-Refiner-DomainFocus up to 0.2. Terms come out of it first."""
    mean_span_tokens: float = 3.0
    """Mean length of a random span, in tokens (Raffel et al. 2020)."""
    max_span_tokens: int = 24
    """Longest random span and longest term that is masked: the longest answer that restoration decodes."""
    term_probability: float = 0.5
    """Chance of a term to be masked; the rest of the budget goes to random spans, since masking terms alone does worse
    on general text (SpanBERT, Joshi et al. 2020) and better in the domain (Golchin et al. 2023)."""
    all_occurrences: float = 0.5
    """Share of passages in which a masked term is masked wherever it stands, so that it can't be copied; in the others
    each occurrence is drawn by itself. 15 to 57% of a domain's occurrences have a copy in their paragraph."""
    random_only: float = 0.0
    """Share of passages that get T5's own random spans and no term masking. None: with a fifth of them fewer terms were
    restored, and no more of general text (benchmarks/results/quality.md)."""
    touching: Literal["apart", "joined"] = "apart"
    """`apart`: terms that stand side by side get a sentinel each, and random spans leave a visible token between
    themselves and others, as T5's do. `joined`: spans that touch become one, as T5-Refiner-DomainFocus has it. Terms
    that share a piece are one span either way."""
    noise: float = 0.0
    """Share of the visible characters that are dropped, swapped or confused as by OCR, for texts that are damaged
    outside their gaps too; none by default, as in T5."""
    max_label_tokens: int = 256
    """Longest target, sentinels and end mark counted (T5-Refiner-DomainFocus's); masking stops before it, so that no
    example is ever cut."""

    def __post_init__(self) -> None:
        faults = [
            (name, f"must lie between 0 and 1, found {getattr(self, name)}")
            for name in ("term_probability", "all_occurrences", "random_only", "noise")
            if not 0 <= getattr(self, name) <= 1
        ]
        shares = self.mask_share if isinstance(self.mask_share, tuple) else (self.mask_share,)
        if not 0 < min(shares) <= max(shares) < 1:
            faults.append(("mask_share", f"must lie between 0 and 1 and be neither, found {self.mask_share}"))
        elif len(shares) > 2 or list(shares) != sorted(shares):
            faults.append(("mask_share", f"must be one share or the least and the most, found {self.mask_share}"))
        if self.mean_span_tokens < 1:
            faults.append(("mean_span_tokens", f"must be at least 1, found {self.mean_span_tokens}"))
        if self.max_span_tokens < 1:
            faults.append(("max_span_tokens", f"must be at least 1, found {self.max_span_tokens}"))
        if self.touching not in {"apart", "joined"}:
            faults.append(("touching", f"must be 'apart' or 'joined', found {self.touching!r}"))
        if self.max_label_tokens < 3:  # a sentinel, a token, the end mark
            faults.append(("max_label_tokens", f"must be at least 3, found {self.max_label_tokens}"))
        if faults:
            raise ConfigError(faults)


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
            faults.append(("rank", f"must be at least 1, found {self.rank}"))
        if self.alpha <= 0:
            faults.append(("alpha", f"must be above 0, found {self.alpha}"))
        if not 0 <= self.dropout < 1:
            faults.append(("dropout", f"must be at least 0 and below 1, found {self.dropout}"))
        if faults:
            raise ConfigError(faults)


DEVICE_NAME = re.compile(r"cpu|cuda(:\d+)?")
"""What a device is called."""
StorageFormat = Literal["none", "int8", "nf4"]
"""How a matrix is stored: as numbers of the base's precision, as int8 with a scale a row, or as NF4."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a frozen base is stored. Take a named constructor; each part can be chosen in it.

    Norms and position biases, a thousandth of the weights, are never quantised.
    """

    linear: StorageFormat = "none"
    """Attention's and the feed-forward's matrices, `wo` included."""
    head: StorageFormat = "none"
    """The matrix that gives the logits."""
    embedding: StorageFormat = "none"
    """The matrix that the tokens are looked up in. Unquantised beside quantised layers on a GPU, it lies in the host's
    memory, unless `load_base` is told otherwise."""

    def __post_init__(self) -> None:
        faults = [
            (part, f"must be stored as one of none, int8, nf4, found {value!r}")
            for part, value in (("linear", self.linear), ("head", self.head), ("embedding", self.embedding))
            if value not in get_args(StorageFormat)
        ]
        if faults:
            raise ConfigError(faults)

    @property
    def quantized(self) -> bool:
        """Whether any part is quantised."""
        return (self.linear, self.head, self.embedding) != ("none", "none", "none")

    @classmethod
    def none(cls) -> Quantization:
        """Every weight in the base's precision."""
        return cls()

    @classmethod
    def int8(cls, *, head: StorageFormat = "int8", embedding: StorageFormat = "none") -> Quantization:
        """A byte a weight and a scale a row; activations are not quantised."""
        return cls(linear="int8", head=head, embedding=embedding)

    @classmethod
    def nf4(cls, *, head: StorageFormat = "int8", embedding: StorageFormat = "none") -> Quantization:
        """4 bits a weight (NF4 with double quantisation, Dettmers et al. 2023), the head in int8.

        The defaults are the measured ones of benchmarks/bench_quantization.py.
        """
        return cls(linear="nf4", head=head, embedding=embedding)

    @classmethod
    def named(cls, name: str) -> Quantization:
        """The scheme of the command line's `--quantization`.

        Raises:
            RefineError: no such scheme.
        """
        if name not in get_args(StorageFormat):
            raise RefineError(f"no quantization {name!r}: expected none, int8 or nf4")
        schemes = {"none": cls.none, "int8": cls.int8, "nf4": cls.nf4}
        return schemes[name]()


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
    memory_bytes: int | None = None
    """What training may take of the device's memory; None is what a GPU has free, and no plan on a CPU. The plan of
    `plan_memory` chooses the quantization that is not given, cuts each batch into micro-batches, and recomputes as many
    blocks as it must."""
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
    """Longest input: passage, its context and the end mark."""
    context_tokens: int = 0
    """So many tokens of the text before are put in front of a passage, visible. None by default: a restored text may
    lack them too (T5-Refiner-DomainFocus puts up to 40 characters)."""
    validation_share: float = 0.1
    """Share of documents that choose the best checkpoint."""
    test_share: float = 0.1
    """Share of documents that base and adapter are scored on."""
    evaluation_passages: int = 500
    """At most so many passages of the test split, and of the validation split, are used."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base and of computing; `auto` is bf16 where the hardware has it."""
    quantization: Quantization | None = None
    """How the frozen base is stored, where `train_adapter` loads it; None takes it as it is."""
    device: str | None = None
    """`cpu`, `cuda`; None takes the GPU where there is one."""
    seed: int = 0
    """Of the split, the masks, the order and the adapter's first values."""

    def __post_init__(self) -> None:
        faults = [
            (name, f"must be above 0, found {getattr(self, name)}")
            for name in ("learning_rate", "epochs", "batch", "max_passage_tokens", "patience", "evaluation_passages")
            if getattr(self, name) <= 0
        ]
        faults += [
            (name, f"must lie between 0 and 1, found {getattr(self, name)}")
            for name in ("warmup_share", "validation_share", "test_share")
            if not 0 <= getattr(self, name) < 1
        ]
        faults += [
            (name, f"must be at least 0, found {getattr(self, name)}")
            for name in ("start_step", "threshold", "window")
            if getattr(self, name) < 0
        ]
        for name in ("max_steps", "eval_steps", "save_steps", "micro_batch", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append((name, f"must be at least 1, found {value}"))
        if not 0 <= 2 * self.context_tokens < self.max_passage_tokens:
            fault = f"must be at least 0 and below half of max_passage_tokens, found {self.context_tokens}"
            faults.append(("context_tokens", fault))
        if self.micro_batch and self.batch % self.micro_batch:
            faults.append(("micro_batch", f"must divide batch, found {self.micro_batch} and {self.batch}"))
        if self.precision not in {"auto", "float32", "bfloat16"}:
            why = " (fp16 is not offered: T5's activations overflow it)" if "16" in str(self.precision) else ""
            faults.append(("precision", f"must be auto, float32 or bfloat16, found {self.precision!r}{why}"))
        if self.device is not None and not DEVICE_NAME.fullmatch(self.device):
            faults.append(("device", f"must be cpu, cuda or cuda:1, found {self.device!r}"))
        if self.metric not in {"loss", "term_exact_match"}:
            faults.append(("metric", f"must be loss or term_exact_match, found {self.metric!r}"))
        if self.validation_share == 0 or self.test_share == 0 or self.validation_share + self.test_share >= 1:
            faults.append(("validation_share", "and test_share must be above 0 and leave something for training"))
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole training run: what is trained on what, where it is written, and how."""

    corpus: tuple[Path, ...] = ()
    """Text files, folders of them, or the directory of `t5refine prepare`."""
    domain: str | None = None
    """The name of the adapter to make, a plain file name."""
    terms: Path | None = None
    """The domain's term list; without one, training is on random spans alone."""
    base: str = "google/mt5-base"
    """A model directory, a hub id, or builtin:mt5-mini."""
    adapters_dir: Path = Path("adapters")
    """Where adapters lie."""
    runs_dir: Path = Path("runs")
    """Where checkpoints lie while training; may be deleted afterwards."""
    rescue_dir: Path | None = None
    """Where the state in memory is saved when a checkpoint can't be written to runs_dir."""
    report_examples: bool = False
    """Show twenty test passages in the report; they are text of the documents."""
    training: TrainingConfig = TrainingConfig()

    def train_arguments(self) -> dict[str, Any]:
        """What `train_adapter` takes: `train_adapter(**run.train_arguments())`.

        Raises:
            RefineError: corpus or domain is missing.
        """
        missing = [name for name in ("corpus", "domain") if not getattr(self, name)]
        if missing:
            raise RefineError(f"the configuration lacks {' and '.join(missing)}: give what to train on, and a name")
        return {
            "corpus": list(self.corpus),
            "domain": self.domain,
            "glossary": self.terms,
            "base": self.base,
            "adapters_dir": self.adapters_dir,
            "runs_dir": self.runs_dir,
            "rescue_dir": self.rescue_dir,
            "report_examples": self.report_examples,
            "config": self.training,
        }
