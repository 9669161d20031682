"""The shape of a T5 from its configuration alone: how many matrices of which size, before any weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import MODEL_TYPES
from t5refine_peft.modeling.location import config_file

_OFFICIAL = {
    "google/mt5-small": ("mt5", 250_112, 512, 1024, 6, 8),
    "google/mt5-base": ("mt5", 250_112, 768, 2048, 12, 12),
    "google/mt5-large": ("mt5", 250_112, 1024, 2816, 16, 24),
    "google/mt5-xl": ("mt5", 250_112, 2048, 5120, 32, 24),
    "google/mt5-xxl": ("mt5", 250_112, 4096, 10240, 64, 24),
    "google/umt5-base": ("umt5", 256_384, 768, 2048, 12, 12),
    "google/flan-t5-base": ("t5", 32_128, 768, 2048, 12, 12),
}
"""Type, vocab_size, d_model, d_ff, num_heads and num_layers of published models (Xue et al. 2021; Chung et al. 2023;
Chung et al. 2022), so that they are planned offline. All have a gated feed-forward and a head of their own."""
OFFICIAL_NAMES = tuple(name for name, (kind, *_) in _OFFICIAL.items() if kind == "mt5")
"""The sizes of mT5."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides how much memory a T5 takes."""

    name: str
    rows: int
    """Of embedding and head."""
    width: int
    """d_model"""
    inner: int
    """d_ff"""
    heads: int
    head_width: int
    """d_kv"""
    encoder_blocks: int
    decoder_blocks: int
    gated: bool
    tied: bool
    """Whether head and embedding are one matrix."""
    bias_tables: int
    """Tables of position biases."""
    buckets: int
    """Rows of such a table."""
    dropout: float

    @property
    def attention_width(self) -> int:
        """Of queries, keys and values, over all heads."""
        return self.heads * self.head_width

    def block_matrices(self, *, decoder: bool) -> list[tuple[int, int]]:
        """The (width out, width in) of each linear layer in a block."""
        attention = [(self.attention_width, self.width)] * 3 + [(self.width, self.attention_width)]
        feed_forward = [(self.inner, self.width)] * (2 if self.gated else 1) + [(self.width, self.inner)]
        return attention * (2 if decoder else 1) + feed_forward

    def matrices(self) -> list[tuple[int, int]]:
        """The (width out, width in) of all linear layers but the head."""
        return (
            self.block_matrices(decoder=False) * self.encoder_blocks
            + self.block_matrices(decoder=True) * self.decoder_blocks
        )

    @property
    def norm_weights(self) -> int:
        """Weights of all norms."""
        return self.width * (2 * self.encoder_blocks + 3 * self.decoder_blocks + 2)


def read_shape(base: str | Path) -> Shape:
    """The shape of a base: a directory with config.json, the file itself, a hub id, or `builtin:mt5-mini`.

    Published models are known by name; of another hub id config.json alone is downloaded.

    Raises:
        RefineError: no such base, or one that is no T5.
    """
    name = str(base)
    if name in _OFFICIAL and not Path(base).exists():
        names = ("model_type", "vocab_size", "d_model", "d_ff", "num_heads", "num_layers")
        known = dict(zip(names, _OFFICIAL[name], strict=True))
        return _shape(name, {**known, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    path = config_file(base)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return _shape(name, config)
    except FileNotFoundError:
        raise RefineError(f"{name} is no model directory: expected config.json in it") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise RefineError(f"{path} is broken: {error}") from None
    except KeyError as error:
        raise RefineError(f"{path} is no T5's: expected {error.args[0]} in it") from None


def _shape(name: str, config: dict[str, Any]) -> Shape:
    kind = config["model_type"]
    if kind not in MODEL_TYPES:
        raise RefineError(f"{name} is a model of type {kind!r}: expected one of {', '.join(MODEL_TYPES)}")
    encoder_blocks = config["num_layers"]
    decoder_blocks = config.get("num_decoder_layers") or encoder_blocks
    activation = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    return Shape(
        name=name,
        rows=config["vocab_size"],
        width=config["d_model"],
        inner=config["d_ff"],
        heads=config["num_heads"],
        head_width=config.get("d_kv", 64),
        encoder_blocks=encoder_blocks,
        decoder_blocks=decoder_blocks,
        gated=activation.startswith("gated"),
        # `MT5Config` and `UMT5Config` write that they are tied, whatever they are; so the head is counted.
        tied=kind == "t5" and bool(config.get("tie_word_embeddings", True)),
        bias_tables=encoder_blocks + decoder_blocks if kind == "umt5" else 2,
        buckets=config.get("relative_attention_num_buckets", 32),
        dropout=config.get("dropout_rate", 0.1),
    )
