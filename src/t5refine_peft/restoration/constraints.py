"""What may be decoded: every sentinel answered once and in order, each answer by the rule of its gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import NoNumberError
from t5refine_peft.restoration.trie import TermTrie

MAX_GAP_TOKENS = 24
"""The longest answer, in tokens, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class GapRule:
    """What the answer to a gap may be."""

    max_tokens: int = MAX_GAP_TOKENS
    """Longest answer; a term of the glossary and a character in bytes may be finished beyond it."""
    characters: int | None = None
    """Exactly so many characters, without a space among them; None leaves the length to the model."""
    terms: TermTrie | None = None
    """The glossary's terms."""
    term_bias: float = math.inf
    """By how many nats the log-probability of each of the terms is raised over all other answers; infinity allows the
    terms alone."""


class GapLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Allow only: first sentinel, its answer, second sentinel, its answer, ..., end mark.

    An answer shows at least one character, holds no broken character, and keeps the rule of its gap. What has been
    answered is read from the ids generated so far, so that beams may change places.
    """

    def __init__(self, vocabulary: Vocabulary, rules: Sequence[Sequence[GapRule]], *, one_gap: bool = False) -> None:
        """Take, for each text of the batch, the rules of its gaps.

        Args:
            vocabulary: the base's.
            rules: for each text, for each of its gaps.
            one_gap: a row is done with the gap that it is in: what closes that gap, the next sentinel or the end mark,
                counts as the end mark.
        """
        self._rules = rules
        self._one_gap = one_gap
        self._vocabulary = vocabulary
        self._sentinels = vocabulary.sentinel_ids
        self._order = {token: number for number, token in enumerate(vocabulary.sentinel_ids)}
        self._lengths = vocabulary.visible_characters
        self._bytes = vocabulary.byte_values
        text = np.ones(len(vocabulary), dtype=bool)
        text[list(vocabulary.sentinel_ids)] = False
        text[[vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id]] = False
        values = self._bytes
        space_or_control = (values >= 0) & (values <= 0x20) | (values == 0x7F)
        self._text = text & ~space_or_control & ((values < 0x80) | ((values >= 0xC2) & (values <= 0xF4)))
        self._unmarked = self._text & ~vocabulary.word_marked

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Put -inf on what is not allowed. input_ids: (rows, generated) with the start token; scores: (rows, head).

        Raises:
            NoNumberError: a score is no number, or infinite.
        """
        if not scores.max().isfinite():  # of NaN among others the largest is NaN
            raise NoNumberError
        allowed = np.zeros((len(input_ids), scores.shape[1]), dtype=bool)
        closing = np.zeros(len(input_ids), dtype=np.int64)
        lowered: list[tuple[int, np.ndarray, float]] = []
        rows_per_text = len(input_ids) // len(self._rules)
        for row, ids in enumerate(input_ids.tolist()):
            closing[row], penalty = self._allow(allowed[row], ids, self._rules[row // rows_per_text])
            if penalty is not None:
                lowered.append((row, *penalty))
        device = scores.device
        scores = scores.clone() if lowered else scores
        for row, kept, bias in lowered:
            scores[row, : len(kept)] -= bias * torch.from_numpy(~kept).to(device)
        scores = scores.masked_fill(~torch.from_numpy(allowed).to(device), -torch.inf)
        if not self._one_gap:
            return scores
        rows = torch.arange(len(scores), device=device)
        ends = torch.from_numpy(closing).to(device)
        closed = scores[rows, ends]
        scores[rows, ends] = -torch.inf
        scores[:, self._vocabulary.eos_id] = closed
        return scores

    def permits(self, answer: Sequence[int], gap: int, rules: Sequence[GapRule]) -> bool:
        """Whether a whole answer keeps the rule of its gap; beams go on with what is not allowed when nothing is."""
        ids = [self._sentinels[gap]]
        for token in [*answer, None]:
            allowed = np.zeros(len(self._text), dtype=bool)
            closing, _ = self._allow(allowed, ids, rules)
            if not allowed[closing if token is None else token]:
                return False
            ids.append(closing if token is None else token)
        return True

    def _allow(
        self, allowed: np.ndarray, ids: list[int], rules: Sequence[GapRule]
    ) -> tuple[int, tuple[np.ndarray, float] | None]:
        """Mark in `allowed`, (head,) bool, what may follow `ids`.

        Returns:
            The token that would close the gap, and where terms are favoured: which ids keep their score, (ids,) bool,
            and by how much the others are lowered.
        """
        eos = self._vocabulary.eos_id
        tail: list[int] = []
        answered = 0
        for token in reversed(ids):
            if token in self._order:
                answered = self._order[token] + 1
                break
            tail.append(token)
        tail.reverse()
        closing = self._sentinels[answered] if answered < len(rules) else eos
        if eos in tail:  # long done
            closing = eos
        if not answered or eos in tail:
            allowed[closing] = True
            return closing, None
        rule = rules[answered - 1]
        node = rule.terms.node(tail) if rule.terms is not None else None
        strict = rule.terms is not None and math.isinf(rule.term_bias)
        if strict and node is not None:
            allowed[list(node.children)] = True
            allowed[closing] = node.term is not None
            return closing, None
        allowed[: len(self._text)], allowed[closing] = self._by_length(tail, rule)
        if node is None:
            return closing, None
        kept = np.zeros(len(self._text), dtype=bool)
        kept[list(node.children)] = True
        if tail and rule.characters is None:
            allowed[: len(self._text)] |= kept  # a term that has begun may be finished
        kept[closing] = node.term is not None
        # Only the difference counts within a step; what is lowered at the first token is the bonus of whole terms.
        return closing, (kept, rule.term_bias)

    def _by_length(self, tail: list[int], rule: GapRule) -> tuple[np.ndarray, bool]:
        """What may follow `tail`, (ids,) bool, and whether the gap may be closed."""
        begun = _unfinished(tail, self._bytes)
        if begun:
            low, high = _next_byte(begun)
            return (self._bytes >= low) & (self._bytes <= high), False
        shown = int(self._lengths[tail].sum())
        if rule.characters is not None:
            left = rule.characters - shown
            pieces = self._unmarked if tail else self._text
            return pieces & (self._lengths <= left) & ((self._lengths > 0) | (not tail)), left == 0
        if not shown:  # no answer of spaces alone
            return self._text & (self._lengths > 0) if tail else self._text, False
        return (self._text if len(tail) < rule.max_tokens else np.zeros_like(self._text)), True


def _unfinished(tail: Sequence[int], values: np.ndarray) -> list[int]:
    """The bytes at the end of `tail` that do not complete their character."""
    begun: list[int] = []
    for token in reversed(tail[-3:]):
        value = int(values[token])
        if value < 0x80:
            return []
        begun.insert(0, value)
        if value >= 0xC0:
            needed = 2 + (value >= 0xE0) + (value >= 0xF0)
            return begun if len(begun) < needed else []
    return []


def _next_byte(begun: list[int]) -> tuple[int, int]:
    """The bytes that may follow, first and last (The Unicode Standard 15, table 3-7)."""
    if len(begun) == 1:
        return {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(
            begun[0], (0x80, 0xBF)
        )
    return 0x80, 0xBF
