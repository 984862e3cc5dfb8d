"""What a sweep says while it runs: a line a finished trial, an estimate of the rest, gauges, a current leaderboard."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from tas_ray.cluster.metrics import Gauges
from tas_ray.cluster.plan import STOPPED_FILE
from tas_ray.cluster.train import ACCURACY, EPOCH, ERROR
from tas_ray.pipeline import MEASURED_FILE, PHASES, Trial, read_measured
from tas_ray.results import RESULT_FILE, read_result, write_atomically, write_leaderboard

SECONDS_BETWEEN_LINES = 30.0
SECONDS_OF_SILENCE = 600.0


class Progress(Callback):  # type: ignore[misc]
    """Follows the trials of one driver."""

    def __init__(self, folder: Path, cost_of: Callable[[Trial], int], trials: int, cost: int) -> None:
        """Follows so many trials, each with its `cost_of`; all work, shared searches too, costs so much."""
        self.failures: dict[str, str] = {}
        self.trial_of: Callable[[Mapping[str, Any]], Trial]
        self._gauges = Gauges()
        self._folder = folder
        self._cost_of = cost_of
        self._trials, self._ended = trials, 0
        self._cost, self._spent = cost, 0
        self._began = self._spoke = time.monotonic()

    def spent(self, cost: int) -> None:
        """Counts work that belongs to no single trial, and tells of itself, as done."""
        self._spent += cost
        self._spoke = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Says every half minute where the trial that just reported is."""
        if "epoch" not in result or time.monotonic() - self._spoke < SECONDS_BETWEEN_LINES:
            return
        self._spoke = time.monotonic()
        name, phase = self.trial_of(trial.config).name, PHASES[int(result["phase"])]
        print(f"          {name}: {phase} epoch {result['epoch']:g} of {result['epochs']:g}, loss {result['loss']:.3f}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Says what came out, keeps the leaderboard up to date, marks what was stopped early."""
        ours, last = self.trial_of(trial.config), trial.last_result or {}
        if ERROR in last:
            self._failed(ours, last[ERROR])
        elif (ours.folder / RESULT_FILE).exists():
            result = read_result(ours.folder / RESULT_FILE)
            self._gauges.finished(ours, result)
            write_leaderboard(self._folder)
            seconds = result.search_seconds + result.retrain_seconds
            self._say(ours, f"{result.test_accuracy:.2%} with {result.macs / 1e6:.3g} M MACs in {seconds:.0f} s")
        elif (ours.folder / MEASURED_FILE).exists():
            measured = read_measured(ours.folder)
            accuracy, millions = measured.validation_accuracy, measured.macs / 1e6
            self._say(ours, f"{accuracy:.2%} unscored, with {millions:.3g} M MACs in {measured.retrain_seconds:.0f} s")
        else:
            stopped = {EPOCH: last.get(EPOCH), ACCURACY: last.get(ACCURACY)}
            write_atomically(ours.folder / STOPPED_FILE, json.dumps(stopped).encode())
            self._say(
                ours,
                f"stopped at epoch {last.get(EPOCH, 0):g} with {last.get(ACCURACY, 0.0):.2%} on validation",
            )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Remembers a trial whose own actor failed."""
        self._failed(self.trial_of(trial.config), f"its actor ended: {last_line(trial)}")

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Says that nothing is heard, if so."""
        if time.monotonic() - self._spoke >= SECONDS_OF_SILENCE:
            self._spoke = time.monotonic()
            print(
                f"          nothing was heard for {duration(SECONDS_OF_SILENCE)}: epochs are long, or trials wait for "
                "resources that others hold or that were lost (see the dashboard)",
                flush=True,
            )

    def _failed(self, trial: Trial, why: str) -> None:
        self.failures[trial.name] = why
        self._say(trial, f"failed: {why}")

    def _say(self, trial: Trial, what: str) -> None:
        self._ended += 1
        self._spent += self._cost_of(trial)
        self._spoke = time.monotonic()
        left = (time.monotonic() - self._began) * (self._cost / self._spent - 1) if self._spent else 0.0
        rest = f"; about {duration(left)} left" if self._ended < self._trials else ""
        print(f"[{self._ended}/{self._trials}] {trial.name}: {what}{rest}", flush=True)


def last_line(trial: TuneTrial) -> str:
    """What went wrong in a trial, as Tune wrote it down."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return textwrap.shorten((text.strip().splitlines() or ["no details"])[-1], 300)


def duration(seconds: float) -> str:
    """A length of time as people say it, e.g. 50 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
