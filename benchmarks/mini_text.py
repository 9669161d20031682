"""The text that the built-in base learns from, and its held-out measure: the exact match of single-word gaps."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.demo.generator import Split, Subject

EVERYDAY = Path(__file__).parent / "everyday"
MIN_TOKENS, MAX_TOKENS = 8, 96
HELD_OUT_LINES = 300
"""So many lines at the end of each corpus, whole documents for the most part, are never trained on."""
GAPS_OF_EACH_SET = 400
SPELLING_WEIGHT = 4
"""So many times a subject's share goes to the lists of long words, so that the model can read and write each."""
REPEAT_TOKENS = range(2, 9)
"""Lengths of the whole words that count as repeated where they stand twice in a passage of real text."""
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Passage:
    """A passage's tokens; the values of the generator's tables in it, or what real text says more than once."""

    ids: np.ndarray
    word_starts: np.ndarray
    term_spans: list[tuple[int, int, int]]
    repeats: list[tuple[int, int, int]]


class Passages:
    """Passages in order of length, so that a batch holds passages of about one length."""

    def __init__(self, passages: list[Passage]) -> None:
        self._passages = sorted(passages, key=lambda passage: len(passage.ids))
        self.lengths = np.array([len(passage.ids) for passage in self._passages])

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages)

    def near(self, length: int, count: int, rng: np.random.Generator) -> Iterator[Passage]:
        """Yield `count` different passages, drawn from the eight times as many whose length is next to `length`."""
        middle = int(rng.integers(*np.searchsorted(self.lengths, [length, length + 1])))
        low = int(np.clip(middle - 4 * count, 0, max(0, len(self.lengths) - 8 * count)))
        high = min(len(self.lengths), low + 8 * count)
        for index in rng.choice(np.arange(low, high), size=min(count, high - low), replace=False):
            yield self._passages[index]


def everyday_subjects(language: str = "*") -> list[Subject]:
    """The subjects of our own, of one language or of all."""
    return [Subject.load(path) for path in sorted(EVERYDAY.glob(f"{language}/*.toml"))]


