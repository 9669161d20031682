"""The adapters on disk: what lies there, whether it is sound, and how it travels."""

from t5refine_peft.registry.adapters import AdapterRegistry

__all__ = ["AdapterRegistry"]
