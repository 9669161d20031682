"""The code blocks of the documentation, and how they are run: in order, cheaply, and told of by page and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from markdown_it import MarkdownIt
from markdown_it.token import Token
from shell import run_shell

from t5refine_peft.cli import prepare
from t5refine_peft.demo import texts
from t5refine_peft.evaluation import confidence
from t5refine_peft.training.trainer import AdapterTrainer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "shell")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it stands.
        line: of its first line, from 1.
        language: behind the fence.
        text: what is in it.
        not_run: why it is not run, from the comment `<!-- not run: ... -->` above it; None where it is.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def run(self, where: Path, names: dict[str, Any]) -> None:
        """Run it in the folder `where`, which is the working directory; Python's names live on in `names`."""
        if self.language == "python":
            exec(compile("\n" * (self.line - 1) + self.text, str(self.page), "exec"), names)
            return
        done = run_shell(self.text, where)
        assert done.returncode == 0, f"{self.page}:{self.line}\n{done.stdout}\n{done.stderr}"


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(page, token.map[0] + 2, token.info, token.content, _reason(before))
        for before, token in pairwise([Token("", "", 0), *tokens])
        if token.type == "fence" and token.map is not None
    ]


def _reason(before: Token) -> str | None:
    found = _NOT_RUN.fullmatch(before.content.strip()) if before.type == "html_block" else None
    return found and found[1]


@contextmanager
def in_little() -> Iterator[None]:
    """Within this context training ends after two steps, and the demo's corpus and an adapter's measures are small."""
    real = AdapterTrainer.__init__

    def two_steps(self: AdapterTrainer, *arguments: Any, args: Any, **options: Any) -> None:
        args.max_steps, args.eval_steps, args.save_steps, args.logging_steps = 2, 1, 1, 1
        real(self, *arguments, args=args, **options)

    with (
        patch.object(AdapterTrainer, "__init__", two_steps),
        patch.object(texts, "TRAIN_DOCUMENTS", 50),
        patch.object(texts, "DAMAGED_DOCUMENTS", 3),
        patch.object(confidence, "_DAMAGED_PASSAGES", 4),
        patch.object(prepare, "_processors", lambda: 1),
    ):
        yield
