"""Where the weights of a base come from: the files it was published in, or those it was saved quantised in."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

import torch
from transformers import PreTrainedModel

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.checkpoint import Checkpoint
from t5refine_peft.modeling.matrices import DenseMatrix, Int8Matrix, Matrix, NF4Matrix, quantize
from t5refine_peft.modeling.placement import Place

EMBEDDING = "shared.weight"
HEAD = "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""The embedding's other names in a T5; some files hold it under these."""


class Weights(Protocol):
    """Weights by the names that they have in the unquantised model."""

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one matrix, by value."""
        ...

    def matrix(self, name: str, shape: torch.Size, place: Place) -> Matrix:
        """The weight `name`, (rows, width), stored as its place says."""
        ...

    def numbers(self, name: str, shape: torch.Size, place: Place) -> torch.Tensor:
        """A weight of any shape that is not quantised, a copy in its place."""
        ...

    def check(self, model: PreTrainedModel) -> None:
        """Refuse weights that are not those of `model`."""
        ...


class PublishedWeights:
    """Weights in 16 or 32 bits, quantised one by one while they are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def tied(self) -> bool:
        """See `Weights.tied`. No head in the file means that it is the embedding; two that are equal are one."""
        names = self._checkpoint.names
        if HEAD not in names or self._place_of(EMBEDDING, names) == HEAD:
            return True
        return torch.equal(self._checkpoint.read(HEAD), self._checkpoint.read(self._place_of(EMBEDDING, names)))

    def matrix(self, name: str, shape: torch.Size, place: Place) -> Matrix:
        """See `Weights.matrix`."""
        if place.storage == "none":
            return DenseMatrix(self.numbers(name, shape, place))
        return quantize(self._read(name, shape), place.storage, place.device)

    def numbers(self, name: str, shape: torch.Size, place: Place) -> torch.Tensor:
        """See `Weights.numbers`."""
        return torch.empty(shape, dtype=place.dtype, device=place.device).copy_(self._read(name, shape))

    def _read(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self._checkpoint.read(self._place_of(name, self._checkpoint.names), shape)

    def check(self, model: PreTrainedModel) -> None:
        """See `Weights.check`.

        Raises:
            RefineError: there are tensors that the model has no place for.
        """
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        ignored = model._keys_to_ignore_on_load_unexpected or []
        surplus = sorted(
            name for name in self._checkpoint.names - known if not any(re.search(part, name) for part in ignored)
        )
        if surplus:
            raise RefineError(
                f"the weights hold {len(surplus)} tensors that the model of config.json has no place for, such as "
                f"{surplus[0]}; is it another model's config.json?"
            )

    @staticmethod
    def _place_of(name: str, names: Collection[str]) -> str:
        """Under which name the file holds a weight: embedding and head may stand in for each other where one lacks."""
        others = {EMBEDDING: (*COPIES, HEAD), HEAD: (EMBEDDING, *COPIES)}.get(name, ())
        return next((other for other in (name, *others) if other in names), name)


class StoredWeights:
    """Weights that were saved quantised: each buffer of a matrix under the weight's name and its own."""

    def __init__(self, checkpoint: Checkpoint, *, tied: bool) -> None:
        self._checkpoint = checkpoint
        self._tied = tied

    @property
    def tied(self) -> bool:
        """See `Weights.tied`: what was found when the model was quantised."""
        return self._tied

    def matrix(self, name: str, shape: torch.Size, place: Place) -> Matrix:
        """See `Weights.matrix`; it must have been stored so."""
        if name == HEAD and not any(stored.startswith(f"{HEAD}.") for stored in self._checkpoint.names):
            name = EMBEDDING

        def part(buffer: str, size: torch.Size | None = None) -> torch.Tensor:
            return self._checkpoint.read(f"{name}.{buffer}", size).to(place.device, copy=True)

        if place.storage == "int8":
            return Int8Matrix(part("values", shape), part("scale"))
        if place.storage == "nf4":
            return NF4Matrix(
                rows=shape[0],
                width=shape[1],
                packed=part("packed"),
                absmax=part("absmax"),
                nested_absmax=part("nested_absmax"),
                nested_code=part("nested_code"),
                offset=part("offset"),
            )
        return DenseMatrix(self.numbers(name, shape, place))

    def numbers(self, name: str, shape: torch.Size, place: Place) -> torch.Tensor:
        """See `Weights.numbers`."""
        stored = self._checkpoint.read(f"{name}.values", shape)
        return torch.empty(shape, dtype=place.dtype, device=place.device).copy_(stored)

    def check(self, model: PreTrainedModel) -> None:
        """See `Weights.check`: this library wrote them."""
