"""How much memory training takes, by arithmetic from the shape alone, and what fits in a given amount.

What is counted is the peak of a step: weights, adapter with gradients and optimiser state (paged memory too), what
the blocks keep for their gradients, the block whose gradient is being computed, its dequantised matrix, the loss, what
PyTorch's allocator reserves beyond that, and the GPU's context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from t5refine_peft.config import AdapterConfig, Quantization, StorageFormat
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.activations import Activations, Batch
from t5refine_peft.modeling.loss import TILE_BYTES_CPU, TILE_BYTES_GPU
from t5refine_peft.modeling.matrices import NF4_BLOCK, NF4_GROUP
from t5refine_peft.modeling.placement import Place, Placement
from t5refine_peft.modeling.precision import Precision
from t5refine_peft.modeling.shapes import Shape, read_shape

Device = Literal["cuda", "cpu"]

GPU_CONTEXT_BYTES = 400 << 20
"""What CUDA and its kernels take before the first tensor (measured by others at 300 to 500 MiB)."""
_RESERVED_SHARE = 0.03
"""Of PyTorch's memory, reserved and not used: its segments are of 2 and 20 MiB. Not measured yet."""
_SCHEMES = (
    Quantization.none(),
    Quantization.int8(),
    Quantization.nf4(),
    Quantization.nf4(head="nf4"),
)
"""From the least to the most lossy."""
_EIGHT_BIT_NUMBERS = 4096
"""bitsandbytes keeps the state of smaller matrices in fp32."""
_EIGHT_BIT_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What training takes with these settings, in bytes by part, and whether it fits."""

    base: str
    device: Device
    budget_bytes: int
    quantization: Quantization
    precision: Precision
    batch: int
    """Passages of full length that are in memory at once."""
    input_tokens: int
    """Of a passage of full length."""
    label_tokens: int
    checkpointed_blocks: int
    """So many blocks are computed again for the gradient, the encoder's first."""
    blocks: int
    """Of encoder and decoder."""
    parts: Mapping[str, int]
    """Bytes by part; checkpoints are all that the blocks keep for their gradients, and the live layer what the gradient
    of one takes beside that. The loss is computed before any of them, so that of the two the larger counts."""
    host_bytes: int
    """Of weights that stay in the host's memory."""
    advice: str | None = None
    """Why it does not fit, and what would."""

    @property
    def total_bytes(self) -> int:
        """The peak."""
        gradient = self.parts["live_layer_bytes"] + self.parts["dequantization_bytes"]
        loss = self.parts["loss_bytes"]
        return sum(self.parts.values()) - min(gradient, loss)

    @property
    def fits(self) -> bool:
        """Whether the peak lies within the budget."""
        return self.total_bytes <= self.budget_bytes

    @property
    def micro_batch_tokens(self) -> int:
        """Input and label tokens that may be in memory at once."""
        return self.batch * (self.input_tokens + self.label_tokens)


def plan_memory(
    base: str | Path | Shape,
    budget_bytes: int,
    *,
    quantization: Quantization | None = None,
    batch: int | None = None,
    max_batch: int = 16,
    input_tokens: int = 512,
    label_tokens: int = 256,
    adapter: AdapterConfig | None = None,
    precision: Precision = "bfloat16",
    device: Device = "cuda",
) -> MemoryPlan:
    """Choose settings that fit, or plan the ones that are named; no weights are read.

    Of what is not named it takes the least lossy quantisation at which one passage of full length fits (or `batch`),
    then as many passages at once as fit, then as few recomputed blocks.

    >>> plan = plan_memory("google/mt5-xl", 6 * 10**9)
    >>> plan.fits, plan.quantization.linear
    (True, 'int8')

    Args:
        base: a directory with config.json, the file itself, a hub id, `builtin:mt5-mini`, or a shape.
        budget_bytes: what the whole process may take on the device.
        quantization: how the frozen base is stored; None chooses.
        batch: passages of full length at once; None chooses.
        max_batch: at most so many are chosen.
        input_tokens: of a passage of full length.
        label_tokens: of the same.
        adapter: its rank and dropout; None is the default.
        precision: of unquantised weights and of computing.
        device: `cuda` or `cpu`.

    Returns:
        The plan. Where nothing fits: the leanest that was allowed, with advice.

    Raises:
        RefineError: no such base, or a budget, batch or length that is not above 0.
    """
    for name, value in {
        "budget_bytes": budget_bytes,
        "batch": 1 if batch is None else batch,
        "max_batch": max_batch,
        "input_tokens": input_tokens,
        "label_tokens": label_tokens,
    }.items():
        if value < 1:
            raise RefineError(f"{name} must be above 0, found {value}")
    shape = base if isinstance(base, Shape) else read_shape(base)
    planner = _Planner(shape, budget_bytes, adapter or AdapterConfig(), precision, device)
    wanted = Batch(passages=batch or 1, input_tokens=input_tokens, label_tokens=label_tokens)
    schemes = _SCHEMES if quantization is None else (quantization,)
    for scheme in schemes:
        if planner.plan(scheme, wanted).fits:
            passages = batch or planner.most_passages(scheme, wanted, max_batch)
            return planner.fewest_recomputed(scheme, replace(wanted, passages=passages))
    leanest = planner.plan(schemes[-1], wanted)
    return replace(leanest, advice=planner.advice(leanest, wanted))


