"""Put a base together: a model without weights first, then each weight read, quantised and put in its place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from t5refine_peft.modeling.layers import FrozenEmbedding, QuantizedLinear
from t5refine_peft.modeling.matrices import DenseMatrix, Matrix
from t5refine_peft.modeling.placement import Kind, Placement
from t5refine_peft.modeling.weights import COPIES, EMBEDDING, HEAD, Weights


def assemble(directory: Path, weights: Weights, placement: Placement) -> PreTrainedModel:
    """Build the frozen model of `directory`'s config.json.

    Weights come one by one, so that beside the finished part of the model no more than one is held.

    Raises:
        RefineError: a weight is missing, has another shape, or has no place in the model.
    """
    model = empty_model(directory, getattr(torch, placement.precision))
    weights.check(model)
    tied = weights.tied
    embedding = _place_embedding(model, weights, placement)
    _place_head(model, weights, placement, embedding, tied=tied)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.weight.is_meta:
            parent, _, attribute = name.rpartition(".")
            matrix = weights.matrix(f"{name}.weight", module.weight.shape, placement.of("linear"))
            setattr(model.get_submodule(parent), attribute, _linear(matrix, placement.of("linear").dtype))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            kind: Kind = "norm" if name.endswith("norm.weight") else "position_bias"
            parent, _, attribute = name.rpartition(".")
            numbers = weights.numbers(name, parameter.shape, placement.of(kind))
            setattr(model.get_submodule(parent), attribute, nn.Parameter(numbers, requires_grad=False))
    keep_ties_true(model, tied=tied)
    return model.requires_grad_(False).eval()


def empty_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of config.json with weights that take no memory (the meta device)."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return model


def _place_embedding(model: PreTrainedModel, weights: Weights, placement: Placement) -> Matrix:
    place = placement.of("embedding")
    matrix = weights.matrix(EMBEDDING, model.get_input_embeddings().weight.shape, place)
    stays = place.device != placement.device
    module: nn.Module
    if isinstance(matrix, DenseMatrix) and not stays:
        module = nn.Embedding(matrix.rows, matrix.width, device="meta")
        module.weight = nn.Parameter(matrix.values, requires_grad=False)
    else:
        module = FrozenEmbedding(matrix, dtype=place.dtype, stays=stays)
    model.set_input_embeddings(module)
    return matrix


def _place_head(
    model: PreTrainedModel,
    weights: Weights,
    placement: Placement,
    embedding: Matrix,
    *,
    tied: bool,
) -> None:
    """The head, which is the embedding's own matrix where they are tied and have one place."""
    place = placement.of("head")
    if tied and place == placement.of("embedding"):
        matrix = embedding
    else:
        matrix = weights.matrix(HEAD, model.get_output_embeddings().weight.shape, place)
    head = _linear(matrix, place.dtype)
    if matrix is embedding and isinstance(matrix, DenseMatrix):
        head.weight = model.get_input_embeddings().weight
    model.set_output_embeddings(head)


def _linear(matrix: Matrix, dtype: torch.dtype) -> nn.Linear:
    if not isinstance(matrix, DenseMatrix):
        return QuantizedLinear(matrix, dtype=dtype)
    linear = nn.Linear(matrix.width, matrix.rows, bias=False, device="meta")
    linear.weight = nn.Parameter(matrix.values, requires_grad=False)
    return linear


def keep_ties_true(model: PreTrainedModel, *, tied: bool) -> None:
    """Say of the ties what is true, so that a later `tie_weights()` changes nothing.

    `MT5Config` and `UMT5Config` say `tie_word_embeddings=True` whatever the file says, and the head would then be
    overwritten by the embedding. The flag is corrected, but not umT5's: its model scales the logits by d ** -0.5 where
    the flag is set, and its checkpoints were made so. What is tied is therefore said by the list of the ties as well.
    """
    if model.config.model_type != "umt5":
        model.config.tie_word_embeddings = tied
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = COPIES if isinstance(embedding, nn.Embedding) else ()
    names = (*shared, HEAD) if head.weight is embedding.weight and shared else shared
    model._tied_weights_keys = dict.fromkeys(names, EMBEDDING)
    model.all_tied_weights_keys = dict(model._tied_weights_keys)
