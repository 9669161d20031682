"""Early stopping that waits, and that tells a plateau from the end of learning."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from t5refine_peft.errors import RefineError
from t5refine_peft.training.restoring import restore_from
from t5refine_peft.training.trend import Trend, theil_sen

logger = logging.getLogger(__name__)

Phase = Literal["early", "middle", "late"]
_FEWEST_FOR_A_TREND = 4
"""Three values fall in a row by chance once in six times, four once in 24."""


class DelayedEarlyStoppingCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Stop when learning is over, not when it rests.

    A domain's loss falls in steps: it stands still for a while, then falls again. So there are three phases:

    - early: before `start_step`, where every verdict is held;
    - middle: watched, while the metric bettered its best by `threshold` within the last `patience` evaluations;
    - late: judged. One more `window` of evaluations has to pass, and the trend over patience and window, a robust slope
      with its error, must be flat too. It is not where it falls by more than its error and would better the metric by
      `threshold` within `patience` evaluations: a slow decline that a lucky evaluation at its beginning hides. Nor is
      it over while the last `patience` evaluations fall so fast that as many more would better the best: a loss that
      had risen for a while recovers.

    So a plateau shorter than patience and window never stops a run, and a run without a trend ends with the evaluation
    that completes them. Works in any Trainer; each verdict is logged, and kept in `state.log_history` as
    `stopping_phase` and `stopping_reason`.
    """

    def __init__(
        self,
        *,
        start_step: float = 0.3,
        patience: int = 5,
        threshold: float = 0.001,
        relative: bool = False,
        window: int = 3,
        metric: str = "loss",
        greater_is_better: bool | None = None,
    ) -> None:
        """Say what counts as the end.

        Args:
            start_step: share of the run (below 1) or step (1 and above) before which nothing is judged.
            patience: evaluations without betterment, from `start_step` on, that are borne.
            threshold: by how much the best must be bettered.
            relative: take `threshold` as a share of the best instead of in the metric's own unit.
            window: further evaluations over which the trend is looked at; 0 stops when patience is over.
            metric: a name among the evaluation's metrics, with or without `eval_`: `loss`, `term_exact_match`, ...
            greater_is_better: None takes it from the name: a loss is better low, all else high.

        Raises:
            RefineError: a value makes no sense; all faults at once.
        """
        faults = [
            f"{name} must be at least {least}, found {value}"
            for name, value, least in (
                ("start_step", start_step, 0),
                ("patience", patience, 1),
                ("threshold", threshold, 0),
                ("window", window, 0),
            )
            if not value >= least
        ]
        if faults:
            raise RefineError("; ".join(faults))
        self.start_step = start_step
        self.patience = patience
        self.threshold = threshold
        self.relative = relative
        self.window = window
        self.metric = metric.removeprefix("eval_")
        self.greater_is_better = not self.metric.endswith("loss") if greater_is_better is None else greater_is_better
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.waited = 0
        self.recent: list[float] = []
        self.stopped = False

    @classmethod
    def predecessor(cls) -> DelayedEarlyStoppingCallback:
        """As T5-Refiner-DomainFocus-TrainOnly waits, 6,000 steps, and 5 evaluations without 0.001 better."""
        return cls(start_step=6000, patience=5, threshold=0.001)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from what the checkpoint holds, or begin anew: an earlier run's best is not this one's."""
        if not restore_from(state, self):
            self._forget()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> TrainerControl:
        """Judge the newest evaluation."""
        value = metrics.get(f"eval_{self.metric}")
        if value is None:  # one of several evaluation sets, say
            logger.warning("eval_%s is not among the metrics %s: not judged", self.metric, sorted(metrics))
            return control
        phase, stop, reason = self._judge(float(value), state)
        logger.info("step %d, %s: %s", state.global_step, phase, reason)
        state.log_history.append({"step": state.global_step, "stopping_phase": phase, "stopping_reason": reason})
        if stop:
            control.should_training_stop = self.stopped = True
        return control

    def _judge(self, value: float, state: TrainerState) -> tuple[Phase, bool, str]:
        """Which phase the run is in, whether it ends, and why."""
        start = math.ceil(self.start_step * state.max_steps) if self.start_step < 1 else self.start_step
        early = state.global_step < start
        cost = -value if self.greater_is_better else value
        if math.isfinite(cost) and (self.best is None or cost < self.best - self._margin()):
            self.best, self.waited, self.recent = cost, 0, []
            return "early" if early else "middle", False, f"{self.metric} {value:.4g} is the best so far"
        best = f"no finite {self.metric} yet"
        if self.best is not None:
            best = f"best {self.metric} {-self.best if self.greater_is_better else self.best:.4g}"
        if early:
            return "early", False, f"held until step {start:g}; {best}"
        self.waited += 1
        self.recent = [*self.recent, cost][-(self.patience + self.window) :]
        if self.waited < self.patience:
            return "middle", False, f"watched: {self.waited} of {self.patience} evaluations without betterment; {best}"
        stop, reason = self._judge_late()
        return "late", stop, f"{reason}; {best}"

    def _judge_late(self) -> tuple[bool, str]:
        """Whether a run whose patience is over ends, and why."""
        left = self.patience + self.window - self.waited
        if left > 0:
            return False, f"the trend is watched for {left} more evaluations"
        waited = f"{self.waited} evaluations without betterment"
        finite = [cost for cost in self.recent if math.isfinite(cost)]
        if self.window == 0 or len(finite) < 2:
            return True, waited
        trend = theil_sen(finite)
        if trend.high < 0 and -trend.slope * self.patience > self._margin():
            return False, f"a slow betterment is followed, {self._tell(trend)}"
        recent = theil_sen(finite[-max(self.patience, _FEWEST_FOR_A_TREND) :])
        if recent.high < 0 and self.best is not None:
            ahead = finite[-1] + recent.slope * self.patience
            if ahead < self.best - self._margin():
                return False, f"a recovery is followed, {self._tell(recent)}"
        return True, f"{waited} and no trend, {self._tell(trend)}"

    def _tell(self, trend: Trend) -> str:
        slope = -trend.slope if self.greater_is_better else trend.slope
        return f"{slope:+.2g} ± {trend.error:.2g} an evaluation"

    def _margin(self) -> float:
        """By how much the best must be bettered, in the metric's unit."""
        return self.threshold * abs(self.best or 0.0) if self.relative else self.threshold

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        arguments = ("start_step", "patience", "threshold", "relative", "window", "metric", "greater_is_better")
        attributes = ("best", "waited", "recent", "stopped")
        return {
            "args": {name: getattr(self, name) for name in arguments},
            "attributes": {name: getattr(self, name) for name in attributes},
        }
