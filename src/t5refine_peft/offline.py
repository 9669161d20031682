"""Nothing leaves this machine: no kernels and no telemetry, and offline no connection at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType

_CPU_BACKEND = "bitsandbytes.backends.cpu.ops"
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def go_offline() -> None:
    """Let Hugging Face's libraries open no connection in this process and in those that it starts.

    They read the environment when they are imported; where that has been, the one switch that they all ask is turned.
    """
    for name in _SWITCHES:
        os.environ[name] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        vars(constants)["HF_HUB_OFFLINE"] = True


def is_offline() -> bool:
    """Whether no connection may be opened: after `go_offline`, or where HF_HUB_OFFLINE says so."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def send_no_telemetry() -> None:
    """Turn off what Hugging Face's libraries tell of their use, unless the variable is set to something else."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class OfflineLoader(SourceFileLoader):
    """Runs the module without the package `kernels`, and without the warning that it is missing."""

    def exec_module(self, module: ModuleType) -> None:
        """Run it with an import of `kernels` that fails at once."""
        import logging

        absent = object()
        kernels = sys.modules.get("kernels", absent)
        sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails at once
        log = logging.getLogger(_CPU_BACKEND)
        was_disabled, log.disabled = log.disabled, True
        try:
            super().exec_module(module)
        finally:
            log.disabled = was_disabled
            del sys.modules["kernels"]
            if kernels is not absent:
                sys.modules["kernels"] = kernels  # type: ignore[assignment]


class OfflineFinder(MetaPathFinder):
    """Finds bitsandbytes' CPU backend and nothing else.

    On a CPU with AVX512-BF16 that module downloads a kernel from a hub wherever the package `kernels` is installed
    (bitsandbytes 0.50), and peft and the Trainer import it along. Its own compiled code does without.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the usual file with a loader that hides `kernels`; None for every other module."""
        if fullname != _CPU_BACKEND:
            return None
        found = PathFinder.find_spec(fullname, path)
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(fullname, found.origin, loader=OfflineLoader(fullname, found.origin))


def keep_bitsandbytes_offline() -> None:
    """Hide the package `kernels` from bitsandbytes, if it is not imported yet. Costs nothing until it is."""
    if not any(isinstance(finder, OfflineFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, OfflineFinder())
