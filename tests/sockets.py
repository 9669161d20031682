"""A socket that is not to be had: what promises to stay offline is run with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def forbidden_sockets() -> Iterator[list[str]]:
    """Refuse each socket that could leave this machine, and list who asked for one, errors swallowed or not."""
    asked: list[str] = []

    class Refused(socket.socket):
        def __init__(self, family: int = -1, *arguments: Any, **options: Any) -> None:
            if family in (-1, socket.AF_INET, socket.AF_INET6):
                asked.append("socket")
                raise OSError("a socket was opened")
            super().__init__(family, *arguments, **options)

    def refuse(*arguments: Any, **_options: Any) -> Any:
        asked.append(f"address {arguments[0]}")
        raise OSError("an address was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Refused)
        patch.setattr(socket, "create_connection", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield asked
