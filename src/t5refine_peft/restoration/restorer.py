"""Restorer: one base in memory, many adapters on it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from transformers import PreTrainedModel

from t5refine_peft.config import Quantization
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.restoration.adapters import AdapterPool
from t5refine_peft.restoration.assembly import put_together
from t5refine_peft.restoration.constraints import MAX_GAP_TOKENS
from t5refine_peft.restoration.decoding import Decoding
from t5refine_peft.restoration.encoding import EncoderCache
from t5refine_peft.restoration.gaps import Gap, check_ranges, find_gaps
from t5refine_peft.restoration.reader import Reader
from t5refine_peft.restoration.results import Candidate, Restoration, RestoredGap
from t5refine_peft.restoration.rules import GlossaryChoice, RuleBook

__all__ = ["Candidate", "Restoration", "RestoreOptions", "RestoredGap", "Restorer"]

BATCH_TOKENS = 4096
"""Source tokens in a batch, padding counted."""
_TEXTS_AT_ONCE = 512
"""So many texts of a stream are sorted into batches together."""


class RestoreOptions(TypedDict, total=False):
    """The options of `Restorer.restore`, where they are documented."""

    adapter: str | Sequence[str | None] | None
    gap: str | None
    gaps: Sequence[Sequence[tuple[int, int]]] | None
    glossary: GlossaryChoice
    glossary_bias: float
    detect: bool
    detect_threshold: float | None
    num_candidates: int
    decoding: Decoding | None
    max_gap_tokens: int
    count_marks: bool
    min_score: float
    batch_tokens: int


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
        max_adapter_bytes: int | None = None,
        encoder_cache_bytes: int = 64 * 1024**2,
    ) -> None:
        """Load the base; adapters are loaded when they are first used.

        Args:
            base: a directory, hub id, `builtin:mt5-mini`, or a base of `load_base`.
            adapters_dir: where adapters lie.
            quantization: as in `load_base`.
            device: as in `load_base`.
            max_adapter_bytes: memory for adapters; the least recently used are unloaded for others. None is no limit.
            encoder_cache_bytes: memory for what the encoder made of texts, for when they are decoded another way.
        """
        if encoder_cache_bytes < 0:
            raise RefineError(f"encoder_cache_bytes must be 0 or more, found {encoder_cache_bytes}")
        self._base = base if isinstance(base, Base) else load_base(base, quantization=quantization, device=device)
        self._cache = EncoderCache(limit_bytes=encoder_cache_bytes)
        self._pool = AdapterPool(
            self._base,
            AdapterRegistry(adapters_dir),
            limit_bytes=max_adapter_bytes,
            on_drop=self._cache.drop_adapter,
        )
        self._reader = Reader(self._base, self._pool, self._cache)
        self._rules = RuleBook(self._base.vocabulary)
        self._default: str | None = None
        self._thread = threading.local()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters in memory, the least recently used first."""
        return self._pool.names

    def load_adapter(self, name: str) -> None:
        """Take an adapter into memory, if it is not there yet; the base is not loaded again.

        Base, tokenizer, rank and shapes are compared before a weight is touched.

        Raises:
            RefineError: there is no such adapter, it was made for another base, or it is larger than the limit.
        """
        self._pool.load(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter from memory; on disk it stays.

        Raises:
            RefineError: it is not in memory.
        """
        self._pool.drop(name)
        self._default = None if self._default == name else self._default

    def set_adapter(self, name: str | None) -> None:
        """Choose the adapter for calls that name none; None is the base alone."""
        if name is not None:
            self.load_adapter(name)
        self._default = name

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context, and for this thread alone, calls that name no adapter use the base alone."""
        was = self._is_disabled
        self._thread.disabled = True
        try:
            yield
        finally:
            self._thread.disabled = was

    @property
    def _is_disabled(self) -> bool:
        return getattr(self._thread, "disabled", False)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[PreTrainedModel]:
        """Within this context, and for this thread alone, the model with `adapter` on it; None gives the base alone."""
        with self._pool.using([adapter]) as ready:
            yield ready.model

    @overload
    def restore(self, texts: str, **options: Unpack[RestoreOptions]) -> Restoration: ...  # type: ignore[overload-overlap]

    @overload
    def restore(self, texts: Sequence[str], **options: Unpack[RestoreOptions]) -> list[Restoration]: ...

    def restore(
        self,
        texts: str | Sequence[str],
        *,
        adapter: str | Sequence[str | None] | None = None,
        gap: str | None = None,
        gaps: Sequence[Sequence[tuple[int, int]]] | None = None,
        glossary: GlossaryChoice = None,
        glossary_bias: float = math.inf,
        detect: bool = False,
        detect_threshold: float | None = None,
        num_candidates: int = 1,
        decoding: Decoding | None = None,
        max_gap_tokens: int = MAX_GAP_TOKENS,
        count_marks: bool = False,
        min_score: float = 0.0,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Restoration | list[Restoration]:
        """Fill the gaps in one text or several.

        Args:
            texts: texts with gaps: `<extra_id_0>`, `[MASK]`, `___`, `＿＿`, `□`, `{gap}`. Each stands for a gap in the
                order of the text, whatever its number.
            adapter: the domain's adapter, or one for each text, loaded if it is not; None takes the one of
                `set_adapter`, else the base.
            gap: the only mark that is a gap; all others are text.
            gaps: for each text its gaps as character ranges (start, end), in order; then no mark is a gap.
            glossary: terms to answer with: one glossary for all, one a text, or one for each given gap of each text.
            glossary_bias: by how many nats terms are favoured over other answers; infinity allows terms alone, in the
                gaps that are given: damage that is found may be any word.
            detect: look for damage that no mark tells of, too.
            detect_threshold: words whose least probable token has a log-probability below this are damage, in nats;
                None takes the adapter's own, fitted in training.
            num_candidates: answers to each gap.
            decoding: `Decoding.greedy()`, `.beam()` or `.sampling()`; None is greedy for one candidate, else by beams.
            max_gap_tokens: longest answer, in tokens.
            count_marks: fill □ and ＿, and ranges, with exactly as many characters as they are.
            min_score: leave gaps open whose best answer is less probable: what stood there stays, and an empty range
                becomes `___`.
            batch_tokens: source tokens in a batch, padding counted.

        Returns:
            For one text its restoration, for several a list in their order.

        Raises:
            RefineError: no such adapter, ranges that do not fit their text, or a glossary without a fitting term.
        """
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else texts
        odd = [bytes] if isinstance(texts, bytes) else [type(text) for text in texts if not isinstance(text, str)]
        if odd:
            raise RefineError(f"texts must be strings, found {odd[0].__name__}")
        if not isinstance(num_candidates, int) or num_candidates < 1:
            raise RefineError(f"num_candidates must be a whole number from 1 on, found {num_candidates}")
        if not isinstance(decoding, Decoding | None):
            raise RefineError(f"decoding must be Decoding.greedy(), .beam() or .sampling(), found {decoding!r}")
        if not 0 <= min_score <= 1:
            raise RefineError(f"min_score must lie between 0 and 1, found {min_score}")
        if detect_threshold is not None and math.isnan(detect_threshold):
            raise RefineError("detect_threshold must be a number of nats, found nan")
        adapters = self._adapters(adapter, len(texts))
        for name in dict.fromkeys(adapters):  # even where a text has no gap for it to answer
            if name is not None:
                self._pool.fit(name)
        places = _places(texts, gap, gaps)
        if detect:
            found = self._reader.find_damage(
                texts, places, adapters, threshold=detect_threshold, batch_tokens=batch_tokens
            )
            places = [sorted([*a, *b], key=_place) for a, b in zip(places, found, strict=True)]
        rules = self._rules.rules(
            texts,
            places,
            glossary=glossary,
            term_bias=glossary_bias,
            max_gap_tokens=max_gap_tokens,
            count_marks=count_marks,
        )
        answers = self._reader.answer(
            texts,
            places,
            adapters,
            rules,
            # A term is found with its word mark and without, which mostly makes the same text.
            num_candidates=num_candidates * 2 if num_candidates > 1 and glossary is not None else num_candidates,
            decoding=decoding,
            batch_tokens=batch_tokens,
        )
        decode = self._base.vocabulary.decode
        restored = [
            put_together(
                text, found, filled, decode=decode, rules=own, min_score=min_score, num_candidates=num_candidates
            )
            for text, found, filled, own in zip(texts, places, answers, rules, strict=True)
        ]
        return restored[0] if single else restored

    def restore_stream(self, texts: Iterable[str], **options: Unpack[RestoreOptions]) -> Iterator[Restoration]:
        """Restore any number of texts in constant memory, in order; see `restore`.

        `adapter` is one for all texts, and `gaps`, which goes by text, is not taken.
        """
        if options.get("gaps") is not None or not isinstance(options.get("adapter"), str | None):
            raise RefineError("a stream takes one adapter for all texts, and marks for gaps; call restore for others")
        stream = iter(texts)
        while part := list(islice(stream, _TEXTS_AT_ONCE)):
            yield from self.restore(part, **options)

    def _adapters(self, adapter: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        default = None if self._is_disabled else self._default
        if adapter is None or isinstance(adapter, str):
            return [default if adapter is None else adapter] * count
        if len(adapter) != count:
            raise RefineError(f"adapter must be one name or one for each text: expected {count}, found {len(adapter)}")
        return [default if name is None else name for name in adapter]


def _place(gap: Gap) -> tuple[int, int]:
    return gap.start, gap.end


def _places(texts: Sequence[str], mark: str | None, gaps: Any) -> list[list[Gap]]:
    if mark == "":
        raise RefineError("the gap mark is empty: expected the characters that stand for a gap, such as '???'")
    if gaps is None:
        return [find_gaps(text, mark=mark) for text in texts]
    if len(gaps) != len(texts):
        raise RefineError(f"gaps must hold a list of ranges for each text: expected {len(texts)}, found {len(gaps)}")
    return [check_ranges(text, ranges) for text, ranges in zip(texts, gaps, strict=True)]
