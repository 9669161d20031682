"""How fast text becomes model-ready ids with its terms found, and how fast passages are masked, on one core.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_corpus.py --data data

`--data` holds a directory for each corpus, with `corpus.txt` (a document a line) and `terms.txt`. The theory:

- Nothing can be faster than SentencePiece's ids, which one encoding of each text needs; offsets follow from the pieces'
  lengths, and are quicker so than SentencePiece's own. The rest (terms, words, passages) should cost about as much
  again, and the same for any number of terms: one pass of an Aho-Corasick automaton finds them all. What grows is the
  matches: the longer lists here are drawn from the text itself, so that nearly all of their terms occur.
- The predecessor's method searches each passage once for every term, by a regular expression that is compiled anew
  (Python caches 512 of them), and finds a match's tokens by encoding the text before it and the text up to its end. So
  it slows down in proportion to the terms. It is written out here plainly, with SentencePiece in place of
  transformers' slower tokenizer, and once more with its expressions compiled beforehand, which it did not do.
- Masking a passage of 256 tokens takes about 15 spans: some tens of array operations of about a microsecond each.

Every figure is processor time in this process, the best of several rounds in turn, so that other work on the machine
weighs little. The result goes to `benchmarks/results/corpus.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import sentencepiece
import torch

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.passages import read_passages
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.corpus.tokenization import Vocabulary

RESULTS = Path(__file__).parent / "results" / "corpus.json"
BASE = Path(__file__).parents[1] / "src" / "t5refine_peft" / "assets" / "mt5-mini"
TERMS = (100, 2_000, 20_000)
CHARACTERS = 200_000
DOCUMENTS_AT_A_TIME = 256
ROUNDS = 3
PASSAGE_TOKENS = 256
BATCH = 16


def best_seconds(work: Sequence[Callable[[], object]]) -> list[float]:
    """Processor seconds of each piece of work, the best of several rounds in which all take turns."""
    best = [float("inf")] * len(work)
    for _ in range(ROUNDS):
        for number, run in enumerate(work):
            started = time.process_time()
            run()
            best[number] = min(best[number], time.process_time() - started)
    return best


def term_lists(path: Path, lines: Sequence[str]) -> dict[int, list[str]]:
    """Lists of each size: the domain's own terms first, then runs of two or three words, or three to six characters."""
    terms = dict.fromkeys(path.read_text(encoding="utf-8").splitlines())
    rng = random.Random(0)
    spaced = sum(line.count(" ") for line in lines) > sum(map(len, lines)) / 20
    while len(terms) < max(TERMS):
        line = rng.choice(lines)
        parts = line.split() if spaced else list(line)
        size = rng.randint(2, 3) if spaced else rng.randint(3, 6)
        at = rng.randrange(max(1, len(parts) - size))
        run = (" " if spaced else "").join(parts[at : at + size])
        if run.replace(" ", "").isalpha():
            terms[run] = None
    return {count: list(terms)[:count] for count in TERMS}


def predecessor_passages(lines: Iterable[str]) -> Iterator[str]:
    """Up to ten paragraphs glued without a space, up to 440 characters."""
    passage, paragraphs = "", 0
    for line in lines:
        if paragraphs == 10 or len(passage) + len(line) > 440:
            if passage:
                yield passage
            passage, paragraphs = "", 0
        passage, paragraphs = passage + line[:440], paragraphs + 1


