"""Two processes train the adapter that one trains, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import train_tiny
from safetensors.torch import load_file

from t5refine_peft import AdapterConfig, RefineError, TrainingConfig
from t5refine_peft.training.processes import micro_batches

CONFIG = {
    "adapter": AdapterConfig(rank=4, dropout=0.0),
    "max_steps": 20,
    "eval_steps": 5,
    "learning_rate": 3e-3,
    "start_step": 0.0,
    "evaluation_passages": 5,  # can't be shared out evenly
}

SCRIPT = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
where, base = Path(sys.argv[2]), Path(sys.argv[3])
written = []
places = (str(where / "runs"), str(where / "adapters"))
def watch(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith(places):
        if event != "open" or isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(str(arguments[0]))
sys.addaudithook(watch)
from runs import train_tiny
from test_processes import CONFIG
corpus, terms = json.loads((where / "texts.json").read_text())
result = train_tiny(base, corpus, terms, where, config=CONFIG)
rank = os.environ["RANK"]
(where / f"told-{rank}.json").write_text(json.dumps([written, result.steps, result.adapter_scores.token_loss]))
"""


def history(where: Path) -> list[dict[str, float]]:
    state = where / "runs" / "heart" / "checkpoint-20" / "trainer_state.json"
    return json.loads(state.read_text())["log_history"]


@pytest.mark.skipif(sys.platform == "win32", reason="gloo by torchrun is tested on POSIX")
def test_two_processes_train_the_adapter_of_one(tiny_base, corpus, terms, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    (two / "texts.json").write_text(json.dumps([corpus, terms]))
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "script.py"), str(tests), str(two), str(tiny_base),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    single = train_tiny(tiny_base, corpus, terms, one, config=CONFIG)

    for key in ("loss", "eval_loss"):
        alone = [entry[key] for entry in history(one) if key in entry]
        together = [entry[key] for entry in history(two) if key in entry]
        assert len(alone) == {"loss": 20, "eval_loss": 4}[key]
        assert together == pytest.approx(alone, abs=1e-4)
    alone, together = (
        load_file(where / "runs" / "heart" / "checkpoint-20" / "adapter_model.safetensors") for where in (one, two)
    )
    whole = torch.cat([alone[name].flatten() for name in sorted(alone)])
    assert (torch.cat([together[name].flatten() for name in sorted(alone)]) - whole).norm() <= 1e-3 * whole.norm()

    (wrote, *first), (wrote_nothing, *second) = (json.loads((two / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0] == single.steps
    assert all(any(place in path for path in wrote) for place in ("/runs/heart", "/adapters/.heart."))
    assert wrote_nothing == []


@pytest.mark.parametrize(
    ("processes", "micro_batch", "expected"), [(1, None, (16, 1)), (2, None, (8, 1)), (4, 2, (2, 2))]
)
def test_a_batch_is_shared_out(monkeypatch, processes, micro_batch, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert micro_batches(TrainingConfig(batch=16, micro_batch=micro_batch)) == expected


def test_a_batch_that_cant_be_shared_out_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RefineError, match="multiple of micro_batch times the number of processes, found 16, 5 and 3"):
        micro_batches(TrainingConfig(batch=16))