def everyday_documents(count: int, *, split: Split, seed: int, language: str = "*") -> Iterator[str]:
    """Yield about `count` generated documents, as many of each subject; for training, of the spelling lists more."""
    subjects = everyday_subjects(language)
    more = SPELLING_WEIGHT if split == "train" else 1
    weights = [more if subject.name == "spelling" else 1 for subject in subjects]
    for subject, weight in zip(subjects, weights, strict=True):
        yield from subject.documents(-(-count * weight // sum(weights)), split=split, seed=seed)


def load_passages(
    vocabulary: Vocabulary, corpora: list[Path], everyday_share: float, *, seed: int
) -> tuple[Passages, dict[str, list[Passage]]]:
    """Training passages, and held-out sets by name.

    The terms of the generated text are all the values of its tables, so that corruption masks them whole.
    """
    real: list[Passage] = []
    held_out: dict[str, list[Passage]] = {}
    for path in corpora:
        lines = path.read_text(encoding="utf-8").splitlines()
        real += [
            replace(passage, repeats=repeated_words(passage.ids, passage.word_starts))
            for passage in _passages(lines[:-HELD_OUT_LINES], vocabulary)
        ]
        held_out[path.parent.name] = _passages(lines[-HELD_OUT_LINES:], vocabulary)
    count = round(len(real) * everyday_share / (1 - everyday_share)) if real else 100_000
    values = Glossary(value for subject in everyday_subjects() for value in subject.values())
    generated = _passages(everyday_documents(count, split="train", seed=seed), vocabulary, values)
    for language in ("en", "zh"):
        texts = everyday_documents(HELD_OUT_LINES, split="test", seed=seed + 1, language=language)
        held_out[f"everyday_{language}"] = _passages(texts, vocabulary)
    return Passages(real + generated), held_out


def _passages(texts: Iterable[str], vocabulary: Vocabulary, glossary: Glossary | None = None) -> list[Passage]:
    rows = prepare_rows(texts, vocabulary=vocabulary, glossary=glossary, max_tokens=MAX_TOKENS).with_format("numpy")
    passages = [
        Passage(row["ids"], row["word_starts"], [tuple(span) for span in row["term_spans"].tolist()], [])
        for row in rows
    ]
    return [passage for passage in passages if len(passage.ids) >= MIN_TOKENS]


def repeated_words(ids: np.ndarray, word_starts: np.ndarray) -> list[tuple[int, int, int]]:
    """Find the longest runs of whole words that stand at least twice, as (start, end, number of the run), in order."""
    borders = [*np.flatnonzero(word_starts).tolist(), len(ids)]
    runs: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for at, start in enumerate(borders):
        for end in borders[at + 1 :]:
            if end - start >= REPEAT_TOKENS.stop:
                break
            if end - start in REPEAT_TOKENS:
                runs.setdefault(tuple(ids[start:end].tolist()), []).append((start, end))
    taken = np.zeros(len(ids), dtype=bool)
    found = []
    for number, tokens in enumerate(sorted(runs, key=len, reverse=True)):
        free = [(start, end) for start, end in runs[tokens] if not taken[start:end].any()]
        if len(free) > 1:
            for start, end in free:
                if not taken[start:end].any():
                    taken[start:end] = True
                    found.append((start, end, number))
    return sorted(found)


def single_word_gap(
    passage: Passage, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Mask one word, punctuation never: input ids, label ids, the word; None where the passage has no word."""
    starts = np.flatnonzero(passage.word_starts)
    ends = np.append(starts[1:], len(passage.ids))
    words = [(s, e) for s, e in zip(starts, ends, strict=True) if _WORD.search(vocabulary.decode(passage.ids[s:e]))]
    if not words:
        return None
    start, end = words[int(rng.integers(len(words)))]
    sentinel, eos = vocabulary.sentinel_ids[0], vocabulary.eos_id
    inputs = np.concatenate([passage.ids[:start], [sentinel], passage.ids[end:], [eos]])
    labels = np.concatenate([[sentinel], passage.ids[start:end], [eos]])
    return inputs, labels, _normal(vocabulary.decode(passage.ids[start:end]))


def _normal(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold().strip()


@torch.inference_mode()
def held_out_exact_match(
    model: Any, held_out: dict[str, list[Passage]], vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    """Exact match of single-word gaps by greedy decoding, beside always answering the set's most frequent word.

    Greedy decoding gives exactly the label if, and only if, the arg-max after each of the label's prefixes is the
    label's next token: so one teacher-forced forward tells it, end of sequence included.
    """
    results = {}
    for name, items in held_out.items():
        rng = np.random.default_rng(0)
        gaps = [single_word_gap(passage, vocabulary, rng) for _ in range(3) for passage in items]
        gaps = [gap for gap in gaps if gap is not None][:GAPS_OF_EACH_SET]
        right = 0
        for at in range(0, len(gaps), 50):
            right += _right(model, gaps[at : at + 50], vocabulary.pad_id)
        words = Counter(word for _, _, word in gaps)
        results[name] = {
            "gaps": len(gaps),
            "exact_match": round(right / len(gaps), 4),
            "most_frequent_word": round(words.most_common(1)[0][1] / len(gaps), 4),
        }
    return results


def _right(model: Any, gaps: list[Any], pad_id: int) -> int:
    inputs = torch.nested.nested_tensor([torch.from_numpy(g[0]) for g in gaps], layout=torch.jagged)
    labels = torch.nested.nested_tensor([torch.from_numpy(g[1]) for g in gaps], layout=torch.jagged)
    input_ids = inputs.to_padded_tensor(pad_id).to(model.device)
    targets = labels.to_padded_tensor(-100).to(model.device)
    logits = model(
        input_ids=input_ids,
        attention_mask=(input_ids != pad_id).long(),
        decoder_input_ids=model._shift_right(targets),
    ).logits
    return int(((logits.argmax(-1) == targets) | (targets == -100)).all(1).sum())
