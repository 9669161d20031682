"""Teach mT5 or T5 the language of a domain with a small adapter, and restore damaged text of that domain.

Names are resolved when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from t5refine_peft.offline import keep_bitsandbytes_offline, send_no_telemetry

if TYPE_CHECKING:
    from t5refine_peft.config import AdapterConfig, CorruptionConfig, Quantization, RunConfig, TrainingConfig
    from t5refine_peft.config_file import load_config, save_config
    from t5refine_peft.corpus.collator import CorruptionDataset, DataCollatorForTermCorruption
    from t5refine_peft.corpus.glossary import Glossary
    from t5refine_peft.corpus.preparation import prepare_dataset
    from t5refine_peft.errors import RefineError
    from t5refine_peft.evaluation.evaluate import evaluate
    from t5refine_peft.evaluation.questions import QuestionSet
    from t5refine_peft.evaluation.scores import EvaluationReport
    from t5refine_peft.modeling.base import load_base, save_quantized
    from t5refine_peft.modeling.location import base_directory
    from t5refine_peft.modeling.loss import frozen_head_cross_entropy
    from t5refine_peft.modeling.memory import MemoryPlan, plan_memory
    from t5refine_peft.registry import AdapterRegistry
    from t5refine_peft.restoration.decoding import Decoding
    from t5refine_peft.restoration.restorer import Restoration, Restorer
    from t5refine_peft.training.callbacks import (
        DelayedEarlyStoppingCallback,
        HealthCallback,
        InterruptCallback,
        ProgressCallback,
    )
    from t5refine_peft.training.recipes import recipe
    from t5refine_peft.training.rehearsal import Rehearsal, rehearse_training
    from t5refine_peft.training.train import TrainResult, train_adapter

_HOMES = {
    "AdapterConfig": "config",
    "AdapterRegistry": "registry",
    "CorruptionConfig": "config",
    "CorruptionDataset": "corpus.collator",
    "DataCollatorForTermCorruption": "corpus.collator",
    "Decoding": "restoration.decoding",
    "DelayedEarlyStoppingCallback": "training.callbacks",
    "EvaluationReport": "evaluation.scores",
    "Glossary": "corpus.glossary",
    "HealthCallback": "training.callbacks",
    "InterruptCallback": "training.callbacks",
    "MemoryPlan": "modeling.memory",
    "ProgressCallback": "training.callbacks",
    "Quantization": "config",
    "QuestionSet": "evaluation.questions",
    "RefineError": "errors",
    "Rehearsal": "training.rehearsal",
    "Restoration": "restoration.restorer",
    "Restorer": "restoration.restorer",
    "RunConfig": "config",
    "TrainResult": "training.train",
    "TrainingConfig": "config",
    "base_directory": "modeling.location",
    "evaluate": "evaluation.evaluate",
    "frozen_head_cross_entropy": "modeling.loss",
    "load_base": "modeling.base",
    "load_config": "config_file",
    "plan_memory": "modeling.memory",
    "prepare_dataset": "corpus.preparation",
    "recipe": "training.recipes",
    "rehearse_training": "training.rehearsal",
    "save_config": "config_file",
    "save_quantized": "modeling.base",
    "train_adapter": "training.train",
}

__all__ = [
    "AdapterConfig",
    "AdapterRegistry",
    "CorruptionConfig",
    "CorruptionDataset",
    "DataCollatorForTermCorruption",
    "Decoding",
    "DelayedEarlyStoppingCallback",
    "EvaluationReport",
    "Glossary",
    "HealthCallback",
    "InterruptCallback",
    "MemoryPlan",
    "ProgressCallback",
    "Quantization",
    "QuestionSet",
    "RefineError",
    "Rehearsal",
    "Restoration",
    "Restorer",
    "RunConfig",
    "TrainResult",
    "TrainingConfig",
    "base_directory",
    "evaluate",
    "frozen_head_cross_entropy",
    "load_base",
    "load_config",
    "plan_memory",
    "prepare_dataset",
    "recipe",
    "rehearse_training",
    "save_config",
    "save_quantized",
    "train_adapter",
]

send_no_telemetry()
keep_bitsandbytes_offline()  # before anything imports it: no text and no question leaves this machine


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
