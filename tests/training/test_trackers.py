from __future__ import annotations

import pytest
from runs import train_tiny

from t5refine_peft import RefineError


def test_tensorboard_gets_losses_and_no_text(tiny_base, corpus, terms, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tiny(tiny_base, corpus, terms, tmp_path, config={"report_to": ("tensorboard",), "max_steps": 4})
    (events,) = (tmp_path / "runs").rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "train/learning_rate", "eval/loss"} <= set(reader.Tags()["scalars"])
    assert all(text.encode() not in events.read_bytes() for text in corpus)


def test_a_tracker_that_is_not_there_is_told(tiny_base, corpus, terms, tmp_path):
    with pytest.raises(RefineError, match="report_to names 'nobody', which is no tracker that is installed here"):
        train_tiny(tiny_base, corpus, terms, tmp_path, config={"report_to": ("nobody",)})
    assert list(tmp_path.iterdir()) == []  # an earlier run is not moved aside for it
