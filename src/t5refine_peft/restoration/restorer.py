"""Restorer: one base in memory, many adapters on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from peft import PeftModel
from transformers import PreTrainedModel

from t5refine_peft.config import Quantization
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.lora import load_adapted
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.restoration.decoding import Answer, decode_gaps
from t5refine_peft.restoration.gaps import Gap, Window, check_ranges, find_gaps, fit, make_windows

MAX_SOURCE_TOKENS = 512
"""The longest text that T5 was trained to read at once."""


@dataclass(frozen=True)
class Candidate:
    """An answer to a gap and its probability by the model, from 0 to 1."""

    text: str
    score: float


@dataclass(frozen=True)
class RestoredGap:
    """A filled gap: `start` and `end` are characters of the restored text, `text` is what stands there."""

    start: int
    end: int
    text: str
    score: float
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Restoration:
    """A text with its gaps filled; everything outside the gaps is the user's, to the character."""

    text: str
    gaps: tuple[RestoredGap, ...]


class Restorer:
    """Fills gaps in texts with a base model and the adapters of their domains.

    >>> restorer = Restorer("google/mt5-base", adapters_dir="adapters")      # doctest: +SKIP
    >>> restorer.restore("He was given ___ for oedema.", adapter="cardiology").text    # doctest: +SKIP
    'He was given furosemide for oedema.'

    Calls from several threads follow one another.
    """

    def __init__(
        self,
        base: str | Path | Base,
        *,
        adapters_dir: str | Path = "adapters",
        quantization: Quantization | None = None,
        device: str | None = None,
    ) -> None:
        """Take a base that is loaded, or load one as `load_base` does."""
        self._base = base if isinstance(base, Base) else load_base(base, quantization=quantization, device=device)
        self._registry = AdapterRegistry(adapters_dir)
        self._model: PeftModel | None = None
        self._default: str | None = None
        self._lock = threading.RLock()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters in memory."""
        return tuple(self._model.peft_config) if self._model is not None else ()

    def load_adapter(self, name: str) -> None:
        """Take an adapter into memory, if it is not there yet; the base is not loaded again.

        Raises:
            RefineError: there is no such adapter, or it was made for another base.
        """
        self._loaded(name)

    def _loaded(self, name: str) -> PeftModel:
        """The model with the adapter `name` in memory."""
        with self._lock:
            if self._model is not None and name in self.adapters:
                return self._model
            path = self._registry.find(name)
            self._registry.check_base(name, base_name=self._base.name, base_fingerprint=self._base.fingerprint)
            if self._model is None:
                self._model = load_adapted(self._base.model, path, name=name)
                self._model.eval()
            else:
                self._model.load_adapter(str(path), adapter_name=name)
            return self._model

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter from memory; on disk it stays.

        Raises:
            RefineError: it is not in memory.
        """
        with self._lock:
            if self._model is None or name not in self.adapters:
                raise RefineError(
                    f"the adapter {name!r} is not loaded; loaded are: {', '.join(self.adapters) or 'none'}"
                )
            if len(self.adapters) == 1:
                self._model.unload()
                self._model = None
            else:
                self._model.delete_adapter(name)
            self._default = None if self._default == name else self._default

    def set_adapter(self, name: str | None) -> None:
        """Choose the adapter for calls that name none; None is the base alone."""
        if name is not None:
            self.load_adapter(name)
        self._default = name

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context, calls that name no adapter use the base alone."""
        with self._lock:
            default, self._default = self._default, None
            try:
                yield
            finally:
                self._default = default

    @overload
    def restore(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        adapter: str | None = ...,
        gap: str | None = ...,
        gaps: Sequence[Sequence[tuple[int, int]]] | None = ...,
        num_candidates: int = ...,
        max_gap_tokens: int = ...,
        batch_size: int = ...,
    ) -> Restoration: ...  # a str is a Sequence[str] too: this one goes first

    @overload
    def restore(
        self,
        texts: Sequence[str],
        *,
        adapter: str | None = ...,
        gap: str | None = ...,
        gaps: Sequence[Sequence[tuple[int, int]]] | None = ...,
        num_candidates: int = ...,
        max_gap_tokens: int = ...,
        batch_size: int = ...,
    ) -> list[Restoration]: ...

    def restore(
        self,
        texts: str | Sequence[str],
        *,
        adapter: str | None = None,
        gap: str | None = None,
        gaps: Sequence[Sequence[tuple[int, int]]] | None = None,
        num_candidates: int = 1,
        max_gap_tokens: int = 24,
        batch_size: int = 16,
    ) -> Restoration | list[Restoration]:
        """Fill the gaps in one text or several.

        Args:
            texts: texts with gaps: `<extra_id_0>`, `[MASK]`, `___`, `＿＿`, `□`, `{gap}`.
            adapter: the domain's adapter, loaded if it is not; None takes the one of `set_adapter`, else the base.
            gap: the only mark that is a gap; all others are text.
            gaps: for each text its gaps as character ranges (start, end), in order; then no mark is a gap.
            num_candidates: answers to each gap.
            max_gap_tokens: longest answer, in tokens.
            batch_size: windows in a batch.

        Returns:
            For one text its restoration, for several a list in their order.

        Raises:
            RefineError: no such adapter, or ranges that do not fit their text.
        """
        if isinstance(texts, str):
            return self.restore(
                [texts],
                adapter=adapter,
                gap=gap,
                gaps=gaps,
                num_candidates=num_candidates,
                max_gap_tokens=max_gap_tokens,
                batch_size=batch_size,
            )[0]
        if gap == "":
            raise RefineError("the gap mark is empty: expected the characters that stand for a gap, such as '???'")
        if gaps is not None and len(gaps) != len(texts):
            raise RefineError(
                f"gaps must hold a list of ranges for each text: expected {len(texts)}, found {len(gaps)}"
            )
        places = (
            [find_gaps(text, mark=gap) for text in texts]
            if gaps is None
            else [check_ranges(text, ranges) for text, ranges in zip(texts, gaps, strict=True)]
        )
        answers = self._answer(texts, places, adapter, num_candidates, max_gap_tokens, batch_size)
        return [
            self._put_together(text, found, filled) for text, found, filled in zip(texts, places, answers, strict=True)
        ]

    def _answer(
        self,
        texts: Sequence[str],
        places: Sequence[Sequence[Gap]],
        adapter: str | None,
        num_candidates: int,
        max_gap_tokens: int,
        batch_size: int,
    ) -> list[list[list[Answer]]]:
        """For each text, for each gap, its answers; windows of about one length are decoded together."""
        vocabulary = self._base.vocabulary
        windows: list[tuple[int, Window]] = [
            (number, window)
            for number, (text, found) in enumerate(zip(texts, places, strict=True))
            for window in make_windows(text, found, vocabulary, max_tokens=MAX_SOURCE_TOKENS)
        ]
        windows.sort(key=lambda item: len(item[1].input_ids))
        answers: list[list[list[Answer]]] = [[[] for _ in found] for found in places]
        with self.using(adapter or self._default) as model, self._base.autocast():
            for at in range(0, len(windows), batch_size):
                batch = windows[at : at + batch_size]
                decoded = decode_gaps(
                    model,
                    vocabulary,
                    [window.input_ids for _, window in batch],
                    [len(window.gaps) for _, window in batch],
                    num_candidates=num_candidates,
                    max_gap_tokens=max_gap_tokens,
                )
                for (number, window), filled in zip(batch, decoded, strict=True):
                    for gap, candidates in zip(window.gaps, filled, strict=True):
                        answers[number][gap] = candidates
        return answers

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[PreTrainedModel]:
        """Within this context, and for this thread alone, the model with `adapter` on it; None gives the base alone."""
        with self._lock:
            if adapter is not None:
                model = self._loaded(adapter)
                model.set_adapter(adapter)
                yield model
            elif self._model is not None:
                with self._model.disable_adapter():
                    yield self._model
            else:
                yield self._base.model

    def _put_together(self, text: str, gaps: Sequence[Gap], answers: Sequence[Sequence[Answer]]) -> Restoration:
        decode = self._base.vocabulary.decode
        restored = ""
        filled = []
        reached = 0
        for number, (gap, candidates) in enumerate(zip(gaps, answers, strict=True)):
            restored += text[reached : gap.start]
            next_gap = gaps[number + 1].start if number + 1 < len(gaps) else len(text)
            after = text[gap.end : next_gap]
            fitted = tuple(Candidate(fit(decode(a.ids), restored, after), a.probability) for a in candidates)
            start = len(restored)
            restored += fitted[0].text
            filled.append(RestoredGap(start, len(restored), fitted[0].text, fitted[0].score, fitted))
            reached = gap.end
        return Restoration(restored + text[reached:], tuple(filled))
