"""The adapters on disk: a directory, in it a directory for each domain."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from t5refine_peft.errors import RefineError

_NAME = re.compile(r"[\w][\w.-]{0,99}")


class AdapterRegistry:
    """Finds adapters by the name of their domain."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def place(self, name: str) -> Path:
        """Where the adapter `name` lies or will lie.

        Raises:
            RefineError: `name` is no plain file name.
        """
        if not _NAME.fullmatch(name):
            raise RefineError(
                f"{name!r} can't name an adapter: expected letters, digits, '_', '-' and '.', and no '.' in front"
            )
        return self.directory / name

    def names(self) -> list[str]:
        """The names of all complete adapters, sorted."""
        return sorted(path.parent.name for path in self.directory.glob("[!.]*/adapter_config.json"))

    def find(self, name: str) -> Path:
        """The directory of an adapter that is there.

        Raises:
            RefineError: there is none of that name; the message lists what there is.
        """
        path = self.place(name)
        if not (path / "adapter_config.json").is_file():
            names = self.names()
            near = difflib.get_close_matches(name, names, n=1)
            found = f"found {', '.join(names)}" if names else "the directory holds none"
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RefineError(f"no adapter {name!r} in {self.directory}: {found}{hint}")
        return path

    def card(self, name: str) -> dict[str, Any]:
        """What the adapter's card.json says of it; empty for an adapter that another program made."""
        path = self.find(name) / "card.json"
        if not path.is_file():
            return {}
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            card = None
        if not isinstance(card, dict):
            raise RefineError(f"{path} is broken: expected a JSON object; train the adapter anew, or remove the file")
        return card

    def check_base(self, name: str, *, base_name: str, base_fingerprint: str) -> None:
        """Refuse an adapter that was made for another base.

        Raises:
            RefineError: the card names other weights.
        """
        card = self.card(name)
        made_for = card.get("base_fingerprint", base_fingerprint)
        if made_for != base_fingerprint:
            raise RefineError(
                f"the adapter {name!r} was trained on the base {card.get('base')!r} (weights {made_for}), "
                f"not on {base_name!r} (weights {base_fingerprint}); give its own base, or train it on this one"
            )
