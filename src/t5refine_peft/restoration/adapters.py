"""The adapters in memory: loaded when they are used, the least recently used dropped at a limit, one call at a time."""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.identity import identify
from t5refine_peft.modeling.lora import load_adapted
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.registry.files import CARD_FILE, WEIGHTS_FILE, short
from t5refine_peft.registry.layout import AdapterLayout
from t5refine_peft.registry.verification import check_numbers
from t5refine_peft.restoration.calibration import TEMPERATURES
from t5refine_peft.restoration.mixing import AdapterSwitch, stack_bytes
from t5refine_peft.restoration.scoring import Assign

_NO_ROOM = (MemoryError, torch.OutOfMemoryError)
"""What is no fault of an adapter."""
_BYTES_A_PARAMETER = 4
"""PEFT holds adapters in fp32."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An adapter that fits the base."""

    path: Path
    memory_bytes: int
    """What it takes in memory."""
    layout: AdapterLayout
    temperature: float
    """Its scores' calibration; 1 where its card has none."""
    damage_threshold: float | None
    """Words less probable than this, in nats, are damage; None where its card has none."""


@dataclass(frozen=True)
class ReadyModel:
    """A model that reads a batch of texts, each with its adapter."""

    model: PreTrainedModel
    assign: Callable[[Sequence[str | None]], Assign]
    """For the adapters of a batch's texts, what is told which text each row of a forward belongs to."""


