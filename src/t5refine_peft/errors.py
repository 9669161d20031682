"""The one kind of error that a user meets: a sentence that says what was expected, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterable


class RefineError(Exception):
    """Something the user can put right; the command line prints its one sentence without a traceback."""


class NoNumberError(RefineError):
    """A model's scores are no finite numbers."""

    def __init__(self, who: str = "the model") -> None:
        """Take what the model is to the user: `the adapter 'law'`, say."""
        super().__init__(
            f"{who} gives scores that are no numbers, as weights far too large do; take a sound copy, or train it anew "
            "at a lower learning rate"
        )


class ConfigError(RefineError):
    """Values that a configuration can't take: all of them, each with the name of its field, so that whoever read the
    values elsewhere can say where."""

    def __init__(self, faults: Iterable[tuple[str, str]]) -> None:
        """Take pairs of a field's name and what is wrong with it, worded to follow the name."""
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{name} {fault}" for name, fault in self.faults))
