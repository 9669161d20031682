from __future__ import annotations

import sys

import pytest
from transformers import TrainerCallback
from typer.testing import CliRunner

from t5refine_peft.cli.app import app
from t5refine_peft.training import train
from t5refine_peft.training.interrupt import InterruptCallback


def test_an_interrupted_training_says_how_to_go_on_and_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, callbacks: list[TrainerCallback], **__: object) -> None:
        (callback,) = (callback for callback in callbacks if isinstance(callback, InterruptCallback))
        raise KeyboardInterrupt(f"interrupted after step 5 of 9: go on with {callback.how_to_resume}")

    typed = ["train", "my notes.txt", "--resume", "--domain", "heart"]
    monkeypatch.setattr(sys, "argv", ["/bin/t5refine", *typed])
    monkeypatch.setattr(train, "train_adapter", interrupted)
    hint = "t5refine train 'my notes.txt' --domain heart --resume"
    ended = CliRunner().invoke(app, typed)
    assert ended.exit_code == 130
    assert ended.stderr.splitlines()[-1] == f"t5refine: interrupted after step 5 of 9: go on with {hint}"
    assert ended.stdout == ""
