"""The stack on this machine: versions, device, memory, number formats, disk, and the known traps, each tried."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from t5refine_peft.traps.finding import Finding
from t5refine_peft.traps.trying import try_traps

_PACKAGES = (
    "t5refine-peft",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "sentencepiece",
    "bitsandbytes",
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found."""

    python: str
    system: str
    versions: dict[str, str | None]
    """None for a package that is not installed."""
    device: str
    device_memory_bytes: int | None
    """Of the GPU; None without one."""
    memory_bytes: int
    disk_free_bytes: int
    """Where the command was started."""
    native_bf16: bool
    """Of the GPU; without one, whether the CPU computes faster in it."""
    cpu_milliseconds: dict[str, float]
    """A product of two matrices of 512 by 512, by number format."""
    bitsandbytes_backend: str | None
    """Where it was seen to quantise, `cuda` or `cpu`, or why it did not; None where it is not installed."""
    traps: list[Finding]

    @property
    def healthy(self) -> bool:
        """Whether no trap would catch a run."""
        return all(finding.status != "broken" for finding in self.traps)


def examine() -> Diagnosis:
    """Look at this machine and try each trap; takes some seconds and no network."""
    gpu = torch.cuda.is_available()
    timed = {str(dtype).removeprefix("torch."): _milliseconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else timed["bfloat16"] < timed["float32"]
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: _version(name) for name in _PACKAGES},
        device=torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        device_memory_bytes=torch.cuda.get_device_properties(0).total_memory if gpu else None,
        memory_bytes=int(psutil.virtual_memory().total),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        native_bf16=native,
        cpu_milliseconds=timed,
        bitsandbytes_backend=_bitsandbytes_backend("cuda" if gpu else "cpu"),
        traps=try_traps(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _bitsandbytes_backend(device: str) -> str | None:
    if _version("bitsandbytes") is None:
        return None
    try:
        import_module("bitsandbytes.functional").quantize_4bit(torch.ones(64, 64, device=device))
    except Exception as error:  # a build that does not fit the machine raises whatever it likes
        return f"broken on {device}: {type(error).__name__}: {error}"
    return device


def _milliseconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(512, 512, dtype=dtype)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return round((time.perf_counter() - started) / 5 * 1000, 3)
