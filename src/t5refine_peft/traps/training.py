"""Traps of the Trainer and of PEFT."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from t5refine_peft.traps.finding import Attempt, Status, tiny_mt5


def _accumulation() -> tuple[Status, str]:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    with TemporaryDirectory() as place:  # the Trainer makes its directory at once
        arguments = Seq2SeqTrainingArguments(output_dir=place, report_to="none", use_cpu=True)
        trainer = Seq2SeqTrainer(model=tiny_mt5(), args=arguments)
    if not trainer.model_accepts_loss_kwargs:
        return "ok", "the Trainer scales mT5's mean loss by the micro-batches"
    return "handled", "the Trainer takes mT5's mean for a sum by tokens; the loss is ours, by tokens"


def _gone_arguments() -> tuple[Status, str]:
    from transformers import Seq2SeqTrainingArguments

    known = {field.name for field in fields(Seq2SeqTrainingArguments)}
    needed = {"eval_strategy", "warmup_steps", "logging_nan_inf_filter", "include_num_input_tokens_seen"}
    if needed - known:
        return "broken", f"this transformers lacks {', '.join(sorted(needed - known))}; install a tested version"
    return "ok", "all arguments that are used are there"


def _epochs() -> tuple[Status, str]:
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    from t5refine_peft.training.order import LengthGroupedSampler

    told: list[int] = []
    listener: Any = SimpleNamespace(set_epoch=told.append)
    rows: Any = [0, 1]
    sampler = LengthGroupedSampler(rows, batch=1, seed=0, dataset=listener)
    loader = prepare_data_loader(DataLoader(rows, sampler=sampler), num_processes=1, process_index=0)
    for _ in range(2):
        list(loader)
    if told != [0, 1]:
        return "broken", f"accelerate told the epochs {told} of 0 and 1: the masks of an epoch would not be fresh"
    return "handled", "the Trainer tells a collator no epoch; accelerate tells our sampler, and it the dataset"


def _best_weights() -> tuple[Status, str]:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    from t5refine_peft.modeling.lora import reload_adapter, save_adapter

    with TemporaryDirectory() as place:
        model = _adapted("default")
        best = _weights_of(model)
        save_adapter(model, Path(place), dtype=torch.float32)
        _spoil(model)
        reload_adapter(model, Path(place))
        if not torch.equal(_weights_of(model), best):
            return "broken", "an adapter's weights are not read back"
    with TemporaryDirectory() as place:
        model = _adapted("domain")
        best = _weights_of(model)
        model.save_pretrained(place)
        _spoil(model)
        arguments = Seq2SeqTrainingArguments(output_dir=place, report_to="none", use_cpu=True)
        trainer = Seq2SeqTrainer(model=model, args=arguments)
        trainer.state.best_model_checkpoint = place
        trainer._load_best_model()
        if torch.equal(_weights_of(model), best):
            return "ok", "the Trainer loads the best weights of an adapter of any name"
    return "handled", "the Trainer keeps the last weights of an adapter with a name; the best are read back by us"


def _embedding_saved() -> tuple[Status, str]:
    from safetensors.torch import load_file

    from t5refine_peft.modeling.lora import save_adapter
    from t5refine_peft.registry.files import WEIGHTS_FILE

    with TemporaryDirectory() as place:
        save_adapter(_adapted("default"), Path(place))
        others = [name for name in load_file(Path(place) / WEIGHTS_FILE) if ".lora_" not in name]
    if others:
        return "broken", f"an adapter's file holds {others[0]} as well"
    return "handled", "PEFT may save embeddings along; it is told not to, and the file holds the adapter alone"


def _mixed_adapters() -> tuple[Status, str]:
    from peft import LoraConfig

    model, ids = _adapted("first"), torch.arange(1, 9).view(2, 4)
    with _quiet(), torch.inference_mode():
        model.add_adapter("second", LoraConfig(**_RECIPE))
        together = model.eval()(input_ids=ids, labels=ids, adapter_names=["first", "second"]).logits
        for row, name in enumerate(("first", "second")):
            model.set_adapter(name)
            alone = model(input_ids=ids[row : row + 1], labels=ids[row : row + 1]).logits
            if not torch.allclose(together[row : row + 1], alone, atol=1e-4):
                return "broken", "adapters mixed in a batch give other answers than one after the other"
    return "ok", "adapters mixed in a batch answer as one after the other"


def _just_in_time() -> tuple[Status, str]:
    from transformers.trainer_jit_checkpoint import CheckpointManager

    with patch("signal.signal") as taken:
        CheckpointManager(None).setup_signal_handler()
    if signal.SIGINT in {call.args[0] for call in taken.call_args_list}:
        return "ok", "the Trainer's checkpoint before an end answers Ctrl+C too"
    return "handled", "the Trainer's checkpoint before an end answers SIGTERM alone; InterruptCallback, Ctrl+C too"


def _lora_targets() -> tuple[Status, str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

    default = sorted(TARGETS.get("mt5", []))
    return "handled" if default == [
        "q",
        "v",
    ] else "ok", f"peft's default is {', '.join(default)}; all linear layers are named"


_RECIPE: dict[str, Any] = {
    "task_type": "SEQ_2_SEQ_LM",
    "r": 2,
    "target_modules": ["q", "v"],
    "init_lora_weights": False,
}


def _adapted(name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(tiny_mt5(), LoraConfig(**_RECIPE), adapter_name=name)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _weights_of(model: Any) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for name, w in model.named_parameters() if ".lora_" in name])


def _spoil(model: Any) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.add_(1.0)


ATTEMPTS: dict[str, Attempt] = {
    "loss times accumulation": _accumulation,
    "a collator knows no epoch": _epochs,
    "arguments that are gone": _gone_arguments,
    "the best weights of an adapter": _best_weights,
    "a checkpoint before the end": _just_in_time,
    "LoRA's default targets": _lora_targets,
    "embeddings saved with an adapter": _embedding_saved,
    "adapters mixed in a batch": _mixed_adapters,
}
