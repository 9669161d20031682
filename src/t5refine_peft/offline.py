"""Keep bitsandbytes from asking a hub for kernels while it is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType

_CPU_BACKEND = "bitsandbytes.backends.cpu.ops"


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
