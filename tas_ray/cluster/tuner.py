"""Trials on Ray Tune: each holds next to nothing of the cluster and launches a Ray Train run that holds the rest."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from tas_ray.cluster.config import Asha, Resources
from tas_ray.cluster.plan import Study
from tas_ray.cluster.progress import Progress
from tas_ray.cluster.stopping import EarlyStopping
from tas_ray.cluster.studies import StudySearch
from tas_ray.cluster.train import ACCURACY, ERROR, launch, launch_measurement
from tas_ray.pipeline import Trial

TUNE_FOLDER = "tune"
DRIVER_RESOURCE = "tas_driver"
ERROR_FILE = "error.txt"
ACTOR_RESTARTS = 3
"""How often a trial's own actor is started again when its node is lost."""

# Read by this process, and by the cluster if it starts one; what the user has set stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

TrialOf = Callable[[Mapping[str, Any]], Trial]


def connect() -> None:
    """Connects to the cluster RAY_ADDRESS names or this machine runs, or starts one that ends with this process.

    Its dashboard is always on: Ray frees what a stopped trial held by asking it.
    """
    if ray.is_initialized():
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    context = ray.init(include_dashboard=True, log_to_driver=False, logging_level=logging.WARNING)
    print(f"Ray dashboard: http://{context.dashboard_url}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs trials of one run, `at_once` of them at the same time."""

    folder: Path
    resources: Resources
    at_once: int
    asha: Asha | None
    progress: Progress

    def fixed(self, trials: Sequence[Trial]) -> None:
        """Runs these trials to their ends; failures are remembered by `progress`."""
        if trials:
            names = {trial.name: trial for trial in trials}
            self._fit(_Named(names), {"trial": tune.grid_search(list(names))}, tune.TuneConfig())

    def study(self, study: Study, searcher: StudySearch, count: int) -> None:
        """Runs so many more trials of a study."""
        self._fit(study.trial, {}, tune.TuneConfig(search_alg=searcher, num_samples=count))

    def _fit(self, trial_of: TrialOf, space: dict[str, Any], settings: tune.TuneConfig) -> None:
        settings.max_concurrent_trials = self.at_once
        settings.reuse_actors = True
        if self.asha is not None:
            settings.scheduler = EarlyStopping(self.asha, trial_of, self.folder)
        self.progress.trial_of = trial_of
        scratch = self.folder / TUNE_FOLDER
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        try:
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_run_trial, trial_of=trial_of, resources=self.resources),
                    _next_to_nothing(),
                ),
                param_space=space,
                tune_config=settings,
                run_config=tune.RunConfig(
                    name=uuid.uuid4().hex,
                    storage_path=str(scratch),
                    callbacks=[self.progress],
                    failure_config=tune.FailureConfig(max_failures=ACTOR_RESTARTS),
                    verbose=0,
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _Named:
    """The trial a Tune configuration names."""

    trials: Mapping[str, Trial]

    def __call__(self, config: Mapping[str, Any]) -> Trial:
        return self.trials[config["trial"]]


def _next_to_nothing() -> tune.PlacementGroupFactory:
    """What a trial of Tune holds while it waits for its Train run.

    If it were a CPU, trials could hold all of them and wait for ever for workers that find none. It is a byte of
    memory, or where the cluster has them, one unit of a resource that keeps trials on nodes that stay.
    """
    reserved = DRIVER_RESOURCE in ray.cluster_resources()
    return tune.PlacementGroupFactory([{DRIVER_RESOURCE: 1.0} if reserved else {"memory": 1.0}])


def _run_trial(config: dict[str, Any], trial_of: TrialOf, resources: Resources) -> None:
    """What a trial of Tune does: launches its Train run, and says how that ended."""
    trial = trial_of(config)
    try:
        run = launch if trial.unscored is None else launch_measurement
        result = run(trial, resources, [TuneReportCallback()])
    except (ValueError, ray.train.TrainingFailedError) as error:  # Tune tries again only what it lost itself
        (trial.folder / ERROR_FILE).write_text(str(error))
        tune.report({ERROR: _short(error), ACCURACY: 0.0})
        return
    (trial.folder / ERROR_FILE).unlink(missing_ok=True)
    tune.report({ACCURACY: result.validation_accuracy or 0.0, "macs": float(result.macs)})


def _short(error: Exception) -> str:
    if isinstance(error, ray.train.WorkerGroupError):
        error = next(iter(error.worker_failures.values()))
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
