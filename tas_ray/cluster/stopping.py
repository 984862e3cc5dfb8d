"""Early stopping of weak retrainings by ASHA, among trials that differ only in hyper-parameters, across restarts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from tas_ray.cluster.config import Asha
from tas_ray.cluster.plan import TRIALS_FOLDER, done
from tas_ray.cluster.train import ACCURACY, EPOCH
from tas_ray.pipeline import Trial
from tas_ray.results import write_atomically

JOURNAL_FILE = "asha.jsonl"


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """One ASHA for each method, budget and seed, remembering in the run's folder what it has seen.

    Tune does not keep the state of a scheduler, so what finished and stopped trials have reported is replayed.
    """

    def __init__(self, config: Asha, trial_of: Callable[[Mapping[str, Any]], Trial], folder: Path) -> None:
        super().__init__()
        self._config = config
        self._trial_of = trial_of
        self._journal = folder / JOURNAL_FILE
        self._rivalries: dict[str, ASHAScheduler] = {}
        for report in self._reports():
            if done(folder / TRIALS_FOLDER / report["trial"]):
                stand_in = SimpleNamespace(trial_id=report["trial"])
                asha = self._rivalry(report["rivalry"], report["epochs"])
                asha.on_trial_add(None, stand_in)
                asha.on_trial_result(None, stand_in, report)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._asha(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if EPOCH in result:
            ours = self._trial_of(trial.config)
            report = {"trial": ours.name, "rivalry": _rivalry_of(ours), "epochs": ours.retrain.epochs}
            with self._journal.open("a") as file:
                file.write(json.dumps(report | {name: result[name] for name in (EPOCH, ACCURACY)}) + "\n")
        decision: str = self._asha(trial).on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._asha(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._asha(trial).on_trial_remove(tune_controller, trial)

    def _reports(self) -> list[dict[str, Any]]:
        text = self._journal.read_text() if self._journal.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a driver was killed while it wrote
            write_atomically(self._journal, whole.encode())
        return [json.loads(line) for line in whole.splitlines()]

    def _asha(self, trial: TuneTrial) -> ASHAScheduler:
        ours = self._trial_of(trial.config)
        return self._rivalry(_rivalry_of(ours), ours.retrain.epochs)

    def _rivalry(self, name: str, epochs: int) -> ASHAScheduler:
        if name not in self._rivalries:
            self._rivalries[name] = ASHAScheduler(
                time_attr=EPOCH,
                metric=ACCURACY,
                mode="max",
                grace_period=self._config.grace_epochs,
                reduction_factor=self._config.reduction_factor,
                # The last epoch decides nothing any more: who got so far is tested and kept.
                max_t=max(self._config.grace_epochs, epochs - 1),
                stop_last_trials=False,
            )
        return self._rivalries[name]


def _rivalry_of(trial: Trial) -> str:
    return f"{trial.method.name} {trial.budget} {trial.seed}"