def predecessor(
    passage: str, finders: Sequence[Callable[[str], Iterator[re.Match[str]]]], encode: Callable[[str], list[int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and token spans of a passage by the predecessor's method."""
    spans = [
        (len(encode(passage[: match.start()])), len(encode(passage[: match.end()])))
        for find in finders
        for match in find(passage)
    ]
    return encode(passage), spans


def predecessor_speed(lines: Sequence[str], terms: Sequence[str], encode: Any, *, compiled: bool) -> float:
    """Characters a second, over as many passages as fit into some seconds."""
    if compiled:
        finders = [re.compile(re.escape(term)).finditer for term in terms]
    else:
        finders = [lambda text, term=term: re.finditer(re.escape(term), text) for term in terms]
    characters, started = 0, time.process_time()
    for passage in predecessor_passages(lines):
        predecessor(passage, finders, encode)
        characters += len(passage)
        if time.process_time() - started > 3:
            break
    return characters / (time.process_time() - started)


def encoding_speeds(lines: Sequence[str], vocabulary: Vocabulary, lists: dict[int, list[str]]) -> dict[str, Any]:
    """Characters a second of SentencePiece alone, of the library and of the predecessor, for each number of terms."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(BASE / "spiece.model"))
    glossaries = {count: Glossary(terms) for count, terms in lists.items()}
    batches = [lines[at : at + DOCUMENTS_AT_A_TIME] for at in range(0, len(lines), DOCUMENTS_AT_A_TIME)]
    characters = sum(map(len, lines))

    def ours(glossary: Glossary) -> int:
        return sum(
            len(passage.term_spans)
            for batch in batches
            for document in read_passages(batch, vocabulary=vocabulary, glossary=glossary, max_tokens=PASSAGE_TOKENS)
            for passage in document
        )

    found = {count: ours(glossary) for count, glossary in glossaries.items()}  # and everything is warm
    ids_alone, alone, *seconds = best_seconds(
        [
            lambda: [processor.encode_as_ids(line) for line in lines],
            lambda: [processor.encode_as_offset_mapping(line) for line in lines],
            *(lambda glossary=glossary: ours(glossary) for glossary in glossaries.values()),
        ]
    )
    rows = {}
    for (count, terms), own in zip(lists.items(), seconds, strict=True):
        slow = predecessor_speed(lines, terms, processor.encode, compiled=False)
        compiled = predecessor_speed(lines, terms, processor.encode, compiled=True)
        rows[count] = {
            "characters_per_second": round(characters / own),
            "predecessor_characters_per_second": round(slow),
            "predecessor_compiled_characters_per_second": round(compiled),
            "times_the_predecessor": round(characters / own / slow),
            "terms_found": found[count],
        }
    return {
        "characters": characters,
        "sentencepiece_ids_characters_per_second": round(characters / ids_alone),
        "sentencepiece_characters_per_second": round(characters / alone),
        "terms": rows,
        "speed_at_20000_terms_by_100": round(seconds[0] / seconds[-1], 3),
    }


def collator_speeds(lines: Sequence[str], vocabulary: Vocabulary, lists: dict[int, list[str]]) -> dict[str, Any]:
    """Microseconds a passage of about 256 tokens in batches of 16, masked, and read from the dataset and masked."""
    documents = [" ".join(lines[at : at + 20]) for at in range(0, len(lines), 20)]
    rows = {}
    for count, terms in lists.items():
        glossary = Glossary(terms)
        prepared = prepare_rows(documents, vocabulary=vocabulary, glossary=glossary, max_tokens=PASSAGE_TOKENS + 1)
        full = [n for n, length in enumerate(prepared["length"]) if length >= PASSAGE_TOKENS * 15 // 16][: BATCH * 40]
        dataset = CorruptionDataset(prepared.select(full), fresh=True)
        collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig(), term_weights=glossary.weights)
        starts = range(0, len(full) - BATCH + 1, BATCH)
        batches = [[dataset[n] for n in range(at, at + BATCH)] for at in starts]
        masked, read = best_seconds(
            [
                lambda batches=batches, collator=collator: [collator(batch) for batch in batches],
                lambda dataset=dataset, starts=starts: [
                    dataset.__getitems__(list(range(at, at + BATCH))) for at in starts
                ],
            ]
        )
        passages = len(batches) * BATCH
        rows[count] = {
            "mask_microseconds_per_passage": round(masked / passages * 1e6, 1),
            "read_microseconds_per_passage": round(read / passages * 1e6, 1),
            "mean_tokens": round(sum(len(item.ids) for batch in batches for item in batch) / passages, 1),
            "mean_terms": round(sum(len(item.term_spans) for batch in batches for item in batch) / passages, 1),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", action="append", help="names under --data; zh_legal and en_medical if none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    vocabulary = Vocabulary.load(BASE)
    found: dict[str, Any] = {"corpora": {}}
    for name in options.corpus or ["zh_legal", "en_medical"]:
        lines = (options.data / name / "corpus.txt").read_text(encoding="utf-8").splitlines()
        lists = term_lists(options.data / name / "terms.txt", lines)
        count = bisect_left(list(accumulate(map(len, lines))), CHARACTERS)
        found["corpora"][name] = {
            "encoding": encoding_speeds(lines[:count], vocabulary, lists),
            "collator": collator_speeds(lines[:count], vocabulary, lists),
        }
        print(name, json.dumps(found["corpora"][name], indent=1), flush=True)
    found["tokenizer"] = "builtin:mt5-mini"
    found["device"] = f"one core, {platform.machine()} CPU"
    found["versions"] = {
        name: version(name) for name in ("sentencepiece", "ahocorasick_rs", "numpy", "torch", "datasets")
    }
    found["versions"]["python"] = platform.python_version()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
