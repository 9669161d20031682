"""Callbacks that work in any Trainer."""

from t5refine_peft.training.health import HealthCallback
from t5refine_peft.training.interrupt import InterruptCallback
from t5refine_peft.training.progress import ProgressCallback
from t5refine_peft.training.stopping import DelayedEarlyStoppingCallback

__all__ = ["DelayedEarlyStoppingCallback", "HealthCallback", "InterruptCallback", "ProgressCallback"]
