from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import magnitude_prune, task_arithmetic, ties
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5refine_peft import RefineError
from t5refine_peft.modeling.combining import METHODS, combine_adapters

WEIGHTS = {"heart": 0.7, "law": -0.4}


def updates(registry, name: str) -> dict[str, torch.Tensor]:
    """The update of each layer by LoRA's formula (Kalajdzievski 2023): alpha / sqrt(r) B A."""
    config = json.loads((registry.find(name) / "adapter_config.json").read_text())
    tensors = load_file(registry.find(name) / "adapter_model.safetensors")
    scale = config["lora_alpha"] / math.sqrt(config["r"])
    layers = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}
    return {
        layer: scale
        * tensors[f"base_model.model.{layer}.lora_B.weight"].float()
        @ tensors[f"base_model.model.{layer}.lora_A.weight"].float()
        for layer in layers
    }


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Frobenius norm of the difference, over that of what was wanted."""
    assert found.keys() == wanted.keys()
    squares = [((found[k] - wanted[k]).square().sum(), wanted[k].square().sum()) for k in wanted]
    return math.sqrt(sum(a for a, _ in squares) / sum(b for _, b in squares))


@pytest.mark.parametrize(
    ("method", "options"), [("cat", {}), ("svd", {"rank": 6}), ("svd", {}), ("ties_svd", {"density": 0.5, "rank": 32}),
                            ("magnitude_prune_svd", {"density": 0.3, "rank": 32})],
)  # fmt: skip
def test_the_combination_is_the_one_of_the_formula(registry, method: str, options: dict):
    made = combine_adapters(registry, WEIGHTS, domain="both", method=method, **options)
    heart, law, both = (updates(registry, name) for name in ("heart", "law", "both"))
    weights = torch.tensor(list(WEIGHTS.values()))
    plain = {layer: task_arithmetic([heart[layer], law[layer]], weights) for layer in heart}
    density = options.get("density")
    wanted = plain
    if method == "ties_svd":
        wanted = {layer: ties([heart[layer], law[layer]], weights, density) for layer in heart}
    elif method == "magnitude_prune_svd":
        wanted = {layer: magnitude_prune([heart[layer], law[layer]], weights, density) for layer in heart}
    assert made.relative_error == pytest.approx(distance(both, plain), rel=1e-4)
    if method == "svd" and not options:  # by Eckart and Young, the best of rank 4 leaves the lesser singular values
        lost = sum(torch.linalg.svdvals(update)[4:].square().sum() for update in plain.values())
        best = math.sqrt(lost / sum(update.square().sum() for update in plain.values()))
        assert made.relative_error == pytest.approx(best, abs=0.003)
        assert best > 0.1
    else:
        assert distance(both, wanted) < 0.005  # bf16 keeps 8 bits
    assert made.rank == {"cat": 6, "svd": options.get("rank", 4)}.get(method, 32)
    assert made.adapter_bytes == (made.path / "adapter_model.safetensors").stat().st_size


def test_it_loads_in_plain_peft_and_adds_up(registry, tiny_base):
    combine_adapters(registry, WEIGHTS, domain="both")
    combined = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(tiny_base, dtype=torch.float32), registry.find("both")
    ).eval()
    summed = AutoModelForSeq2SeqLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for layer, update in updates(registry, "both").items():
        summed.get_submodule(layer).weight.data += update
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        found, wanted = (model(input_ids=ids, decoder_input_ids=ids).logits for model in (combined, summed))
    assert torch.allclose(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_each_of_pefts_methods_makes_a_sound_adapter_with_its_history(registry, identity, method: str):
    combine_adapters(registry, {"law": 0.5, "heart": 1.0}, domain="wide", rank=4, method="svd")
    pair = {"law": 1.0, "wide": 2.0}
    density = 0.5 if method not in ("cat", "svd", "linear") else None
    made = combine_adapters(registry, pair, domain="made", method=method, density=density)
    assert registry.verify("made", identity).recorded
    card = registry.card("made")
    assert {name: part["weight"] for name, part in card["combined_from"].items()} == pair
    assert card["combined_from"]["law"]["adapter_fingerprint"] == registry.card("law")["adapter_fingerprint"]
    assert (card["method"], card["density"], card["relative_error"]) == (method, density, made.relative_error)
    assert str(identity.name) == card["base"]


def test_dare_drops_by_the_seed_and_leaves_torchs_own_alone(registry):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for domain, seed in (("a", 1), ("b", 1), ("c", 2)):
        combine_adapters(registry, WEIGHTS, domain=domain, method="dare_linear_svd", density=0.5, seed=seed)
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (updates(registry, name) for name in "abc")
    assert distance(first, again) == 0
    assert distance(first, other) > 0.1


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"heart": 1.0}, {}, "expected two adapters or more, found heart"),
        ({"heart": 1.0, "hart": 1.0}, {}, "no adapter 'hart'"),
        ({"heart": 1.0, "law": math.nan}, {}, "the weight of 'law' must be a finite number"),
        (WEIGHTS, {"method": "tie"}, "no method 'tie': .* did you mean ties"),
        (WEIGHTS, {"method": "linear"}, "'linear' needs adapters of one rank, found .* take 'cat', or 'svd'"),
        (WEIGHTS, {"method": "ties_svd"}, "'ties_svd' needs a density above 0 and up to 1, found None"),
        (WEIGHTS, {"density": 0.5}, "'cat' prunes nothing, so it takes no density"),
        (WEIGHTS, {"rank": 3}, "the rank follows from the method 'cat'"),
        (WEIGHTS, {"method": "svd", "rank": 0}, "rank must be at least 1, found 0"),
        (WEIGHTS, {"method": "svd", "rank": 9999}, r"rank must be at most \d+, the shorter side .* found 9999"),
        (WEIGHTS, {"domain": "law"}, "is there already"),
        (WEIGHTS, {"domain": "a/b"}, "can't name an adapter"),
        (WEIGHTS, {"base": "builtin:mt5-mini"}, "was trained on the base"),
    ],
)
def test_what_does_not_go_together_is_one_sentence_and_leaves_nothing(registry, weights, options, message: str):
    before = registry.names()
    with pytest.raises(RefineError, match=message):
        combine_adapters(registry, weights, **{"domain": "both", **options})
    assert registry.names() == before
    assert len(list(registry.directory.iterdir())) == len(before)


def test_a_sum_that_bf16_can_not_hold_is_refused(registry):
    with pytest.raises(RefineError, match="is too large for bf16; give smaller weights"):
        combine_adapters(registry, {"heart": 1e300, "law": 1.0}, domain="huge")
    assert "huge" not in registry.names()
    large = combine_adapters(registry, {"heart": 1e30, "law": 1e30}, domain="large")
    assert 0 < large.relative_error < 2**-8  # bf16 rounds by 2^-9 at most, in each of two factors
