from __future__ import annotations

from t5refine_peft.evaluation.history import Phase, TrainingHistory, Verdict

LOG = [
    {"loss": 3.0, "step": 5, "learning_rate": 0.1},
    {"eval_loss": 2.5, "eval_term_exact_match": 0.1, "step": 10},
    {"step": 10, "stopping_phase": "early", "stopping_reason": "held"},
    {"loss": 2.0, "step": 15},
    {"eval_loss": 2.0, "step": 20},
    {"step": 20, "stopping_phase": "early", "stopping_reason": "held"},
    {"eval_loss": 2.1, "step": 30},
    {"step": 30, "stopping_phase": "middle", "stopping_reason": "watched"},
    {"train_runtime": 9.0, "train_loss": 2.2, "step": 30},
]


def test_a_log_is_read_as_curves_phases_and_verdicts():
    history = TrainingHistory.of(LOG, best_step=20)
    assert history.curves == {"loss": [(5, 3.0), (15, 2.0)], "eval_loss": [(10, 2.5), (20, 2.0), (30, 2.1)]}
    assert history.phases == (Phase("early", 0, 20), Phase("middle", 20, 30))
    assert history.verdicts == (
        Verdict(10, "early", "held"), Verdict(20, "early", "held"), Verdict(30, "middle", "watched"),
    )  # fmt: skip
    assert history.best_step == 20


def test_an_empty_log_gives_nothing():
    assert TrainingHistory.of([]) == TrainingHistory(curves={}, phases=(), verdicts=(), best_step=None)
