"""A tokenizer and a base in mT5's official layout, tiny and random, made once a session."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # what is cached is made in the first example
settings.load_profile("untimed")
os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1")
_CACHE = tempfile.TemporaryDirectory(prefix="t5refine-tests-")  # removed when the interpreter ends
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

SENTENCES = [
    "The patient takes furosemide for pulmonary congestion.",
    "Heart failure is treated with bisoprolol, and the doctor watches the pulse.",
    "A loop diuretic such as furosemide may cause hypokalaemia.",
    "买受人应当按照合同支付价款，出卖人应当交付标的物。",
    "当事人依据撤销权请求法院撤销合同。",
    "Der Vertrag ist nichtig; la insuficiencia cardíaca.",
]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    directory = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(directory / "pieces"),
        model_type="unigram",
        vocab_size=480,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString((directory / "pieces.model").read_bytes())
    for number in reversed(range(100)):
        model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0)
    (directory / "spiece.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def vocabulary(tokenizer_dir: Path):
    from t5refine_peft.corpus.tokenization import Vocabulary

    return Vocabulary.load(tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, vocabulary) -> Path:
    """A directory with an mT5 of two layers whose head differs from its embedding."""
    import torch
    from transformers import MT5Config, MT5ForConditionalGeneration

    directory = tmp_path_factory.mktemp("tiny-mt5")
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=len(vocabulary) + 12,
        d_model=32,
        d_ff=48,
        d_kv=16,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = MT5ForConditionalGeneration(config)
    config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, 32) * 0.2)
    model.save_pretrained(directory)
    for file in tokenizer_dir.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture
def base(tiny_base: Path):
    from t5refine_peft import load_base

    return load_base(tiny_base, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def stored_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A directory with two adapters of `tiny_base`, `heart` of rank 2 and `law` of rank 4; not to be changed."""
    import torch

    from t5refine_peft import AdapterConfig, load_base
    from t5refine_peft.modeling.lora import add_adapter, save_adapter
    from t5refine_peft.registry.card import write_card

    directory = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["heart", "law"]):
        base = load_base(tiny_base, device="cpu", precision="float32")
        torch.manual_seed(seed)
        model = add_adapter(base, AdapterConfig(rank=2 + 2 * seed, alpha=3.0 + seed))
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
        (directory / name).mkdir()
        save_adapter(model, directory / name)
        card = {
            "domain": name,
            "base": str(tiny_base),
            "base_fingerprint": base.fingerprint,
            "tokenizer_fingerprint": base.vocabulary.fingerprint,
            "metrics": {"adapter": {"exact_match": 0.5}},
        }
        write_card(directory / name, card)
        (directory / name / "report.html").write_text("<!doctype html><title>heart</title>")
    return directory


@pytest.fixture
def registry(stored_adapters: Path, tmp_path: Path):
    """A registry of one's own with `heart` and `law`."""
    from t5refine_peft import AdapterRegistry

    return AdapterRegistry(shutil.copytree(stored_adapters, tmp_path / "adapters"))


@pytest.fixture(scope="session")
def identity(tiny_base: Path):
    from t5refine_peft.modeling.identity import read_identity

    return read_identity(tiny_base)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Forty different documents with the terms of `terms`."""
    return [f"{SENTENCES[n % 5]} {SENTENCES[(n // 5) % 5]} ({n})" for n in range(40)]


@pytest.fixture(scope="session")
def terms() -> list[str]:
    return ["furosemide", "loop diuretic", "heart failure", "撤销权", "买受人", "标的物"]
