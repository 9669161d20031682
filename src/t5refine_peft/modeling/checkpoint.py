"""Read a model's weight files tensor by tensor, so that the host never holds the whole model for it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from t5refine_peft.errors import RefineError

_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def weight_files(directory: Path) -> list[Path]:
    """The files of the weights, sorted: the safetensors, else the `pytorch_model.bin`, in one part or several.

    Raises:
        RefineError: there are none.
    """
    for pattern in _PATTERNS:
        files = sorted(directory.glob(pattern))
        if files:
            return files
    raise RefineError(f"{directory} holds no weights: expected model.safetensors or pytorch_model.bin")


class Checkpoint:
    """The tensors in a model's weight files, by name."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Open the files.

        A `pytorch_model.bin` is read as data alone (`weights_only=True`), so that it can't run code. It is mapped into
        memory where its format allows; files older than PyTorch 1.6 don't, and are read whole.

        Raises:
            RefineError: a file is broken, or not a plain collection of tensors.
        """
        self._files = files
        self._readers: dict[str, Callable[[], torch.Tensor]] = {}
        for path in files:
            try:
                self._readers |= _readers(path)
            except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
                reason = str(error).partition("\n")[0]
                raise RefineError(f"{path} can't be read as a model's weights ({reason}); download it again") from error

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._readers)

    def read(self, name: str, shape: torch.Size | None = None) -> torch.Tensor:
        """A tensor as it is stored, on the host; mapped from the file where that is possible.

        Raises:
            RefineError: it is not there, or not of this shape.
        """
        where = ", ".join(str(path) for path in self._files)
        if name not in self._readers:
            raise RefineError(f"{where}: the tensor {name} is missing; expected the weights of config.json's model")
        tensor = self._readers[name]()
        if shape is not None and tensor.shape != shape:
            raise RefineError(
                f"{where}: expected {name} to be {tuple(shape)} by config.json, found {tuple(tensor.shape)}"
            )
        return tensor


def _readers(path: Path) -> Mapping[str, Callable[[], torch.Tensor]]:
    """For each tensor of a file the function that reads it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as opened:
            return {name: partial(_read_safetensor, path, name) for name in list(opened.keys())}
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise RuntimeError("it holds something other than tensors by name")
    return {name: partial(state.__getitem__, name) for name in state}


def _read_safetensor(path: Path, name: str) -> torch.Tensor:
    """One tensor; the file is mapped anew for each, so that its pages are given back with the tensor."""
    with safe_open(path, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor
