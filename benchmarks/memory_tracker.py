"""Bytes of a training step of any size without its memory: the library's own step on fake tensors, storages counted.

Fake tensors have shapes and no numbers, so that mT5-XL's step takes seconds. Counted are the storages that live at the
same time, each rounded up to 512 bytes as PyTorch's GPU allocator does. Two things are stand-ins: the GPU's attention
kernel, which keeps its inputs, its result and one sum a query; and the loss, whose tiles are counted by arithmetic,
since its cuts depend on the labels' values.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MT5Config, MT5ForConditionalGeneration

from t5refine_peft.config import AdapterConfig, Quantization
from t5refine_peft.modeling import forward
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.layers import QuantizedLinear
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.matrices import NF4_BLOCK, NF4_GROUP, Int8Matrix, NF4Matrix
from t5refine_peft.modeling.packing import Rows, pack
from t5refine_peft.modeling.shapes import Shape


class StorageTracker(TorchDispatchMode):
    """Counts the storages that operations make, for as long as they live; not those of tensors that were there."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in there)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = -(-storage.nbytes() // 512) * 512
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.live_bytes -= size


class _GpuAttention(torch.autograd.Function):
    """What PyTorch's memory-efficient kernel allocates; no numbers."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, _mask: Any) -> torch.Tensor:
        result = torch.empty_like(query)
        sums = torch.empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *_gradients: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        torch.empty(query.shape[:3], dtype=torch.float32)  # the kernel's row sums of gradient times result
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextmanager
def gpu_attention() -> Iterator[None]:
    """Within this context the forward attends as on a GPU, for the memory's sake alone."""
    own = forward.attend, forward.mask_dtype
    forward.attend = lambda query, key, value, mask, **_dropout: _GpuAttention.apply(query, key, value, mask)
    forward.mask_dtype = lambda query: query.dtype
    try:
        yield
    finally:
        forward.attend, forward.mask_dtype = own


def tracked_activations(
    shape: Shape,
    *,
    quantization: Quantization,
    adapter: AdapterConfig,
    passages: int,
    input_tokens: int,
    label_tokens: int,
    checkpointed_blocks: int,
    on_gpu: bool = True,
) -> dict[str, int]:
    """Run forward and backward twice on fake tensors; bytes of the weights, of the adapter, and of all else at peak."""
    model = meta_model(shape, quantization, adapter).train()
    core = model.base_model.model
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _make_fake(model)
        rows = [_fake(mode, part) for part in pack([input_tokens] * passages, [label_tokens] * passages)]
        ids = [torch.zeros(count * passages, dtype=torch.int64) for count in (input_tokens, label_tokens, label_tokens)]
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.zeros_like(weight)  # counted apart: what is left is the step's own
        tracker = StorageTracker([*model.parameters(), *model.buffers(), *(weight.grad for weight in trained)])
        with gpu_attention() if on_gpu else torch.enable_grad(), tracker:
            states = forward.flat_label_states(core, *ids, *rows, checkpointed_blocks=checkpointed_blocks)
            states.hidden.sum().backward()
    return {
        "adapter_parameters": sum(weight.numel() for weight in trained),
        "activation_bytes": tracker.peak_bytes,
    }


def meta_model(shape: Shape, quantization: Quantization, adapter: AdapterConfig) -> nn.Module:
    """A model of this shape with an adapter, all on the meta device."""
    config = MT5Config(
        vocab_size=shape.rows,
        d_model=shape.width,
        d_ff=shape.inner,
        num_heads=shape.heads,
        d_kv=shape.head_width,
        num_layers=shape.encoder_blocks,
        num_decoder_layers=shape.decoder_blocks,
        feed_forward_proj="gated-gelu" if shape.gated else "relu",
        dropout_rate=shape.dropout,
    )
    with torch.device("meta"):
        core = MT5ForConditionalGeneration(config).to(torch.bfloat16)
        core.set_input_embeddings(core.shared)
        for name, module in list(core.named_modules()):
            if isinstance(module, nn.Linear) and module is not core.lm_head and quantization.linear != "none":
                parent, _, attribute = name.rpartition(".")
                matrix = _empty_matrix(module.out_features, module.in_features, quantization.linear)
                setattr(core.get_submodule(parent), attribute, QuantizedLinear(matrix, dtype=torch.bfloat16))
        core.requires_grad_(False)
        base = Base(
            model=core,
            vocabulary=None,
            name=shape.name,
            fingerprint="",
            precision="bfloat16",
            quantization=quantization,
        )
        return add_adapter(base, adapter)


def _empty_matrix(rows: int, width: int, storage: str) -> Int8Matrix | NF4Matrix:
    if storage == "int8":
        return Int8Matrix(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows))
    blocks = -(-rows * width // NF4_BLOCK)
    return NF4Matrix(
        rows=rows,
        width=width,
        packed=torch.empty(-(-rows * width // 2), dtype=torch.int8),
        absmax=torch.empty(blocks, dtype=torch.uint8),
        nested_absmax=torch.empty(-(-blocks // NF4_GROUP)),
        nested_code=torch.empty(256),
        offset=torch.empty(()),
    )


def _make_fake(model: nn.Module) -> None:
    """Put fake CPU tensors in the place of all meta ones."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    whole = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if whole else fake
                tensors[name] = made[id(tensor)]


def _fake(mode: FakeTensorMode, rows: Rows) -> Rows:
    fields = ("passages", "tokens", "places", "empty")
    return dataclasses.replace(rows, **{name: mode.from_tensor(getattr(rows, name)) for name in fields})
