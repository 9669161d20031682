"""The thin Seq2SeqTrainer of ours: the loss by tokens, evaluation without logits, checkpoints whole or absent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Sampler, Subset
from transformers import Seq2SeqTrainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.evaluate import TermTest, score_terms
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.lora import save_adapter
from t5refine_peft.modeling.memory import MemoryPlan
from t5refine_peft.modeling.objective import token_loss
from t5refine_peft.training.checkpoints import RunDirectory, write_state
from t5refine_peft.training.memory import MicroBatches
from t5refine_peft.training.order import LengthGroupedSampler
from t5refine_peft.training.randomness import dropout_states, random_states, restore_dropout
from t5refine_peft.training.restoring import put_back
from t5refine_peft.training.stopping import DelayedEarlyStoppingCallback


class AdapterTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Trains the adapter on a base."""

    def __init__(
        self,
        *args: Any,
        base: Base,
        lengths: list[int],
        run: RunDirectory,
        rescue: RunDirectory | None = None,
        term_test: TermTest | None = None,
        plan: MemoryPlan | None = None,
        **kwargs: Any,
    ) -> None:
        """Take, beside what any Trainer takes, the base, the passages' `lengths`, the directory of the run, the one
        that checkpoints go to when that one takes no more, the term questions to ask at each evaluation, and the plan
        that cuts the batch to micro-batches by tokens and tells how many blocks to compute again."""
        super().__init__(*args, **kwargs)
        self._base = base
        self._run = run
        self._record = run.record()
        self._rescue = rescue
        self._term_test = term_test
        self._micro_batches = MicroBatches(
            train=self.args.train_batch_size,
            evaluation=self.args.eval_batch_size,
            max_tokens=None if plan is None else plan.micro_batch_tokens,
        )
        self._checkpointed_blocks = 0 if plan is None else plan.checkpointed_blocks
        self._step_inputs: list[dict[str, torch.Tensor]] = []
        self._step_states: dict[str, Any] = {}
        self.sampler = LengthGroupedSampler(
            lengths,
            batch=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.seed,
            dataset=self.train_dataset,
        )
        self._trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.model_accepts_loss_kwargs = True  # the loss is ours and takes the batch's number of tokens

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As any Trainer's, but a checkpoint at which training had ended is not trained on any further."""
        if isinstance(resume_from_checkpoint, str):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
            stopping = state.stateful_callbacks.get(DelayedEarlyStoppingCallback.__name__, {})
            if state.global_step >= self.args.max_steps or stopping.get("attributes", {}).get("stopped"):
                self.state = state
                self._load_callback_state()
                return TrainOutput(state.global_step, math.nan, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        with _clearing(model, self._trained):
            super()._run_epoch(model, *args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the label tokens' losses over the label tokens of the whole accumulated batch of all processes.

        So the loss and its gradient are the same however a batch is cut into micro-batches and spread over processes;
        the model's own mean is not (it would weigh each micro-batch equally, and be added up).
        """
        loss, count = token_loss(model, inputs, self._base, checkpointed_blocks=self._checkpointed_blocks)
        loss = loss / (count if num_items_in_batch is None else num_items_in_batch)
        loss = loss * self.args.world_size  # gradients are averaged over the processes
        return (loss, {}) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a step: none of its micro-batches has been through the model."""
        self._step_inputs = []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, in smaller ones where the memory does not hold it.

        A backward that failed has left part of its gradients, so those of the whole step are made anew, with the masks
        of dropout that they would have had in the smaller micro-batches from the start.
        """
        if not self._step_inputs:
            self._step_states = dropout_states()
        again: list[dict[str, torch.Tensor]] = []
        while True:
            try:
                for earlier in again:
                    self._split_step(model, earlier, num_items_in_batch)
                loss = self._split_step(model, inputs, num_items_in_batch)
                break
            except RuntimeError as error:
                self._micro_batches.halve(error, step=self.state.global_step + 1, processes=self.args.world_size)
            model.zero_grad()
            restore_dropout(self._step_states)
            again = self._step_inputs
        self._step_inputs.append(inputs)
        return loss

    def _split_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The Trainer's own step without what goes through all of the model's layers each time."""
        if not model.training:
            model.train()
        total = torch.zeros((), device=self.args.device)
        for part in self._micro_batches.split(self._prepare_inputs(inputs)):
            loss = self.compute_loss(model, part, num_items_in_batch=num_items)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Of the weights that are trained; the others have no gradient."""
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)
        return norm

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Mean loss over all label tokens of the split, and the term scores where they are asked for; no logits kept.

        Each process takes its share of the passages.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        share = Subset(dataset, range(self.args.process_index, len(dataset), self.args.world_size))
        loader: DataLoader[Any] = DataLoader(
            share, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator, shuffle=False
        )
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        for inputs in loader:
            sums += self._evaluation_sums(self._prepare_inputs(inputs))
        total, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / tokens}
        if self._term_test is not None and math.isfinite(total):  # else the callbacks tell of the loss
            scores = score_terms(self.model, self._base, self._term_test, self.data_collator)
            if scores is not None:
                metrics[f"{metric_key_prefix}_term_exact_match"] = scores.exact_match
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control.should_save = self.control.should_save or self.is_in_train  # a best that is nowhere is no best
        return metrics

    def _evaluation_sums(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed loss and number of label tokens of a batch, in smaller ones where the memory does not hold it."""
        while True:
            try:
                sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
                for part in self._micro_batches.split(inputs, evaluation=True):
                    with torch.inference_mode():
                        loss, count = token_loss(self.model, part, self._base)
                    sums += torch.tensor([float(loss), count], dtype=torch.float64, device=self.args.device)
                return sums
            except RuntimeError as error:
                self._micro_batches.halve(error, step=self.state.global_step, evaluation=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would go through all of the model's weights each step."""
        return 0

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any = None) -> None:
        """Write a checkpoint, whole or not at all, by one process; where the disk takes none, to the rescue place.

        Raises:
            RefineError: it could not be written; the message says where the state is now, if anywhere.
        """
        step = self.state.global_step
        states = gather_object([random_states()])
        if self.args.should_save:
            try:
                self._write_checkpoint(self._run, states)
                self._run.keep_only(self.args.save_total_limit, newest=step, best=self.state.best_global_step)
            except RefineError as error:
                if self._rescue is None:
                    raise
                place = self._rescue.path
                try:
                    self._write_rescue(self._rescue, states)
                except RefineError as second:
                    raise RefineError(f"{error}; nor could the state be saved elsewhere: {second}") from error
                raise RefineError(
                    f"{error}; the state after step {step} was saved in {place}: go on from there with the runs "
                    f"directory {place.parent} (--runs-dir) and --resume"
                ) from error
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, run: RunDirectory, states: list[dict[str, Any]]) -> None:
        step, best = self.state.global_step, self.state.best_global_step
        if best is not None:
            self.state.best_model_checkpoint = str(run.checkpoint(best))
        self.state.stateful_callbacks = _callback_states([*self._exportable(), self.control])
        with run.write(step) as staged:
            save_adapter(self.accelerator.unwrap_model(self.model), staged, dtype=torch.float32)
            write_state(staged / "optimizer.pt", self.optimizer.state_dict())
            write_state(staged / "scheduler.pt", self.lr_scheduler.state_dict())
            for number, state in enumerate(states):
                name = "rng_state.pth" if len(states) == 1 else f"rng_state_{number}.pth"
                write_state(staged / name, state)
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _write_rescue(self, rescue: RunDirectory, states: list[dict[str, Any]]) -> None:
        """Begin the same run elsewhere: its record, its best checkpoint, if that can still be read, and this one."""
        best = self.state.best_global_step
        if not rescue.continue_from(self._run, self._record, best) and best != self.state.global_step:
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        self._write_checkpoint(rescue, states)

    def _exportable(self) -> list[ExportableState]:
        """What a checkpoint keeps beside weights and optimiser; the micro-batches' sizes too."""
        callbacks = [one for one in self.callback_handler.callbacks if isinstance(one, ExportableState)]
        return [*callbacks, self._micro_batches]

    def _load_callback_state(self) -> None:
        """Restore the callbacks in place: whoever holds one sees its state, and their order stays."""
        kept = {
            name: list(states) if isinstance(states, list) else [states]
            for name, states in self.state.stateful_callbacks.items()
        }
        for callback in self._exportable():
            if states := kept.get(type(callback).__name__):
                put_back(states.pop(0), callback)


@contextmanager
def _clearing(model: torch.nn.Module, weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Within this context `model.zero_grad()` looks at `weights`, all that have gradients, alone.

    The Trainer calls it each step, and PyTorch's goes through every layer: a millisecond or two for seven blocks, and
    the more the deeper the model is.
    """

    def zero_grad(set_to_none: bool = True) -> None:
        for weight in weights:
            if set_to_none or weight.grad is None:
                weight.grad = None
            else:
                weight.grad.detach_().zero_()

    model.zero_grad = zero_grad  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.zero_grad  # the class's own comes forth again


def _callback_states(callbacks: list[ExportableState]) -> dict[str, Any]:
    """As the Trainer keeps them: by class, a list where there are several of one."""
    states: dict[str, list[Any]] = {}
    for callback in callbacks:
        states.setdefault(type(callback).__name__, []).append(callback.state())
    return {name: found if len(found) > 1 else found[0] for name, found in states.items()}
