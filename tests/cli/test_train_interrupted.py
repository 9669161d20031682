from __future__ import annotations

import pytest
from typer.testing import CliRunner

from t5refine_peft.cli.app import app
from t5refine_peft.training import train


def test_an_interrupted_training_says_how_to_go_on_and_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("interrupted after step 5 of 9: go on with --resume")

    monkeypatch.setattr(train, "train_adapter", interrupted)
    ended = CliRunner().invoke(app, ["train", "corpus.txt", "--domain", "heart"])
    assert ended.exit_code == 130
    assert ended.stderr.splitlines()[-1] == "t5refine: interrupted after step 5 of 9: go on with --resume"
    assert ended.stdout == ""
