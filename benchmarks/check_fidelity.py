"""What is lost between a text and its masked examples: nothing, counted on whole corpora.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/check_fidelity.py --data data

`--data` holds a directory for each corpus, with `corpus.txt` (a document a line) and, but for plain text, `terms.txt`.
For every line:

- the ids are compared with those of the `sentencepiece` library itself, unknown ids and its own with them; a line that
  spells a sentinel is counted apart, since there the library must differ;
- its passages, put together, are compared with the line, to the character;
- each passage is masked by the default recipe, rebuilt from the example alone (its inputs and labels), and compared;
- of each occurrence of a term that was chosen, no character may lie in a token that stays visible. That is counted from
  the character offsets of an encoding of its own, not from what masking says of itself.

The result goes to `benchmarks/results/fidelity.json`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sentencepiece

from t5refine_peft import CorruptionConfig, Glossary
from t5refine_peft.corpus.corruption import Example, corrupt
from t5refine_peft.corpus.passages import Passage, read_passages
from t5refine_peft.corpus.tokenization import Encoding, Vocabulary

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
BASE = Path(__file__).parents[1] / "src" / "t5refine_peft" / "assets" / "mt5-mini"
LINES_AT_A_TIME = 512


class Check:
    """Counts of one corpus."""

    def __init__(self, glossary: Glossary | None) -> None:
        self.counts: Counter[str] = Counter()
        self._glossary = glossary
        self._vocabulary = Vocabulary.load(BASE)
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(BASE / "spiece.model"))
        self._config = CorruptionConfig()

    def lines(self, lines: Sequence[str]) -> None:
        documents = read_passages(lines, vocabulary=self._vocabulary, glossary=self._glossary)
        for line, passages in zip(lines, documents, strict=True):
            self._ids(line, passages)
            self._passages(line, passages)

    def _ids(self, line: str, passages: Sequence[Passage]) -> None:
        ids = [token for passage in passages for token in passage.ids.tolist()]
        expected = self._processor.encode_as_ids(line)
        self.counts["lines"] += 1
        self.counts["characters"] += len(line)
        self.counts["unknown_ids"] += ids.count(self._vocabulary.unk_id)
        if set(expected) & set(self._vocabulary.sentinel_ids):
            self.counts["lines_that_spell_a_sentinel"] += 1
        else:
            self.counts["lines_with_sentencepiece_ids"] += ids == expected

    def _passages(self, line: str, passages: Sequence[Passage]) -> None:
        joined = "".join(line[passage.start : passage.end] for passage in passages)
        self.counts["lines_put_together"] += joined == line or not line.strip()
        encoding = self._vocabulary.encode(line)
        reached = 0
        for passage in passages:
            own = slice(reached, reached + len(passage.ids))
            reached = own.stop
            if len(passage.ids) < 2:
                continue
            example = corrupt(
                passage.ids,
                word_starts=passage.word_starts,
                term_spans=[(first, last, term) for first, last, term in passage.term_spans.tolist()],
                vocabulary=self._vocabulary,
                config=self._config,
                rng=np.random.default_rng([0, self.counts["passages"]]),
            )
            self.counts["passages"] += 1
            self.counts["passages_rebuilt"] += self._rebuilt(example) == passage.ids.tolist()
            self._terms(line, encoding, own, example)

    def _rebuilt(self, example: Example) -> list[int]:
        """The passage, from inputs and labels alone."""
        sentinels = set(self._vocabulary.sentinel_ids)
        fillings: dict[int, list[int]] = {}
        at = -1
        for token in example.labels[:-1].tolist():
            if token in sentinels:
                fillings[at := token] = []
            else:
                fillings[at].append(token)
        return [piece for token in example.input_ids[:-1].tolist() for piece in fillings.get(token, (token,))]

    def _terms(self, line: str, encoding: Encoding, own: slice, example: Example) -> None:
        if not example.terms or self._glossary is None:
            return
        starts, ends = encoding.starts[own], encoding.ends[own]
        visible = np.ones(len(starts), dtype=bool)
        for start, end in example.spans:
            visible[start:end] = False
        matches = {(match.start, match.term): match for match in self._glossary.find(line)}
        for first, last, term in example.terms:
            covered = range(starts[first], ends[last - 1])  # another that only shares a piece reaches beyond
            found = [matches[at, term] for at in covered if (at, term) in matches]
            found = [match for match in found if match.end <= covered.stop]
            self.counts["chosen_occurrences"] += 1
            self.counts["chosen_occurrences_hidden"] += bool(found) and not any(
                ((starts < match.end) & (ends > match.start) & visible).any() for match in found
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--corpus", action="append", help="names under --data, whose counts replace earlier ones; or all"
    )
    options = parser.parse_args()
    corpora: dict[str, dict[str, int]] = {}
    if options.corpus and RESULTS.exists():
        corpora = json.loads(RESULTS.read_text(encoding="utf-8"))["corpora"]
    for path in sorted(options.data.glob("*/corpus.txt")):
        if options.corpus and path.parent.name not in options.corpus:
            continue
        terms = path.with_name("terms.txt")
        check = Check(Glossary.load(terms) if terms.exists() else None)
        lines = path.read_text(encoding="utf-8").splitlines()
        for at in range(0, len(lines), LINES_AT_A_TIME):
            check.lines(lines[at : at + LINES_AT_A_TIME])
        corpora[path.parent.name] = dict(check.counts)
        print(path.parent.name, dict(check.counts), flush=True)
    total: Counter[str] = Counter()
    for counts in corpora.values():
        total.update(counts)
    shares = {
        "lines_with_sentencepiece_ids": total["lines_with_sentencepiece_ids"]
        / (total["lines"] - total["lines_that_spell_a_sentinel"]),
        "lines_put_together": total["lines_put_together"] / total["lines"],
        "passages_rebuilt": total["passages_rebuilt"] / total["passages"],
        "chosen_occurrences_hidden": total["chosen_occurrences_hidden"] / total["chosen_occurrences"],
    }
    found = {
        "shares": shares,
        "total": dict(total),
        "corpora": corpora,
        "tokenizer": "builtin:mt5-mini",
        "versions": {name: version(name) for name in ("sentencepiece", "numpy")},
    }
    print(json.dumps(shares, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
