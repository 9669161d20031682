"""Random adapters on the tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t5refine_peft import AdapterConfig, load_base
from t5refine_peft.modeling.lora import add_adapter, save_adapter


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory) -> Path:
    """A directory with `heart`, `law` and `tax`, of ranks 2, 4 and 6."""
    directory = tmp_path_factory.mktemp("adapters")
    base = load_base(tiny_base, device="cpu", precision="float32")
    for seed, name in enumerate(["heart", "law", "tax"]):
        torch.manual_seed(seed)
        model = add_adapter(base, AdapterConfig(rank=2 + 2 * seed))
        for key, weight in model.named_parameters():
            if "lora_B" in key:  # as large as training makes it; the other matrix has its random start
                torch.nn.init.normal_(weight, std=0.05)
        (directory / name).mkdir()
        save_adapter(model, directory / name)
        model.unload()
        card = {
            "base": str(tiny_base),
            "base_fingerprint": base.fingerprint,
            "tokenizer_fingerprint": base.vocabulary.fingerprint,
        }
        (directory / name / "card.json").write_text(json.dumps(card))
    return directory
