"""The keys of the file: the fields of the dataclasses, with their types, defaults and the words below them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from t5refine_peft.config import RunConfig

KeyPath = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Key:
    """A field of a configuration."""

    path: KeyPath
    """Its name, behind those of the tables it lies in."""
    hint: Any
    """Its type."""
    default: Any
    doc: str
    """The words below the field; of a table, those of its class."""

    @property
    def name(self) -> str:
        """As the file has it in its table."""
        return self.path[-1]

    @property
    def dotted(self) -> str:
        """As it is named in a message."""
        return ".".join(self.path)

    @property
    def table(self) -> type[Any] | None:
        """The dataclass whose fields are the keys of this table; None for a plain key."""
        tables = (option for option in options_of(self.hint) if isinstance(option, type) and is_dataclass(option))
        return next(tables, None)


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union leaves open, None left out; a plain type alone."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(option for option in options if option is not NoneType)


def keys_of(config: type[Any], above: KeyPath = ()) -> tuple[Key, ...]:
    """The keys of a dataclass's own table, in order."""
    hints, docs = get_type_hints(config), _field_docs(config)
    return tuple(
        Key(path=(*above, field.name), hint=hints[field.name], default=field.default, doc=docs.get(field.name, ""))
        for field in fields(config)
    )


def all_keys(config: type[Any] = RunConfig, above: KeyPath = ()) -> Iterator[Key]:
    """The keys of a dataclass, each table's behind it."""
    for key in keys_of(config, above):
        yield key
        if key.table is not None:
            yield from all_keys(key.table, key.path)


def _field_docs(config: type[Any]) -> dict[str, str]:
    """The string below each field, as one paragraph."""
    body = next(node.body for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef))
    docs = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return docs
