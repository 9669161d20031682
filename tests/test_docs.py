"""Every command and snippet of README.md, README.zh-CN.md and docs/ runs, in the order of its page."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
from snippets import PAGES, ROOT, RUN, in_little, read_blocks

import t5refine_peft
from t5refine_peft.modeling.location import base_directory

NAMES = {page.relative_to(ROOT).as_posix(): page for page in PAGES}
BLOCKS = {name: read_blocks(page) for name, page in NAMES.items()}
NOT_RUN = {"README.md": 1, "README.zh-CN.md": 1, "docs/README.md": 1}
"""Pages with blocks that can't run in a test, and how many: see the comment above each."""
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]*))?\)")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the commands are bash's")


def run_page(name: str, where: Path) -> None:
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patched, in_little():
        patched.chdir(where)
        for block in BLOCKS[name]:
            if block.language in RUN and block.not_run is None:
                block.run(where, names)


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tour of README.md leaves; in it `google/mt5-base` is the built-in base."""
    where = tmp_path_factory.mktemp("tour")
    run_page("README.md", where)
    (where / "google").mkdir()
    (where / "google" / "mt5-base").symlink_to(base_directory("builtin:mt5-mini"))
    return where


def test_the_tour_leaves_what_it_says(toured: Path):
    assert (toured / "adapters" / "cardiology" / "report.html").is_file()
    assert len((toured / "restored.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_the_chinese_tour(tmp_path: Path):
    run_page("README.zh-CN.md", tmp_path)
    assert (tmp_path / "adapters" / "contract_law" / "report.html").is_file()


@pytest.mark.parametrize("page", [name for name, page in NAMES.items() if page.parent != ROOT])
def test_a_page_runs_in_the_folder_of_the_tour(page: str, toured: Path, tmp_path: Path):
    run_page(page, shutil.copytree(toured, tmp_path / "tour", symlinks=True))


def test_what_is_not_run_has_a_reason_and_is_counted():
    found = Counter(name for name, blocks in BLOCKS.items() for block in blocks if block.not_run is not None)
    assert found == NOT_RUN


def test_no_block_is_left_out_by_its_language():
    assert {block.language for blocks in BLOCKS.values() for block in blocks} <= {*RUN, "text"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path):
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = page.parent / unquote(target)
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_figures_of_memory_are_those_of_the_benchmarks():
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    quantization, memory = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
        for name in ("quantization", "memory")
    )
    lines = [line for line in page.splitlines() if line.startswith("|")]
    for row in quantization:
        figures = f" {row['bits_a_weight']:.1f} | {row['more_than_bf16']:+.3f} |"
        assert any(line.startswith(f"| {row['scheme']} |") and figures in line for line in lines)
    for name, row in memory.items():
        size, passages, *_ = name.split()
        title = f"mT5-{size if size != 'xl' else 'XL'}" + (f", {passages} passages at once" if passages != "1" else "")
        assert f"| {title} | {row['planned_bytes'] / 2**30:.2f} | {row['tracked_bytes'] / 2**30:.2f} |" in page


def test_the_speeds_of_the_method_are_those_of_the_benchmark():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks" / "results" / "step.json").read_text()).values()
    grouped, plain = (sorted(row[kind]["ratio"] for row in rows) for kind in ("mixed", "mixed, not grouped"))
    assert f"{grouped[0]:.1f} to {grouped[-1]:.1f} times as fast" in page
    assert f"and {plain[0]:.1f} to {plain[-1]:.1f} times without" in page


def test_the_cut_runs_of_the_strategy_are_those_of_the_benchmark():
    page = (ROOT / "docs" / "strategy.md").read_text(encoding="utf-8")
    cuts = json.loads((ROOT / "benchmarks" / "results" / "kill_twenty.json").read_text())["cuts"]
    assert f"cut off at {len(cuts)} random moments" in page
    assert all(cut["identical"] for cut in cuts)


def test_every_page_is_linked_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.parent != ROOT and page.name != "README.md":
            assert f"]({page.name})" in index


@pytest.mark.parametrize("name", t5refine_peft.__all__)
def test_a_public_name_and_what_is_public_in_it_has_a_docstring(name: str):
    value = getattr(t5refine_peft, name)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}("), "dataclasses write one of their own where there is none"
    for attribute, member in vars(value).items() if inspect.isclass(value) else ():
        if not attribute.startswith("_") and (inspect.isroutine(member) or isinstance(member, property | classmethod)):
            assert inspect.getdoc(getattr(value, attribute)), attribute


def test_the_reference_shows_every_public_name(tmp_path: Path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from reference import write_reference
    finally:
        sys.path.pop(0)
    write_reference(tmp_path)
    page = (tmp_path / "t5refine_peft.html").read_text(encoding="utf-8")
    assert [name for name in t5refine_peft.__all__ if f'<section id="{name}">' not in page] == []
