from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sockets import forbidden_sockets

from t5refine_peft.offline import go_offline, is_offline

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


def test_offline_holds_for_what_is_imported_already_and_is_told(monkeypatch):
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from t5refine_peft import RefineError, load_base, plan_memory

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not is_offline()
    for download in (snapshot_download, hf_hub_download):
        monkeypatch.setattr(f"huggingface_hub.{download.__name__}", _unreachable)
    with pytest.raises(
        RefineError, match=r"the hub could not give it \(ConnectionError\); check .* give --base a model's directory"
    ):
        load_base("nobody/nothing")
    with pytest.raises(RefineError, match="the hub could not give it"):
        plan_memory("nobody/nothing", 10**9)
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    go_offline()
    assert is_offline()
    assert constants.is_offline_mode()
    with pytest.raises(LocalEntryNotFoundError), forbidden_sockets() as asked:
        snapshot_download("nobody/nothing")
    assert asked == []


def _unreachable(*_arguments: object, **_options: object) -> str:
    raise ConnectionError("no route")


def test_the_package_turns_telemetry_off_before_a_library_reads_the_switch():
    code = "import t5refine_peft; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout == "True\n"
