"""AdapterRegistry: a directory, in it a directory for each domain."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from t5refine_peft.errors import RefineError
from t5refine_peft.registry import archive
from t5refine_peft.registry.card import read_card
from t5refine_peft.registry.files import CONFIG_FILE
from t5refine_peft.registry.fit import BaseIdentity, check_fit
from t5refine_peft.registry.layout import AdapterLayout, read_layout
from t5refine_peft.registry.names import check_name, is_name
from t5refine_peft.registry.summary import AdapterSummary, summarize
from t5refine_peft.registry.verification import Verification, verify_adapter
from t5refine_peft.storage import atomic_directory, free_path, remove_directory


class AdapterRegistry:
    """The adapters on disk, by the name of their domain.

    >>> registry = AdapterRegistry("adapters")                  # doctest: +SKIP
    >>> registry.names()                                        # doctest: +SKIP
    ['cardiology', 'contract-law']
    >>> registry.verify("cardiology").layout.rank               # doctest: +SKIP
    16
    >>> registry.pack("cardiology", "cardiology.zip")           # doctest: +SKIP
    PosixPath('cardiology.zip')

    Nothing here needs torch. To combine adapters or merge one into its base, see `modeling.combining` and
    `modeling.merging`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def place(self, name: str) -> Path:
        """Where the adapter `name` lies or will lie.

        Raises:
            RefineError: `name` is no plain file name.
        """
        return self.directory / check_name(name)

    def free_place(self, name: str) -> Path:
        """Where the adapter `name` will lie.

        Raises:
            RefineError: `name` is no plain file name, or something lies there.
        """
        return free_path(self.place(name))

    def names(self) -> list[str]:
        """The names of all complete adapters, sorted."""
        found = (path.parent.name for path in self.directory.glob(f"*/{CONFIG_FILE}"))
        return sorted(name for name in found if is_name(name))

    def find(self, name: str) -> Path:
        """The directory of an adapter that is there.

        Raises:
            RefineError: there is none of that name; the message lists what there is.
        """
        path = self.place(name)
        if not (path / CONFIG_FILE).is_file():
            names = self.names()
            near = difflib.get_close_matches(name, names, n=1)
            found = f"found {', '.join(names)}" if names else "the directory holds none"
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RefineError(f"no adapter {name!r} in {self.directory}: {found}{hint}")
        return path

    def card(self, name: str) -> dict[str, Any]:
        """What the adapter's card.json says of it; empty for an adapter that another program made.

        Raises:
            RefineError: there is no such adapter, or its card is broken.
        """
        return read_card(self.find(name))

    def base_of(self, name: str) -> str:
        """The base that the adapter's card names.

        Raises:
            RefineError: there is no such adapter, or it has no card that names one.
        """
        base = self.card(name).get("base")
        if not isinstance(base, str):
            raise RefineError(f"the card of the adapter {name!r} names no base: give the one it was trained on")
        return base

    def layout(self, name: str) -> AdapterLayout:
        """Rank, scale and matrices of an adapter, from its files' headers.

        Raises:
            RefineError: there is no such adapter, or its files are not those of a LoRA adapter.
        """
        return read_layout(self.find(name))

    def summary(self, name: str) -> AdapterSummary:
        """What an adapter is, in a line; a broken one is told as such.

        Raises:
            RefineError: there is no such adapter.
        """
        return summarize(name, self.find(name))

    def summaries(self) -> list[AdapterSummary]:
        """What lies here, by name; broken adapters are told as such."""
        return [summarize(name, self.directory / name) for name in self.names()]

    def check(self, name: str, base: BaseIdentity) -> AdapterLayout:
        """See that an adapter can be loaded on a base, before a weight is touched.

        Its files must be those of a plain LoRA adapter; base, tokenizer, rank, and each tensor's name and shape must
        agree. A few milliseconds.

        Returns:
            The layout, for what is to be allocated.

        Raises:
            RefineError: something doesn't agree.
        """
        layout = self.layout(name)
        check_fit(name, layout, self.card(name), base)
        return layout

    def verify(self, name: str, base: BaseIdentity | None = None) -> Verification:
        """Read an adapter through: as `check`, and its contents' fingerprint and that every weight is a number.

        Args:
            name: the adapter.
            base: the base that it must fit; None leaves base and tokenizer unchecked.

        Raises:
            RefineError: something doesn't agree, or has been changed since it was written.
        """
        return verify_adapter(name, self.find(name), base)

    def remove(self, name: str) -> None:
        """Remove an adapter from the disk. Its archive, if there is one, stays.

        Raises:
            RefineError: there is no such adapter, or it can't be removed.
        """
        path = self.find(name)
        try:
            if path.is_symlink():
                path.unlink()  # what it points to is somebody else's
            else:
                remove_directory(path)
        except OSError as error:
            raise RefineError(f"{path} can't be removed: {error.strerror}") from error

    def pack(self, name: str, file: str | Path) -> Path:
        """Write an adapter as one file, a zip archive with the directory `name`; the same adapter gives the same bytes.

        Raises:
            RefineError: there is no such adapter, it is broken or holds a link, or the file can't be written.
        """
        return archive.pack(self.find(name), name, Path(file))

    def unpack(self, file: str | Path, *, domain: str | None = None) -> str:
        """Take an adapter out of an archive, which may come from anyone: nothing but an adapter's own files is written.

        What comes out is verified before it takes its place.

        Args:
            file: what `pack` wrote.
            domain: a name for the adapter; None takes the one in the archive.

        Returns:
            The adapter's name.

        Raises:
            RefineError: the archive is no sound adapter, or there is one of that name; nothing is left then.
        """
        source = Path(file)
        with archive.opened(source) as contents:
            name = domain if domain is not None else contents.name
            with atomic_directory(self.free_place(name)) as staged:
                contents.extract(staged)
                try:
                    verify_adapter(name, staged, None)
                except RefineError as error:  # tell of the archive: the temporary directory will be gone
                    raise RefineError(str(error).replace(str(staged), str(source))) from None
        return name
