from __future__ import annotations

from pathlib import Path

import torch

from t5refine_peft import AdapterConfig
from t5refine_peft.modeling.identity import hollow_model, identify, linear_shapes, read_identity
from t5refine_peft.modeling.lora import add_adapter


def test_a_base_on_disk_and_in_memory_is_one(base, tiny_base: Path):
    assert read_identity(tiny_base) == identify(base)


def test_adapters_on_a_base_are_no_part_of_it(base):
    before = identify(base)
    model = add_adapter(base, AdapterConfig(rank=4))
    assert identify(base) == before
    model.unload()
    assert identify(base) == before


def test_shapes_are_those_of_the_weights(base):
    weights = {name: tuple(weight.shape) for name, weight in base.model.named_parameters()}
    shapes = linear_shapes(base.model)
    assert len(shapes) == 2 * (4 + 3) + 2 * (8 + 3)
    assert all(weights[f"{name}.weight"] == shape for name, shape in shapes.items())
    assert not {"lm_head", "shared"} & shapes.keys()


def test_a_hollow_model_has_the_shapes_and_no_memory(base, tiny_base: Path):
    hollow = hollow_model(tiny_base)
    assert linear_shapes(hollow) == linear_shapes(base.model)
    assert all(weight.untyped_storage().nbytes() <= 4 for weight in hollow.parameters())
    assert not any(torch.count_nonzero(weight) for weight in hollow.parameters())
