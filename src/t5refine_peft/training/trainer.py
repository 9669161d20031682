"""The thin Seq2SeqTrainer of ours: the loss by tokens, evaluation without logits, an order that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Seq2SeqTrainer

from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.forward import LabelStates, packed_forward
from t5refine_peft.modeling.loss import frozen_head_cross_entropy
from t5refine_peft.modeling.memory import MemoryPlan
from t5refine_peft.training.cuts import cut_batch


class LengthGroupedSampler(Sampler[int]):
    """A fresh order each epoch in which passages of about one length stand together, so that little is padding.

    The order depends on seed and epoch alone: a resumed run sees the one that it would have seen.
    """

    def __init__(self, lengths: list[int], *, batch: int, seed: int, dataset: CorruptionDataset | None = None) -> None:
        """Order passages of these `lengths` (tokens) for steps of `batch`; `dataset` is told each epoch as well."""
        self._lengths = np.asarray(lengths)
        self._batch = batch
        self._seed = seed
        self._dataset = dataset
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """accelerate calls this at the beginning of each epoch.

        It tells the dataset too, except where a resumed run skips batches: so the sampler does.
        """
        self._epoch = epoch
        if self._dataset is not None:
            self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        order = rng.permutation(len(self._lengths))
        pool = 50 * self._batch  # sorted within pools, so that the order stays random at large
        batches: list[np.ndarray] = []
        for at in range(0, len(order), pool):
            part = order[at : at + pool]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch] for i in range(0, len(part), self._batch)]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        shuffled.sort(key=lambda batch: len(batch) < self._batch)  # a short batch goes last
        return iter(np.concatenate(shuffled).tolist())


class AdapterTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Trains the adapter on a base."""

    def __init__(
        self, *args: Any, base: Base, lengths: list[int], plan: MemoryPlan | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._base = base
        self._micro_batch_tokens = None if plan is None else plan.micro_batch_tokens
        self._checkpointed_blocks = 0 if plan is None else plan.checkpointed_blocks
        self._lengths = lengths
        self.tokens_seen = 0
        self.eval_history: list[tuple[int, float]] = []

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward, in micro-batches where the plan says so; see `compute_loss`."""
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != -100).sum()
        losses = [
            super(AdapterTrainer, self).training_step(model, part, num_items_in_batch)
            for part in cut_batch(inputs, max_tokens=self._micro_batch_tokens)
        ]
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the label tokens' losses over the label tokens of the whole accumulated batch.

        So the loss and its gradient are the same however a batch is cut into micro-batches; the model's own mean is not
        (it would weigh each micro-batch equally, and be added up).
        """
        loss, count = token_loss(model, inputs, self._base, checkpointed_blocks=self._checkpointed_blocks)
        self.tokens_seen += int(inputs["attention_mask"].sum()) if model.training else 0
        loss = loss / (count if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Mean loss over all label tokens of the split; no logits are kept."""
        loader: DataLoader[Any] = self.get_eval_dataloader(eval_dataset)
        total = tokens = 0.0
        self.model.eval()
        for inputs in loader:
            for part in cut_batch(inputs, max_tokens=self._micro_batch_tokens):
                with torch.inference_mode():
                    loss, count = token_loss(self.model, self._prepare_inputs(part), self._base)
                total, tokens = total + float(loss), tokens + count
        metrics = {f"{metric_key_prefix}_loss": total / tokens}
        self.eval_history.append((self.state.global_step, total / tokens))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthGroupedSampler(
            self._lengths,
            batch=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            dataset=self.train_dataset,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter alone: PEFT would otherwise look up the base to decide whether to save its embedding."""
        model: PeftModel = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(output_dir or self.args.output_dir, save_embedding_layers=False)


def token_loss(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], base: Base, *, checkpointed_blocks: int = 0
) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy in fp32 of the labels that are not -100, and their number; no logits are held.

    Equals `F.cross_entropy` on the model's own logits. `checkpointed_blocks`: see `packed_forward`.
    """
    core: PreTrainedModel = base.model
    with packed_forward(core, checkpointed_blocks=checkpointed_blocks):
        states: LabelStates = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"]
        )
    loss = frozen_head_cross_entropy(states.hidden, core.get_output_embeddings(), states.labels, num_items_in_batch=1)
    return loss, int((states.labels != -100).sum())
