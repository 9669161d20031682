"""A package imports only from lower floors, and nothing imports in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import t5refine_peft

ROOT = Path(t5refine_peft.__file__).parent
FLOORS = {
    "errors": 1,
    "config": 1,
    "config_file": 1,
    "storage": 1,
    "offline": 1,
    "corpus": 2,
    "registry": 2,
    "modeling": 3,
    "restoration": 4,
    "evaluation": 5,
    "training": 6,
    "demo": 7,
    "traps": 7,
    "doctor": 8,
    "cli": 9,
}


def imports(path: Path) -> set[str]:
    """The package's own modules that a file imports, deferred imports too, as dotted paths below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("t5refine_peft"):
            inner = node.module.removeprefix("t5refine_peft").lstrip(".")
            for alias in node.names:
                whole = f"{inner}.{alias.name}".lstrip(".")
                is_module = (ROOT / (whole.replace(".", "/") + ".py")).exists()
                found.add(whole if is_module else inner)
    return found - {""}


def modules() -> dict[str, set[str]]:
    files = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): imports(path) for path in files}


def test_every_module_has_a_floor_and_imports_from_lower_ones():
    for module, used in modules().items():
        own = module.split(".")[0]
        for other in used:
            theirs = other.split(".")[0]
            assert own == theirs or FLOORS[theirs] < FLOORS[own] or FLOORS[own] == FLOORS[theirs] == 1, (
                f"{module} -> {other}"
            )


def test_there_is_no_circle():
    graph = modules()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_public_names_resolve_and_nothing_else_does():
    assert all(getattr(t5refine_peft, name) is not None for name in t5refine_peft.__all__)
    assert not hasattr(t5refine_peft, "nothing")
