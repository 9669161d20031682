from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5refine_peft import AdapterConfig, Quantization, load_base
from t5refine_peft.modeling.forward import packed_forward
from t5refine_peft.modeling.lora import add_adapter

SMALL = {
    "vocab_size": 61,
    "d_model": 24,
    "d_ff": 40,
    "d_kv": 8,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
LENGTHS = [(31, 9), (5, 3), (14, 12), (22, 2), (7, 7), (9, 1)]


def adapted(kind: str, *, lora_dropout: float = 0.0, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model with a random adapter on all its linear layers."""
    torch.manual_seed(seed)
    settings = {**SMALL, **changes}
    if kind == "mt5":  # gated, untied head
        core = MT5ForConditionalGeneration(MT5Config(**settings))
        core.lm_head.weight = nn.Parameter(torch.randn_like(core.lm_head.weight) * 0.3)
        core.config.tie_word_embeddings = False
    elif kind == "t5":  # ungated, tied and scaled head
        core = T5ForConditionalGeneration(T5Config(**settings, feed_forward_proj="relu", tie_word_embeddings=True))
    else:  # a position bias in each layer
        core = UMT5ForConditionalGeneration(UMT5Config(**settings))
    for module in core.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == 3:
            nn.init.normal_(module.weight)  # a position bias that matters
    core.requires_grad_(False)
    targets = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
    model = get_peft_model(
        core,
        LoraConfig(r=3, use_rslora=True, target_modules=targets, lora_dropout=lora_dropout, task_type="SEQ_2_SEQ_LM"),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Six passages of different lengths, padded on the right."""
    torch.manual_seed(1)
    width, label_width = (max(lengths) for lengths in zip(*LENGTHS, strict=True))
    input_ids = torch.randint(3, 61, (len(LENGTHS), width))
    labels = torch.randint(3, 61, (len(LENGTHS), label_width))
    attention_mask = torch.ones_like(input_ids)
    for row, (inputs, outputs) in enumerate(LENGTHS):
        input_ids[row, inputs:], attention_mask[row, inputs:], labels[row, outputs:] = 0, 0, -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def packed_loss(model: nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    core = model.base_model.model
    with packed_forward(core, **options):
        hidden, labels = model(**inputs)
    return F.cross_entropy(core.lm_head(hidden).float(), labels, reduction="sum")


def one_by_one_loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each passage on its own, without padding, through `transformers` and PEFT as they are."""
    total = torch.zeros(())
    for row, (length, outputs) in enumerate(LENGTHS):
        labels = inputs["labels"][row : row + 1, :outputs]
        logits = model(input_ids=inputs["input_ids"][row : row + 1, :length], labels=labels).logits
        total = total + F.cross_entropy(logits[0].float(), labels[0], reduction="sum")
    return total


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", ["mt5", "t5", "umt5"])
def test_packed_passages_give_the_loss_and_gradients_of_separate_ones(kind: str):
    model = adapted(kind).train()
    ours, theirs = packed_loss(model, batch()), one_by_one_loss(model, batch())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    found, expected = gradients(model, ours), gradients(model, theirs)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * (2 * (4 + (2 if kind == "t5" else 3)) + 3 * (8 + (2 if kind == "t5" else 3)))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
        assert gradient.norm() > 1e-3, name


def test_the_states_of_separate_and_packed_passages_agree_to_a_ten_thousandth():
    model = adapted("mt5").eval()
    inputs = batch()
    with torch.inference_mode(), packed_forward(model.base_model.model):
        packed, _ = model(**inputs)
        separate = [
            model(
                input_ids=inputs["input_ids"][row : row + 1, :length],
                attention_mask=inputs["attention_mask"][row : row + 1, :length],
                labels=inputs["labels"][row : row + 1, :outputs],
            )[0]
            for row, (length, outputs) in enumerate(LENGTHS)
        ]
    assert (packed - torch.cat(separate)).abs().max() <= 1e-4 * packed.abs().max()


def test_the_base_alone_gives_what_transformers_gives():
    model = adapted("mt5").eval()
    with model.disable_adapter():
        assert float(packed_loss(model, batch())) == pytest.approx(float(one_by_one_loss(model, batch())), rel=1e-5)
    core = model.unload()
    with packed_forward(core):
        hidden, labels = core(**batch())
    loss = F.cross_entropy(core.lm_head(hidden), labels, reduction="sum")
    assert float(loss) == pytest.approx(float(one_by_one_loss(core, batch())), rel=1e-5)


@pytest.mark.parametrize("quantization", [Quantization.int8(), Quantization.nf4(head="nf4")])
def test_a_quantised_base_gives_what_its_own_layers_give(tiny_base: Path, quantization: Quantization):
    loaded = load_base(tiny_base, quantization=quantization, device="cpu", precision="float32")
    model = add_adapter(loaded, AdapterConfig(rank=3, dropout=0.0))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    ours, theirs = packed_loss(model, batch()), one_by_one_loss(model, batch())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    found, expected = gradients(model, ours), gradients(model, theirs)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_label_ignored_in_the_midst_is_still_seen_by_those_behind_it():
    model = adapted("mt5").eval()
    inputs = batch()
    inputs["labels"][2, 4] = -100
    ours = packed_loss(model, inputs)
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"]
    ).logits
    theirs = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum")
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_the_models_own_forward_is_back_after_an_error():
    model = adapted("mt5")
    core = model.base_model.model
    with pytest.raises(RuntimeError, match="on purpose"), packed_forward(core):
        raise RuntimeError("on purpose")
    assert "forward" not in vars(core)
    assert model(**batch()).logits.shape[:2] == batch()["labels"].shape


def kept_bytes(model: nn.Module, checkpointed_blocks: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that a forward keeps for its gradient, beside the weights, and the gradients."""
    held: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = packed_loss(model, batch(), checkpointed_blocks=checkpointed_blocks)
    return sum(held.values()), gradients(model, loss)


def test_recomputed_blocks_keep_less_and_change_nothing_dropout_included():
    model = adapted("mt5", dropout_rate=0.2, lora_dropout=0.1).train()
    whole, expected = kept_bytes(model, 0)
    kept = whole
    for blocks in range(1, 6):
        less, found = kept_bytes(model, blocks)
        assert less < kept, blocks
        kept = less
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert kept < whole / 3
    assert kept_bytes(model, 99)[0] == kept


def test_dropout_is_for_training_alone():
    model = adapted("mt5", dropout_rate=0.3, lora_dropout=0.1)
    still = [float(packed_loss(model.eval(), batch())) for _ in range(2)]
    inputs = batch()
    moved = [float(packed_loss(model.train(), inputs)) for _ in range(2)]
    assert still[0] == still[1] == pytest.approx(float(one_by_one_loss(model.eval(), batch())), rel=1e-5)
    assert moved[0] != moved[1]


def test_bf16_is_as_near_to_fp32_as_the_plain_way():
    """On average over models: each rounding throws the gradient of a small model a little to one side or another."""
    ours, theirs = [], []
    for seed in range(8):
        model = adapted("mt5", seed=seed)
        model.base_model.model.bfloat16()  # values that both types can hold
        model.float()
        truth = packed_loss(model.train(), batch())
        exact = torch.cat([g.flatten() for g in gradients(model, truth).values()])
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                weight.data = weight.data.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = one_by_one_loss(model, batch())
        for loss, errors in ((packed_loss(model, batch()), ours), (plain, theirs)):
            assert float(loss) == pytest.approx(float(truth), rel=0.01)
            found = torch.cat([g.flatten() for g in gradients(model, loss).values()])
            errors.append(1 - float(F.cosine_similarity(found, exact, dim=0)))
    assert sum(ours) < 1.25 * sum(theirs)