class AdapterPool:
    """Adapters on one base. Calls from several threads follow one another."""

    def __init__(
        self,
        base: Base,
        registry: AdapterRegistry,
        *,
        limit_bytes: int | None = None,
        on_drop: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Hold adapters of `registry`.

        Args:
            base: the model.
            registry: where adapters lie.
            limit_bytes: of all adapters in memory; None is no limit.
            on_drop: told the name of each adapter that leaves memory.
        """
        self._base = base
        self._identity = identify(base)
        self._registry = registry
        self._limit_bytes = limit_bytes
        self._on_drop = on_drop
        self._model: PeftModel | None = None
        self._loaded: OrderedDict[str, Fit] = OrderedDict()
        self._switch: AdapterSwitch | None = None
        self._chosen: str | None = None
        self._in_use: list[str] = []
        """By whoever holds the lock: once for each `using` that it is in."""
        self.lock = threading.RLock()
        """Held while the model is used or changed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in memory, the least recently used first."""
        return tuple(self._loaded)

    def fit(self, name: str) -> Fit:
        """What is known of an adapter that fits the base, loaded or not.

        Raises:
            RefineError: there is none of that name, or it does not fit.
        """
        return self._loaded.get(name) or self._fit(name)

    def load(self, name: str, *, keep: Sequence[str] = ()) -> PeftModel:
        """The model with the adapter `name` in memory; others, but those in `keep`, may be dropped for it.

        Raises:
            RefineError: there is none of that name, it does not fit the base, or it is larger than the limit.
        """
        with self.lock:
            if name in self._loaded and self._model is not None:
                self._loaded.move_to_end(name)
                return self._model
            fit = self._fit(name)
            self._make_room(f"the adapter {name!r}", fit.memory_bytes, keep)
            if self._switch is not None:
                self._switch.remove()
            try:
                check_numbers(fit.path / WEIGHTS_FILE)
                if self._model is None:
                    self._model = load_adapted(self._base.model, fit.path, name=peft_name(name))
                else:
                    self._model.load_adapter(str(fit.path), adapter_name=peft_name(name))
                self._model.eval()
            except BaseException as error:
                self._take_out(peft_name(name))
                if isinstance(error, (RefineError, *_NO_ROOM)) or not isinstance(error, Exception):
                    raise
                raise RefineError(
                    f"the adapter {name!r} can't be loaded by PEFT ({short(str(error))}); take a sound copy of it, or "
                    "train it anew"
                ) from error
            finally:  # the adapters that are there already go on, whatever became of this one
                if self._model is not None:
                    self._take_over()
            self._loaded[name] = fit
            return self._model

    def drop(self, name: str) -> None:
        """Remove an adapter from memory.

        Raises:
            RefineError: it is not there, or in use further up in this thread.
        """
        with self.lock:
            if self._model is None or name not in self._loaded:
                raise RefineError(f"the adapter {name!r} is not loaded; loaded are: {', '.join(self.names) or 'none'}")
            if name in self._in_use:
                raise RefineError(f"the adapter {name!r} is in use: leave the `using` block around this call first")
            if self._switch is not None:
                self._switch.remove()
            del self._loaded[name]
            if self._loaded:
                self._model.set_adapter(peft_name(next(iter(self._loaded))))  # PEFT warns of deleting the active one
                self._model.delete_adapter(peft_name(name))
                self._take_over()
            else:
                self._model.unload()
                self._model = self._switch = None
            self._on_drop(name)

    def groups(self, names: Sequence[str | None]) -> list[set[str | None]]:
        """The distinct `names` in groups whose adapters fit into memory together.

        Raises:
            RefineError: one of them does not fit the base.
        """
        groups: list[set[str | None]] = [set()]
        fits: list[Fit] = []
        for name in dict.fromkeys(names):
            own = [] if name is None else [self.fit(name)]
            if groups[-1] and not self._go_together(fits + own):
                groups.append(set())
                fits = []
            groups[-1].add(name)
            fits += own
        return groups

    def _go_together(self, fits: Sequence[Fit]) -> bool:
        if self._limit_bytes is None:
            return True
        return sum(fit.memory_bytes for fit in fits) + self._stack_bytes(fits) <= self._limit_bytes

    def _stack_bytes(self, fits: Sequence[Fit]) -> int:
        return stack_bytes([fit.layout for fit in fits], dtype=getattr(torch, self._base.precision))

    @contextmanager
    def using(self, names: Sequence[str | None]) -> Iterator[ReadyModel]:
        """Within this context, and for this thread alone, the model with the adapters `names`; None is the base."""
        with self.lock:
            adapters = [name for name in dict.fromkeys(names) if name is not None]
            for name in adapters:
                self.load(name, keep=adapters)
            if self._switch is None:
                yield ReadyModel(self._base.model, _alike)
                return
            before, mixed, in_use = self._chosen, len(set(names)) > 1, self._in_use
            self._in_use = [*in_use, *adapters]
            self._chosen = None if mixed or not adapters else peft_name(adapters[0])
            try:
                if mixed:
                    stack = self._stack_bytes([self._loaded[name] for name in adapters])
                    self._make_room(f"a batch of {len(adapters)} adapters", stack, adapters)
                self._switch.choose(self._chosen)
                if mixed:
                    self._switch.mix([peft_name(name) for name in adapters])
                yield ReadyModel(self._model, self._assign if mixed else _alike)
            finally:
                self._chosen, self._in_use = before, in_use
                if self._switch is not None:
                    self._switch.choose(before)

    def _assign(self, names: Sequence[str | None]) -> Assign:
        switch = self._switch
        if switch is None:
            raise RuntimeError("the adapters were dropped while a batch used them")
        known = [None if name is None else peft_name(name) for name in names]
        numbers = switch.numbers(known).to(self._base.device)
        return lambda texts: switch.assign(numbers[texts])

    def _take_out(self, name: str) -> None:
        """Leave nothing of an adapter that failed half-way in PEFT's layers, nor of PEFT where it is the first."""
        if self._model is None:
            for module in list(self._base.model.modules()):
                for child, layer in list(module.named_children()):
                    if isinstance(layer, LoraLayer):
                        setattr(module, child, layer.get_base_layer())
            with suppress(AttributeError):  # PEFT's note of what is there: it loads no weights of a name in it
                del self._base.model.peft_config
            return
        with suppress(KeyError):
            del self._model.peft_config[name]
        for layer in self._model.modules():
            if isinstance(layer, LoraLayer):
                layer.delete_adapter(name)

    def _take_over(self) -> None:
        self._switch = AdapterSwitch(self._model, dtype=getattr(torch, self._base.precision))
        self._switch.choose(self._chosen)

    def _fit(self, name: str) -> Fit:
        layout = self._registry.check(name, self._identity)
        card, path = self._registry.card(name), self._registry.find(name)
        return Fit(
            path=path,
            memory_bytes=layout.parameters * _BYTES_A_PARAMETER,
            layout=layout,
            temperature=_number(card, "calibration", "temperature", path) or 1.0,
            damage_threshold=_number(card, "detection", "threshold", path),
        )

    def _make_room(self, who: str, needed_bytes: int, keep: Sequence[str]) -> None:
        if self._limit_bytes is None:
            return
        takes = f"{who} takes {needed_bytes:,} bytes in memory"
        if needed_bytes > self._limit_bytes:
            raise RefineError(
                f"{takes}, more than the limit of {self._limit_bytes:,} for all adapters; raise the limit"
            )
        for other in self.names:
            if self._loaded_bytes() + needed_bytes <= self._limit_bytes:
                return
            if other not in keep and other not in self._in_use:
                self.drop(other)
        if self._loaded_bytes() + needed_bytes > self._limit_bytes:
            raise RefineError(
                f"{takes}, and those in use leave less of the limit of {self._limit_bytes:,}; raise the limit, or "
                "leave the `using` block around this call first"
            )

    def _loaded_bytes(self) -> int:
        return sum(fit.memory_bytes for fit in self._loaded.values())


def peft_name(domain: str) -> str:
    """The name that PEFT is given for a domain's adapter: `v1.2` and `keys` are none that a torch module takes."""
    return "domain-" + domain.replace(".", "%2E")  # no name has a %


def _number(card: dict[str, Any], part: str, key: str, path: Path) -> float | None:
    values = card.get(part) or {}
    value = values.get(key) if isinstance(values, dict) else values
    if value is None:
        return None
    # A whole number may be too large for a float, and JSON's own Infinity and NaN are read too.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    least, most = (TEMPERATURES[0], TEMPERATURES[-1]) if key == "temperature" else (-math.inf, math.inf)
    if not is_number or not least <= value <= most:
        bounds = f" from {least:g} to {most:g}" if math.isfinite(least) else ""
        raise RefineError(
            f"{path / CARD_FILE}: {part}.{key} must be a number{bounds}, found {short(value)}; train it anew"
        )
    return float(value)


def _alike(_adapters: Sequence[str | None]) -> Assign:
    """Every row uses the same adapter: nothing to say."""
    return _ignore


def _ignore(_texts: torch.Tensor) -> None:
    pass
