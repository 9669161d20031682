"""A large corpus prepared in little memory, interrupted twice and resumed; then opened again.

    python benchmarks/make_corpus.py --output /tmp/corpus --gigabytes 1
    python benchmarks/bench_preparation.py --corpus /tmp/corpus --work /tmp/prepared

What the theory says: a process holds one part of the corpus (8 million characters: their text, signatures and
passages), so that memory does not grow with the corpus but for 640 bytes a test document and 13 bytes a document; files
are mapped, and a second start reads the corpus once to tell that it is the same (SHA-256) and opens them.

Each start is a process of its own, whose resident memory, that of its children added, is looked at twice a second.
The interruptions are SIGINT, as Ctrl+C sends it. The result goes to `benchmarks/results/preparation.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_corpus
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.modeling.location import base_directory

RESULTS = Path(__file__).parent / "results" / "preparation.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of make_corpus.py")
    parser.add_argument("--work", type=Path, required=True, help="for the cache; what is in it is removed")
    parser.add_argument("--base", default="builtin:mt5-mini")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--one-start", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_start:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits its being ignored
        prepare(options)
        return
    shutil.rmtree(options.work, ignore_errors=True)
    size = sum(file.stat().st_size for file in (options.corpus / "texts").iterdir())
    parts = size // 11_000_000  # about so many: 8 million characters, of 1 byte in English and 3 in Chinese
    starts = [
        start("interrupted while reading", options, stop_at=(".documents-*/part-*.arrow", max(1, parts // 3))),
        start("interrupted while tokenising", options, stop_at=(".passages-*/part-*.json", max(1, parts // 3))),
        start("finished", options),
        start("opened", options),
    ]
    prepared = json.loads(next(options.work.glob("passages-*/prepared.json")).read_text(encoding="utf-8"))
    result = {
        "corpus_bytes": size,
        "base": options.base,
        "processes": options.processes,
        "starts": starts,
        "peak_resident_bytes": max(row["peak_resident_bytes"] for row in starts),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in starts), 1),
        "dataset_bytes": sum(f.stat().st_size for f in next(options.work.glob("passages-*")).rglob("*.arrow")),
        **{name: prepared[name] for name in ("documents", "passages", "tokens", "duplicates", "near_duplicates")},
        "terms_found": len(prepared["term_counts"]),
        "device": f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} core",
        "versions": {name: version(name) for name in ("datasets", "pyarrow", "sentencepiece", "rensa", "numpy")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def prepare(options: argparse.Namespace) -> None:
    """One start: what `t5refine prepare` does."""
    prepare_corpus(
        [options.corpus / "texts"],
        vocabulary=Vocabulary.load(base_directory(options.base)),
        glossary=Glossary.load(options.corpus / "terms.txt"),
        processes=options.processes,
        cache_dir=options.work,
    )


def start(name: str, options: argparse.Namespace, *, stop_at: tuple[str, int] | None = None) -> dict[str, Any]:
    """Run a start and watch its memory; send SIGINT when a pattern of files in the cache has so many matches."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *sys.argv, "--one-start"], stderr=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    peak = 0
    interrupted_at = None
    while process.poll() is None:
        peak = max(peak, resident_bytes(watched))
        if stop_at is not None and interrupted_at is None:
            found = len(list(options.work.glob(stop_at[0])))
            if found >= stop_at[1]:
                interrupted_at = found
                process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if (process.returncode == 0) != (stop_at is None) or (interrupted_at is None) != (stop_at is None):
        raise SystemExit(f"the start that should be {name} ended with {process.returncode}")
    row = {
        "name": name,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_resident_bytes": peak,
        "interrupted_after_parts": interrupted_at,
    }
    print(json.dumps(row), flush=True)
    return row


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and its children; pages that they share count for each."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


if __name__ == "__main__":
    main()
