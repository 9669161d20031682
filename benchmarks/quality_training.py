"""One training loop for all arms, so that nothing differs between them but what an arm names.

Passages, their order, the number of steps and the schedule's shape are the same for all arms of a domain and seed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerControl, TrainerState

from predecessor import PredecessorCollator, count_padding
from quality_arms import Arm, Schedule
from quality_data import Domain
from t5refine_peft import AdapterConfig, CorruptionConfig, DataCollatorForTermCorruption, DelayedEarlyStoppingCallback
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.lora import add_adapter

Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model, and how it got there."""

    base: Base
    """With the trained model in the base's place."""
    steps: int
    best_step: int
    passages: int
    trained_parameters: int
    history: list[tuple[int, float]]
    """(step, validation loss) by the arm's own loss."""


def train(arm: Arm, base: Base, domain: Domain, schedule: Schedule, *, seed: int) -> Trained:
    """Train one arm on a copy of the base."""
    transformers.set_seed(seed)
    own = replace(base, model=copy.deepcopy(base.model))
    if arm.quantized:
        round_trip_nf4(own.model)
    model = _parameters(arm, own)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    collate = _collator(arm, own, schedule, seed)
    rows = CorruptionDataset(domain.splits["train"], fresh=arm.fresh_masks)
    validation_rows = domain.splits["validation"]
    validation = CorruptionDataset(
        validation_rows.select(range(min(len(validation_rows), schedule.validation_passages))), fresh=False
    )
    optimizer = torch.optim.AdamW(trained, lr=arm.learning_rate, weight_decay=0.0)
    rates = transformers.get_linear_schedule_with_warmup(
        optimizer, round(schedule.warmup_share * schedule.steps), schedule.steps
    )
    watch = _Watch(arm, schedule)
    every = max(1, schedule.steps // schedule.evaluations)
    step = 0
    for step, items in enumerate(itertools.islice(_batches(rows, schedule.batch, seed), schedule.steps), start=1):
        model.train()
        total, count = _loss(model, own, collate(items), arm)
        (total / count).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if step % every == 0 or step == schedule.steps:
            watch.judge(step, _validation_loss(model, own, validation, collate, arm, schedule.batch), trained)
            if watch.stopped:
                break
    watch.restore(trained)
    model.eval()
    return Trained(
        base=replace(own, model=model),
        steps=step,
        best_step=watch.best_step,
        passages=step * schedule.batch,
        trained_parameters=sum(parameter.numel() for parameter in trained),
        history=watch.history,
    )


def round_trip_nf4(model: PreTrainedModel) -> None:
    """Put NF4's rounding (blocks of 64, Dettmers et al. 2023) on the weights of all linear layers, embedding and head.

    Outputs are those of a base that is stored in NF4, at the speed of one that is not.
    """
    from bitsandbytes import functional as bnb

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in (*linear, model.get_input_embeddings()):
        # A row a block: on a CPU, bitsandbytes 0.50 gives wrong numbers for rows shorter than a block.
        flat = module.weight.data.float().flatten()
        blocks = F.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
        packed, state = bnb.quantize_4bit(blocks, blocksize=64, quant_type="nf4")
        rounded = bnb.dequantize_4bit(packed, state).flatten()[: len(flat)]
        module.weight.data.copy_(rounded.reshape(module.weight.shape))


class _Watch:
    """Validation losses, when to stop, and the weights of the best evaluation."""

    def __init__(self, arm: Arm, schedule: Schedule) -> None:
        self._keeps_best = arm.stopping != "none"
        # Theirs waits for 5 evaluations from 6,000 steps on; ours brings its windows. Both in the run's proportion.
        self._stopping = DelayedEarlyStoppingCallback(**({"window": 0} if _is_theirs(arm) else {}))
        self._state, self._control = TrainerState(max_steps=schedule.steps), TrainerControl()
        self._weights: list[torch.Tensor] = []
        self.history: list[tuple[int, float]] = []
        self.best_step = 0

    @property
    def stopped(self) -> bool:
        return self._keeps_best and self._stopping.stopped

    def judge(self, step: int, loss: float, trained: list[nn.Parameter]) -> None:
        self._state.global_step = step
        self._stopping.on_evaluate(None, self._state, self._control, metrics={"eval_loss": loss})
        if not self._keeps_best or all(loss < before for _, before in self.history):
            self._weights = [parameter.detach().cpu().clone() for parameter in trained]
            self.best_step = step
        self.history.append((step, loss))

    @torch.no_grad()
    def restore(self, trained: list[nn.Parameter]) -> None:
        for parameter, kept in zip(trained, self._weights, strict=True):
            parameter.copy_(kept)


def _is_theirs(arm: Arm) -> bool:
    """Whether to stop as they do, where our callback has a window that they lack."""
    return arm.stopping == "predecessor" and hasattr(DelayedEarlyStoppingCallback(), "window")


def _parameters(arm: Arm, base: Base) -> nn.Module:
    """The model with what the arm trains requiring gradients."""
    if arm.parameters == "full":
        model: nn.Module = base.model.requires_grad_(True)
        return model
    lora = add_adapter(base, AdapterConfig(rank=arm.rank))
    if arm.parameters == "lora-attention":
        for name, parameter in lora.named_parameters():
            if "DenseReluDense" in name:  # an adapter that is never trained adds nothing: its B is zero
                parameter.requires_grad_(False)
    return lora


def _collator(arm: Arm, base: Base, schedule: Schedule, seed: int) -> Collate:
    recipe = arm.corruption if isinstance(arm.corruption, CorruptionConfig) else CorruptionConfig()
    ours = DataCollatorForTermCorruption(base.vocabulary, recipe, seed=seed)
    return PredecessorCollator(ours, tokens=schedule.tokens) if arm.corruption == "predecessor" else ours


def _batches(rows: CorruptionDataset, batch: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Epoch after epoch in a fresh order that depends on the seed alone: the same passages for every arm."""
    size = min(batch, len(rows))
    for epoch in itertools.count():
        rows.set_epoch(epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for at in range(0, len(order) - size + 1, size):
            yield [rows[int(index)] for index in order[at : at + size]]


def _loss(model: nn.Module, base: Base, batch: dict[str, torch.Tensor], arm: Arm) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy and the number of labels it is over."""
    if arm.padding_in_loss:
        batch = count_padding(batch, base.vocabulary.pad_id)
    batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
    labels = batch["labels"]
    with base.autocast():
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=base.model._shift_right(labels),
        ).logits
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, int((labels != -100).sum())


@torch.inference_mode()
def _validation_loss(
    model: nn.Module, base: Base, rows: CorruptionDataset, collate: Collate, arm: Arm, batch: int
) -> float:
    model.eval()
    total = count = 0.0
    for at in range(0, len(rows), batch):
        part, labels = _loss(model, base, collate([rows[i] for i in range(at, min(at + batch, len(rows)))]), arm)
        total, count = total + float(part), count + labels
    return total / count