@dataclass(frozen=True)
class _Planner:
    """Plans of one base within one budget."""

    shape: Shape
    budget_bytes: int
    adapter: AdapterConfig
    precision: Precision
    device: Device

    @property
    def blocks(self) -> int:
        return self.shape.encoder_blocks + self.shape.decoder_blocks

    def plan(self, scheme: Quantization, batch: Batch, checkpointed_blocks: int | None = None) -> MemoryPlan:
        """What these settings take; None recomputes all blocks."""
        recomputed = self.blocks if checkpointed_blocks is None else checkpointed_blocks
        weights, host_bytes = self._weights(scheme)
        parts = {**weights, **self._trained(), **self._step(scheme, batch, recomputed)}
        plan = MemoryPlan(
            base=self.shape.name,
            device=self.device,
            budget_bytes=self.budget_bytes,
            quantization=scheme,
            precision=self.precision,
            batch=batch.passages,
            input_tokens=batch.input_tokens,
            label_tokens=batch.label_tokens,
            checkpointed_blocks=recomputed,
            blocks=self.blocks,
            parts=parts,
            host_bytes=host_bytes,
        )
        if self.device == "cpu":
            return plan
        beside = {"reserved_bytes": int(_RESERVED_SHARE * plan.total_bytes), "context_bytes": GPU_CONTEXT_BYTES}
        return replace(plan, parts={**parts, **beside})

    def most_passages(self, scheme: Quantization, wanted: Batch, limit: int) -> int:
        """The largest number of passages that fits."""
        fitting = (n for n in range(limit, 1, -1) if self.plan(scheme, replace(wanted, passages=n)).fits)
        return next(fitting, 1)

    def fewest_recomputed(self, scheme: Quantization, batch: Batch) -> MemoryPlan:
        """The plan with the fewest recomputed blocks that fits; one with all of them does."""
        plans = (self.plan(scheme, batch, count) for count in range(self.blocks))
        return next((plan for plan in plans if plan.fits), self.plan(scheme, batch))

    def advice(self, plan: MemoryPlan, wanted: Batch) -> str:
        """Why `plan` does not fit, and what would."""
        needed = (
            f"{self.shape.name} needs {_gib(plan.total_bytes)} for {wanted.passages} x {wanted.input_tokens} -> "
            f"{wanted.label_tokens} tokens with {describe(plan.quantization)}, and {_gib(self.budget_bytes)} are given"
        )
        return f"{needed}; {', or '.join(self._ways(plan.quantization, wanted))}"

    def _ways(self, scheme: Quantization, wanted: Batch) -> list[str]:
        """What would fit: as little changed as can be."""
        one = replace(wanted, passages=1)
        ways = []
        if storing := self._least_lossy(wanted):
            ways.append(f"store the base as {describe(storing)}")
        if wanted.passages > 1 and self.plan(scheme, one).fits:
            ways.append(_at_once(self.most_passages(scheme, one, wanted.passages)))
        if ways:
            return ways
        if storing := self._least_lossy(one):
            passages = self.most_passages(storing, one, wanted.passages)
            return [f"store the base as {describe(storing)} and {_at_once(passages)}"]
        leanest = _SCHEMES[-1]
        store = "" if scheme == leanest else f"store the base as {describe(leanest)} and "
        for part in (2, 4, 8):
            inputs, labels = one.input_tokens // part, max(1, one.label_tokens // part)
            if inputs >= 32 and self.plan(leanest, replace(one, input_tokens=inputs, label_tokens=labels)).fits:
                return [f"{store}take passages of {inputs} tokens{', one at a time' if wanted.passages > 1 else ''}"]
        return [f"{store}give {_gib(self.plan(leanest, one).total_bytes)}", "take a smaller base"]

    def _least_lossy(self, batch: Batch) -> Quantization | None:
        """The least lossy scheme in which `batch` fits, if any."""
        return next((scheme for scheme in _SCHEMES if self.plan(scheme, batch).fits), None)

    def _weights(self, scheme: Quantization) -> tuple[dict[str, int], int]:
        """Bytes on the device by kind of weight, and those on the host."""
        shape = self.shape
        device = torch.device(self.device)
        places = Placement(quantization=scheme, precision=self.precision, device=device)
        vocabulary = (shape.rows, shape.width)
        linear, head, embedding = places.of("linear"), places.of("head"), places.of("embedding")
        sizes = {
            "linear_bytes": sum(_matrix_bytes(*matrix, linear) for matrix in shape.matrices()),
            "head_bytes": 0 if shape.tied and head == embedding else _matrix_bytes(*vocabulary, head),
            "embedding_bytes": _matrix_bytes(*vocabulary, embedding) if embedding.device == device else 0,
            "norm_and_bias_bytes": shape.norm_weights * places.of("norm").dtype.itemsize
            + shape.bias_tables * shape.buckets * shape.heads * places.of("position_bias").dtype.itemsize,
        }
        on_host = 0 if embedding.device == device else _matrix_bytes(*vocabulary, embedding)
        return sizes, on_host

    def _trained(self) -> dict[str, int]:
        """The adapter in fp32, its gradients, and AdamW's two states: 8-bit and paged on a GPU, fp32 elsewhere."""
        rank = self.adapter.rank
        sizes = [rank * width for matrix in self.shape.matrices() for width in matrix]
        numbers = sum(sizes)
        state = sum(map(_eight_bit_state_bytes, sizes)) if self.device == "cuda" else 8 * numbers
        return {"adapter_bytes": 4 * numbers, "gradient_bytes": 4 * numbers, "optimizer_bytes": state}

    def _step(self, scheme: Quantization, batch: Batch, recomputed: int) -> dict[str, int]:
        """What forward and backward hold at their peaks."""
        number_bytes: int = getattr(torch, self.precision).itemsize
        activations = Activations(self.shape, self.adapter, batch, number_bytes, self.device == "cuda")
        encoder, decoder = activations.block(decoder=False), activations.block(decoder=True)
        kept = highest = 0
        for number in range(self.blocks):
            block = decoder if number >= self.shape.encoder_blocks else encoder
            highest = max(highest, kept + block.peak)  # its gradient is computed when all behind it are gone
            kept += block.input if number < recomputed else block.kept
        largest = max(rows * width for rows, width in self.shape.matrices())
        states = activations.labels * self.shape.width
        tile = TILE_BYTES_GPU if self.device == "cuda" else TILE_BYTES_CPU
        return {
            "shared_bytes": activations.shared_bytes,
            "checkpoint_bytes": kept,
            "live_layer_bytes": highest - kept,
            "dequantization_bytes": largest * number_bytes if scheme.linear != "none" else 0,
            # Beside a tile the accumulated gradient, the labels' rows and the states.
            "loss_bytes": tile + states * (4 + 2 * number_bytes),
        }


def _matrix_bytes(rows: int, width: int, place: Place) -> int:
    """Of one stored matrix; see `matrices`."""
    numbers = rows * width
    storage: StorageFormat = place.storage
    if storage == "int8":
        return numbers + 4 * rows
    if storage == "nf4":
        blocks = -(-numbers // NF4_BLOCK)
        return -(-numbers // 2) + blocks + 4 * -(-blocks // NF4_GROUP) + 4 * 256 + 4
    return numbers * place.dtype.itemsize


def _eight_bit_state_bytes(numbers: int) -> int:
    """Of bitsandbytes' 8-bit AdamW: two bytes a number and two scales a block; fp32 for small matrices."""
    if numbers < _EIGHT_BIT_NUMBERS:
        return 8 * numbers
    return 2 * numbers + 2 * 4 * -(-numbers // _EIGHT_BIT_BLOCK)


def describe(quantization: Quantization) -> str:
    """A scheme in words."""
    if not quantization.quantized:
        return "no quantisation"
    return f"{quantization.linear} layers, {quantization.head} head and {quantization.embedding} embedding".replace(
        "none", "unquantised"
    )


def _at_once(passages: int) -> str:
    return f"take {passages} passages at once" if passages > 1 else "take one passage at a time"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
