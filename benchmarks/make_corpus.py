"""Write a corpus of any size, half English and half Chinese by bytes, with a term list, free of duplicates.

    python benchmarks/make_corpus.py --output /tmp/corpus --gigabytes 1

The words are those of the everyday tables, drawn by Zipf's law and strung to sentences of chance: it reads as nonsense,
but its pieces, lengths and terms are those of text, and no two documents are alike. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from mini_text import everyday_documents

_DOCUMENTS_AT_ONCE = 2000
_WORDS_OF_DOCUMENT = (80, 400)
_TERM_SHARE = 0.04
"""Of words: about ten terms a passage of 256 tokens."""
TERMS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder, made new")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of 10^9 bytes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_corpus(options.output, size_bytes=round(options.gigabytes * 1e9), seed=options.seed)


def write_corpus(folder: Path, *, size_bytes: int, seed: int) -> None:
    """Write `en.txt` and `zh.txt`, a document a line, and `terms.txt` beside the folder `texts` that holds them."""
    rng = np.random.default_rng(seed)
    (folder / "texts").mkdir(parents=True)
    terms: list[str] = []
    for language, join, full_stop in (("en", " ", ". "), ("zh", "", "。")):
        words = _words(language)
        own = sorted({join.join(rng.choice(words, 2 if language == "en" else 3)) for _ in range(TERMS // 2)})
        terms += own
        written = 0
        with (folder / "texts" / f"{language}.txt").open("wb") as stream:
            while written < size_bytes // 2:
                lines = _documents(words, np.array(own), join, full_stop, rng)
                written += stream.write("".join(lines).encode())
    (folder / "terms.txt").write_text("\n".join(terms) + "\n", encoding="utf-8")


def _words(language: str) -> np.ndarray:
    """The words of the everyday texts, in Chinese their runs of two characters, in an order of chance."""
    texts = everyday_documents(3000, split="train", seed=0, language=language)
    pattern = r"[a-z]{2,}" if language == "en" else r"[\u4e00-\u9fff]{2}"
    found = sorted({word for text in texts for word in re.findall(pattern, text.lower())})
    return np.random.default_rng(1).permutation(np.array(found))


def _documents(words: np.ndarray, terms: np.ndarray, join: str, full_stop: str, rng: np.random.Generator) -> list[str]:
    lengths = rng.integers(*_WORDS_OF_DOCUMENT, size=_DOCUMENTS_AT_ONCE)
    total = int(lengths.sum())
    shares = np.cumsum(1 / (np.arange(len(words)) + 2.7))  # Zipf's law as Mandelbrot has it
    drawn = words[np.searchsorted(shares, rng.random(total) * shares[-1])].astype(object)
    is_term = rng.random(total) < _TERM_SHARE
    drawn[is_term] = rng.choice(terms, int(is_term.sum()))
    drawn[rng.random(total) < 0.07] += full_stop.strip()
    return [join.join(part) + full_stop.strip() + "\n" for part in np.split(drawn, np.cumsum(lengths)[:-1])]


if __name__ == "__main__":
    main()
