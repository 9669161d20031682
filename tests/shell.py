"""Bash in which `t5refine` runs in this process: in one of its own, each command would import torch anew."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from multiprocessing.connection import Client, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from t5refine_peft.cli.app import main

_COMMAND = """#!{python} -IS
import os, sys
from multiprocessing.connection import Client
piped = sys.stdin.buffer.read() if "-" in sys.argv[1:] else b""
with Client({address!r}) as server:
    server.send((os.getcwd(), sys.argv[1:], piped))
    code, output, errors = server.recv()
sys.stdout.buffer.write(output)
sys.stderr.buffer.write(errors)
sys.exit(code)
"""


def run_shell(script: str, where: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder `where` with bash's strict settings; every word of it means what it means in bash."""
    with TemporaryDirectory() as place:
        address, command = f"{place}/socket", Path(place) / "t5refine"
        command.write_text(_COMMAND.format(python=sys.executable, address=address))
        command.chmod(0o755)
        with Listener(address) as listener, ThreadPoolExecutor(1) as waiting:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script, "bash", *arguments],
                cwd=where,
                env={**os.environ, **variables, "PATH": f"{place}:{os.environ['PATH']}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            ended = waiting.submit(_wait, process, address)
            while (client := listener.accept()) and (request := client.recv()) is not None:
                with client:
                    client.send(run_here(*request))
            output, errors = ended.result()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _wait(process: subprocess.Popen[str], address: str) -> tuple[str, str]:
    said = process.communicate()
    with Client(address) as client:  # nobody else will call: let the server look up
        client.send(None)
    return said


def run_here(where: str | Path, arguments: Sequence[str], piped: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run `t5refine` in this process: exit code, standard output and standard error."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    stdin = io.TextIOWrapper(io.BytesIO(piped), encoding="utf-8")
    with (
        chdir(where),
        patch.dict(os.environ),
        patch.multiple(sys, argv=["t5refine", *arguments], stdin=stdin),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, output.buffer.getvalue(), errors.buffer.getvalue()
