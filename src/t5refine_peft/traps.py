"""Known traps of the installed libraries, each tried in a moment on a tiny model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from t5refine_peft.offline import OfflineLoader

Status = Literal["ok", "handled", "broken"]
"""The trap is not there; it is there and the library goes around it; it is there and would catch a run."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What trying a trap has shown."""

    trap: str
    status: Status
    detail: str


def try_traps() -> list[Finding]:
    """Try all; one that ends in an error of its own is broken, with that error."""
    findings = []
    for name, attempt in _TRAPS.items():
        try:
            status, detail = attempt()
        except Exception as error:  # whatever a library's new version raises is what is to be told
            status, detail = "broken", f"{type(error).__name__}: {error}"
        findings.append(Finding(trap=name, status=status, detail=detail))
    return findings


def _tiny_mt5() -> Any:
    from transformers import MT5Config, MT5ForConditionalGeneration

    return _tiny(MT5Config, MT5ForConditionalGeneration)


def _tiny(configuration: Any, model_class: Any) -> Any:
    """A random model whose head differs from its embedding."""
    config = configuration(
        vocab_size=64,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_layers=1,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        model.lm_head.weight = nn.Parameter(torch.randn(64, 16))
    return model.eval()


def _head() -> tuple[Status, str]:
    from t5refine_peft.modeling.assembly import keep_ties_true

    model = _tiny_mt5()
    claimed = bool(model.config.tie_word_embeddings)
    keep_ties_true(model, tied=False)
    model.tie_weights()
    if torch.equal(model.lm_head.weight, model.get_input_embeddings().weight):
        return "broken", "tie_weights overwrites the head with the embedding, whatever the flag says"
    return ("handled", "the configuration claims tied weights; set right") if claimed else ("ok", "the flag is true")


def _umt5() -> tuple[Status, str]:
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    from t5refine_peft.modeling.assembly import keep_ties_true

    model, ids = _tiny(UMT5Config, UMT5ForConditionalGeneration), torch.arange(1, 5)[None]
    with torch.inference_mode():
        before = model(input_ids=ids, labels=ids).logits
        keep_ties_true(model, tied=False)
        model.tie_weights()
        after = model(input_ids=ids, labels=ids).logits
    if not torch.equal(before, after):
        return "broken", "the logits of umT5 change when it is said which weights are tied"
    return ("handled", "the flag that scales the logits stays as it is") if model.config.tie_word_embeddings else (
        "ok", "no flag scales the logits",
    )  # fmt: skip


def _accumulation() -> tuple[Status, str]:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    with TemporaryDirectory() as place:  # the Trainer makes its directory at once
        arguments = Seq2SeqTrainingArguments(output_dir=place, report_to="none", use_cpu=True)
        trainer = Seq2SeqTrainer(model=_tiny_mt5(), args=arguments)
    if not trainer.model_accepts_loss_kwargs:
        return "ok", "the Trainer scales mT5's mean loss by the micro-batches"
    return "handled", "the Trainer takes mT5's mean for a sum by tokens; the loss is ours, by tokens"


def _contiguous() -> tuple[Status, str]:
    labels = torch.arange(1, 9).reshape(2, 4).t()
    try:
        _tiny_mt5()(input_ids=torch.ones(4, 3, dtype=torch.long), labels=labels)
    except RuntimeError:
        return "handled", "mT5's own loss fails on labels that are not contiguous; ours are, and the loss is ours"
    return "ok", "labels need not be contiguous"


def _fp16() -> tuple[Status, str]:
    overflows = bool(torch.tensor(70000.0).to(torch.float16).isinf())
    return ("handled", "T5 overflows fp16; bf16 or fp32 is used, fp16 is not offered") if overflows else ("ok", "")


def _emulated_bf16() -> tuple[Status, str]:
    from t5refine_peft.modeling.precision import choose_precision

    if not torch.cuda.is_available():
        return "ok", "no GPU; the CPU's number formats are timed"
    told, native = torch.cuda.is_bf16_supported(), torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = choose_precision(torch.device("cuda"))
    if native is False and chosen == "bfloat16":
        return "broken", "bf16 is emulated on this GPU, and chosen"
    return ("handled" if told != native else "ok"), f"native bf16: {native}; chosen: {chosen}"


def _linear_cross_entropy() -> tuple[Status, str]:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        return "ok", "this torch has none"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden, head = torch.randn(512, 16).bfloat16(), torch.randn(256, 16).bfloat16()
    labels = torch.arange(512) % 256
    exact = float(F.cross_entropy(hidden.float() @ head.float().t(), labels))
    told = float(function(hidden, head, labels))
    wrong = abs(told - exact) / exact > 0.005
    return ("handled" if wrong else "ok"), f"tells {told:.3f} for {exact:.3f} in bf16; not used"


def _kept_in_fp32() -> tuple[Status, str]:
    kept = getattr(_tiny_mt5(), "_keep_in_fp32_modules", None) or []
    if "wo" not in kept:
        return "ok", "wo may be quantised"
    return "handled", "transformers keeps wo out of 4-bit; the base is not quantised by transformers' own switch"


def _quantised_wo() -> tuple[Status, str]:
    from t5refine_peft.modeling.layers import QuantizedLinear
    from t5refine_peft.modeling.matrices import quantize

    feed_forward = _tiny_mt5().encoder.block[0].layer[1].DenseReluDense
    weight, hidden = feed_forward.wo.weight.detach(), torch.linspace(-1, 1, 32).view(2, 16)
    matrix = quantize(weight, "nf4", torch.device("cpu"))
    with torch.inference_mode():
        feed_forward.wo.weight.copy_(matrix.tile(0, len(weight), torch.float32))
        expected = feed_forward(hidden)
        feed_forward.wo = QuantizedLinear(matrix, dtype=torch.float32)
        if not torch.allclose(feed_forward(hidden), expected, atol=1e-5):
            return "broken", "transformers' feed-forward spoils what goes into a quantised wo"
    return "handled", "transformers' feed-forward leaves our quantised wo alone, whose stored bytes are int8"


def _k_bit_preparation() -> tuple[Status, str]:
    from peft import prepare_model_for_kbit_training

    model = copy.deepcopy(_tiny_mt5()).bfloat16()
    model.is_loaded_in_4bit = True
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    upcast = model.get_input_embeddings().weight.dtype is torch.float32
    return (
        ("handled", "peft makes head and embedding fp32; it is not called") if upcast else ("ok", "nothing is upcast")
    )


def _lora_targets() -> tuple[Status, str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

    default = sorted(TARGETS.get("mt5", []))
    return "handled" if default == [
        "q",
        "v",
    ] else "ok", f"peft's default is {', '.join(default)}; all linear layers are named"


def _gone_arguments() -> tuple[Status, str]:
    from transformers import Seq2SeqTrainingArguments

    known = {field.name for field in fields(Seq2SeqTrainingArguments)}
    needed = {"eval_strategy", "warmup_steps", "logging_nan_inf_filter", "include_num_input_tokens_seen"}
    if needed - known:
        return "broken", f"this transformers lacks {', '.join(sorted(needed - known))}; install a tested version"
    return "ok", "all arguments that are used are there"


def _byte_fallback() -> tuple[Status, str]:
    from t5refine_peft.corpus.tokenization import Vocabulary
    from t5refine_peft.modeling.location import base_directory

    vocabulary = Vocabulary.load(base_directory("builtin:mt5-mini"))
    text = "\U0001f9ec\u9f98"
    ids = vocabulary.encode(text).ids
    if vocabulary.decode(ids.tolist()).strip() != text:
        return "broken", "characters outside the vocabulary are lost"
    if vocabulary.unk_id not in _stock_ids(text):
        return "ok", "T5Tokenizer keeps characters outside the vocabulary"
    return "handled", "T5Tokenizer makes them <unk>; ids are SentencePiece's own, which keep them"


def _sentinels() -> tuple[Status, str]:
    from t5refine_peft.corpus.tokenization import Vocabulary
    from t5refine_peft.modeling.location import base_directory

    vocabulary = Vocabulary.load(base_directory("builtin:mt5-mini"))
    if set(vocabulary.encode("a <extra_id_3> b").ids.tolist()) & set(vocabulary.sentinel_ids):
        return "broken", "a user's literal <extra_id_3> becomes a sentinel"
    if vocabulary.sentinel_ids[0] in _stock_ids("\u836f<extra_id_0>\u54c1"):
        return "ok", "T5Tokenizer finds sentinels in any text"
    return "handled", "T5Tokenizer breaks them into pieces after Chinese; none is ever written as text"


def _stock_ids(text: str) -> list[int]:
    """Of transformers' own tokenizer."""
    from transformers import T5Tokenizer

    from t5refine_peft.modeling.location import base_directory

    ids: list[int] = T5Tokenizer.from_pretrained(base_directory("builtin:mt5-mini"))(text).input_ids
    return ids


def _epochs() -> tuple[Status, str]:
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    from t5refine_peft.training.order import LengthGroupedSampler

    told: list[int] = []
    listener: Any = SimpleNamespace(set_epoch=told.append)
    rows: Any = [0, 1]
    sampler = LengthGroupedSampler(rows, batch=1, seed=0, dataset=listener)
    loader = prepare_data_loader(DataLoader(rows, sampler=sampler), num_processes=1, process_index=0)
    for _ in range(2):
        list(loader)
    if told != [0, 1]:
        return "broken", f"accelerate told the epochs {told} of 0 and 1: the masks of an epoch would not be fresh"
    return "handled", "the Trainer tells a collator no epoch; accelerate tells our sampler, and it the dataset"


def _hub_kernels() -> tuple[Status, str]:
    if find_spec("bitsandbytes") is None or find_spec("kernels") is None:
        return "ok", "bitsandbytes has nothing to ask a hub with"
    if isinstance(import_module("bitsandbytes.backends.cpu.ops").__loader__, OfflineLoader):
        return "handled", "bitsandbytes would ask a hub for kernels; the package kernels is hidden from it"
    return (
        "broken",
        "bitsandbytes asks a hub for CPU kernels where it is imported first; import t5refine_peft before it",
    )


_TRAPS: dict[str, Callable[[], tuple[Status, str]]] = {
    "mT5's head is not its embedding": _head,
    "umT5 scales its logits by the flag of the ties": _umt5,
    "wo is kept out of 4-bit": _kept_in_fp32,
    "wo in 4-bit": _quantised_wo,
    "k-bit preparation upcasts": _k_bit_preparation,
    "fp16 overflows": _fp16,
    "loss times accumulation": _accumulation,
    "labels that are not contiguous": _contiguous,
    "linear_cross_entropy adds up in bf16": _linear_cross_entropy,
    "emulated bf16": _emulated_bf16,
    "bitsandbytes asks a hub": _hub_kernels,
    "byte fallback": _byte_fallback,
    "sentinels in text": _sentinels,
    "a collator knows no epoch": _epochs,
    "arguments that are gone": _gone_arguments,
    "LoRA's default targets": _lora_targets,
}
