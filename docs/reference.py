"""Write the API reference, made from the docstrings, as HTML: `python docs/reference.py site` (extra `docs`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import t5refine_peft

_MODULES = (
    "corpus.collator",
    "corpus.term_lists",
    "evaluation.questions",
    "restoration.decoding",
    "training.callbacks",
)


def write_reference(directory: Path) -> None:
    """Write a page with the public names, and one for each module of which the documentation names something."""
    for name in t5refine_peft.__all__:
        setattr(t5refine_peft, name, getattr(t5refine_peft, name))  # pdoc sees no name that is resolved when first used
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("t5refine_peft", *(f"t5refine_peft.{module}" for module in _MODULES), output_directory=directory)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
