from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CPU_BACKEND = """
import logging
try:
    import kernels
    kernels.get_kernel()
except ImportError as error:
    logging.getLogger(__name__).warning("no kernels: %s", error)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A bitsandbytes that wants kernels, as the real one does on some CPUs, and a `kernels` that tells of it."""
    folder = tmp_path / "bitsandbytes" / "backends" / "cpu"
    folder.mkdir(parents=True)
    for directory in (folder, folder.parent):
        (directory / "__init__.py").touch()
    (folder / "ops.py").write_text(CPU_BACKEND)
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("from bitsandbytes.backends.cpu import ops\n")
    (tmp_path / "kernels.py").write_text("def get_kernel():\n    print('a hub is asked')\n")
    return tmp_path


def run(packages: Path, code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(packages)!r}); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("before", ["", "import kernels; "])
def test_bitsandbytes_asks_no_hub_and_kernels_stays_importable(packages, before):
    assert run(packages, f"{before}import bitsandbytes").stdout == "a hub is asked\n"
    ours = run(packages, f"{before}import t5refine_peft, bitsandbytes; import kernels; kernels.get_kernel()")
    assert ours.stdout == "a hub is asked\n"
    assert ours.stderr == ""


def test_the_real_one_is_imported_along_without_a_word():
    code = "import t5refine_peft; from transformers import TrainerCallback; assert 'bitsandbytes' in sys.modules"
    done = run(Path("/nowhere"), code)
    assert "kernels" not in done.stderr
