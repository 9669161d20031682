"""Where a run is, and how long it still takes: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from t5refine_peft.training.memory import memory_in_use
from t5refine_peft.training.restoring import restore_from
from t5refine_peft.training.stopping import DelayedEarlyStoppingCallback

_STEPS_LOOKED_BACK = 50


class ProgressCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Tell a run's progress on standard error; works in any Trainer.

    On a terminal, one line is kept up to date, wrapped where it is narrow; in a log, a line is written each time that
    the Trainer logs. Both say step, share, epoch, loss, learning rate, tokens a second (where the Trainer counts them),
    memory (the GPU's peak, or the process's), phase of early stopping where there is one, time passed over all resumed
    parts, and time left: from the rate of the last steps, and the evaluations and saves between them. A checkpoint
    keeps both, so that a resumed run tells it from the beginning. Each evaluation adds a row to a table: its metric,
    the change against the best before, and the verdict, if the callback that gives one stands before this one.
    """

    def __init__(self, *, label: str = "", live: bool = True) -> None:
        """Take a name to put in front of each line, a domain's say; without `live`, a terminal gets plain lines too."""
        self.label = label
        self._may_live = live
        self.seconds_before = 0.0
        self.pace_before: dict[str, Any] = {}
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._state: TrainerState | None = None
        self._logged: dict[str, float] = {}
        self._pace = _Pace()
        self._header_shown = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and the live line on a terminal."""
        if not restore_from(state, self):
            self.seconds_before, self.pace_before = 0.0, {}
        self._state, self._logged, self._header_shown = state, {}, False
        self._pace = _Pace(**self.pace_before)
        self._pace.start(state.num_input_tokens_seen)
        if state.is_world_process_zero and self._may_live and self._console.is_terminal:
            atexit.register(self.close)  # whatever ends the program, the terminal gets its cursor back
            self._live = Live(
                console=self._console, get_renderable=self._renderable, refresh_per_second=4, transient=True
            )
            self._live.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note how long the step took."""
        self._state = state
        self._pace.step(state.num_input_tokens_seen)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep loss and learning rate; in a log, write the line."""
        if logs and "loss" in logs:
            self._logged = logs
            if state.is_world_process_zero and self._live is None:
                self._console.print(Text(self.line(state)))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Add the evaluation to the table."""
        self._pace.pause("evaluation")
        name = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        if name not in metrics or not state.is_world_process_zero:
            return
        before = [e[name] for e in state.log_history if name in e and e["step"] < state.global_step]
        best = (max if args.greater_is_better else min)(before) if before else None
        change = "" if best is None else f"{metrics[name] - best:+.4f}"
        if not self._header_shown:
            self._header_shown = True
            self._console.print(Text(f"{self._prefix()}{'step':>8} {'epoch':>7} {name:>18} {'vs best':>9}  verdict"))
        verdict = _newest(state, "stopping_reason", step=state.global_step)
        row = f"{state.global_step:8d} {state.epoch or 0:7.2f} {metrics[name]:18.4f} {change:>9}  {verdict}"
        self._console.print(Text(f"{self._prefix()}{row}".rstrip()))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of saving out of the steps'."""
        self._pace.pause("save")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the live line away when this was the last epoch: a later callback may end the training by an error."""
        if control.should_training_stop:
            self.close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the live line away."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; no harm if it was given back already."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def line(self, state: TrainerState) -> str:
        """All that is known of the run now, in one line."""
        share = state.global_step / max(1, state.max_steps)
        parts = [f"step {state.global_step}/{state.max_steps} ({share:.1%})", f"epoch {state.epoch or 0:.2f}"]
        if "loss" in self._logged:
            parts += [f"loss {self._logged['loss']:.3f}", f"rate {self._logged.get('learning_rate', 0):.2g}"]
        if rate := self._pace.tokens_a_second():
            parts.append(f"{rate:,.0f} tokens/s")
        parts.append(f"{memory_in_use() / 1e9:.2f} GB")
        if DelayedEarlyStoppingCallback.__name__ in state.stateful_callbacks:
            parts.append(_newest(state, "stopping_phase") or "early")
        parts.append(f"{_clock(self.seconds_before + self._pace.passed())} passed")
        left = self._pace.left(state.max_steps - state.global_step)
        parts.append("time left unknown" if left is None else f"{_clock(left)} left")
        return self._prefix() + ", ".join(parts)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {
            "args": {"label": self.label, "live": self._may_live},
            "attributes": {
                "seconds_before": self.seconds_before + self._pace.passed(),
                "pace_before": self._pace.state(),
            },
        }

    def _renderable(self) -> Text:
        told = self.line(self._state) if self._state else ""
        return Text(told, no_wrap=False, overflow="fold")  # two lines on a narrow terminal, with nothing cut off

    def _prefix(self) -> str:
        return f"{self.label}: " if self.label else ""


class _Pace:
    """How fast the last steps went; evaluations and saves are timed apart from them, and shared out over all steps."""

    def __init__(
        self,
        *,
        steps: Iterable[tuple[float, int]] = (),
        steps_done: int = 0,
        pauses: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        """Go on from what `state` told of an earlier part of the run."""
        self._began: float | None = None
        self._mark = 0.0
        self._tokens = 0
        self._steps = deque(steps, maxlen=_STEPS_LOOKED_BACK)  # seconds and tokens of each
        self._steps_done = steps_done
        self._pauses = dict(pauses or {})  # kind -> seconds of all, and how many steps were done at the newest

    def start(self, tokens: int) -> None:
        self._began = self._mark = time.monotonic()
        self._tokens = tokens

    def step(self, tokens: int) -> None:
        now = time.monotonic()
        self._steps.append((now - self._mark, tokens - self._tokens))
        self._steps_done += 1
        self._mark, self._tokens = now, tokens

    def pause(self, kind: str) -> None:
        """An evaluation or a save ended now."""
        now = time.monotonic()
        self._pauses[kind] = (self._pauses.get(kind, (0.0, 0))[0] + now - self._mark, self._steps_done)
        self._mark = now

    def passed(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def tokens_a_second(self) -> float:
        seconds = sum(seconds for seconds, _ in self._steps)
        return sum(tokens for _, tokens in self._steps) / seconds if seconds else 0.0

    def left(self, steps: int) -> float | None:
        """Seconds for `steps` more with their pauses; None before the first step of all."""
        if not self._steps:
            return None
        average = sum(seconds for seconds, _ in self._steps) / len(self._steps)
        return steps * (average + sum(seconds / at for seconds, at in self._pauses.values() if at))

    def state(self) -> dict[str, Any]:
        return {"steps": list(self._steps), "steps_done": self._steps_done, "pauses": self._pauses}


def _newest(state: TrainerState, key: str, *, step: int | None = None) -> str:
    """The newest entry of the Trainer's log with this key, of this step if one is given."""
    found = (entry for entry in reversed(state.log_history) if key in entry and step in (None, entry["step"]))
    return str(next(found, {key: ""})[key])


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
