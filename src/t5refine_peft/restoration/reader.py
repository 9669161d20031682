"""Read texts in batches with the adapters of their domains: answer their gaps, find their damage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from t5refine_peft.errors import NoNumberError, RefineError
from t5refine_peft.modeling.base import Base
from t5refine_peft.restoration.adapters import AdapterPool
from t5refine_peft.restoration.batching import make_batches
from t5refine_peft.restoration.constraints import GapRule
from t5refine_peft.restoration.decoding import Answer, Decoding, decode_batch
from t5refine_peft.restoration.detection import damaged_gaps, find_words, make_probes, score_probes
from t5refine_peft.restoration.encoding import Encoded, EncoderCache, encode_batch
from t5refine_peft.restoration.gaps import Gap
from t5refine_peft.restoration.scoring import Assign
from t5refine_peft.restoration.windows import Window, make_windows


@dataclass(frozen=True)
class _Batch:
    """Windows that the encoder has read, ready to be decoded."""

    model: PreTrainedModel
    encoded: Encoded
    assign: Assign


class Reader:
    """A base with the adapters of a pool, over texts of any number and length.

    In all methods `adapters` has a name for each text, None for the base alone, and `places` the gaps of each text.
    """

    def __init__(self, base: Base, pool: AdapterPool, cache: EncoderCache) -> None:
        self._base = base
        self._pool = pool
        self._cache = cache

    def answer(
        self,
        texts: Sequence[str],
        places: Sequence[Sequence[Gap]],
        adapters: Sequence[str | None],
        rules: Sequence[Sequence[GapRule]],
        *,
        num_candidates: int,
        decoding: Decoding | None,
        batch_tokens: int,
    ) -> list[list[list[Answer]]]:
        """For each text, for each gap, its answers by the gap's rule; see `decode_batch`."""
        vocabulary = self._base.vocabulary
        windows = [
            (text, window)
            for text, gaps in enumerate(places)
            for window in make_windows(texts[text], gaps, vocabulary)
        ]  # fmt: skip
        readers = [adapters[text] for text, _ in windows]
        answers: list[list[list[Answer]]] = [[[] for _ in gaps] for gaps in places]
        for numbers in self._batches([window for _, window in windows], readers, batch_tokens):
            part = [windows[number] for number in numbers]
            names = [adapters[text] for text, _ in part]
            with self._read([window for _, window in part], names) as batch:
                try:
                    decoded = decode_batch(
                        batch.model,
                        vocabulary,
                        batch.encoded,
                        [[rules[text][gap] for gap in window.covered] for text, window in part],
                        num_candidates=num_candidates,
                        decoding=decoding,
                        temperatures=[self._temperature(name) for name in names],
                        assign=batch.assign,
                    )
                except NoNumberError:
                    raise NoNumberError(_who(names)) from None
            for (text, window), filled in zip(part, decoded, strict=True):
                for gap, candidates in zip(window.covered, filled, strict=True):
                    if gap in window.gaps:
                        answers[text][gap] = candidates
        return answers

    def find_damage(
        self,
        texts: Sequence[str],
        places: Sequence[Sequence[Gap]],
        adapters: Sequence[str | None],
        *,
        threshold: float | None,
        batch_tokens: int,
    ) -> list[list[Gap]]:
        """For each text the damage that no mark tells of.

        Raises:
            RefineError: no threshold is given and an adapter has none.
        """
        vocabulary = self._base.vocabulary
        if threshold is None:
            known = {name: self._threshold(name) for name in dict.fromkeys(adapters)}
            thresholds = [known[name] for name in adapters]
        else:
            thresholds = [threshold] * len(adapters)
        words = [find_words(text, gaps, vocabulary) for text, gaps in zip(texts, places, strict=True)]
        probes = [
            (text, probe)
            for text, gaps in enumerate(places)
            for probe in make_probes(texts[text], gaps, words[text], vocabulary)
        ]
        scores = [[0.0] * len(own) for own in words]
        readers = [adapters[text] for text, _ in probes]
        for numbers in self._batches([probe.window for _, probe in probes], readers, batch_tokens):
            part = [probes[number] for number in numbers]
            with self._read([probe.window for _, probe in part], [adapters[text] for text, _ in part]) as batch:
                judged = score_probes(
                    batch.model,
                    vocabulary,
                    batch.encoded,
                    [probe for _, probe in part],
                    [words[text] for text, _ in part],
                    batch.assign,
                )
            for (text, _), found in zip(part, judged, strict=True):
                if not all(map(math.isfinite, found.values())):
                    raise NoNumberError(_who([adapters[text]]))
                for word, score in found.items():
                    scores[text][word] = score
        return [
            damaged_gaps(own, judged, threshold=limit, given=gaps)
            for own, judged, limit, gaps in zip(words, scores, thresholds, places, strict=True)
        ]

    def _batches(self, windows: Sequence[Window], adapters: Sequence[str | None], batch_tokens: int) -> list[list[int]]:
        """Numbers of windows that are read together; adapters that fit into memory together share batches."""
        groups = self._pool.groups(adapters)
        kinds = [next(at for at, group in enumerate(groups) if name in group) for name in adapters]
        return make_batches(windows, batch_tokens=batch_tokens, kinds=kinds)

    @contextmanager
    def _read(self, windows: Sequence[Window], adapters: Sequence[str | None]) -> Iterator[_Batch]:
        """Run the encoder over a batch; within this context the model has the adapters on."""
        with self._pool.using(adapters) as ready, self._base.autocast(), torch.inference_mode():
            assign = ready.assign(adapters)
            assign(torch.arange(len(windows), device=self._base.device))
            encoded = encode_batch(
                ready.model,
                [window.input_ids for window in windows],
                pad_id=self._base.vocabulary.pad_id,
                cache=self._cache,
                adapters=adapters,
            )
            yield _Batch(ready.model, encoded, assign)

    def _temperature(self, adapter: str | None) -> float:
        return 1.0 if adapter is None else self._pool.fit(adapter).temperature

    def _threshold(self, adapter: str | None) -> float:
        threshold = None if adapter is None else self._pool.fit(adapter).damage_threshold
        if threshold is None:
            who = "the base alone" if adapter is None else f"the adapter {adapter!r}"
            raise RefineError(f"{who} has no threshold for damage: give detect_threshold, in nats, -8 say")
        return threshold


def _who(names: Sequence[str | None]) -> str:
    adapters = ", ".join(repr(name) for name in dict.fromkeys(names) if name is not None)
    return f"the adapter {adapters}" if adapters else "the base"
