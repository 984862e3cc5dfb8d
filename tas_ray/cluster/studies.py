"""Optuna studies kept in the run's folder, so that a killed sweep goes on with what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from tas_ray.cluster.config import Optuna, Range, Value
from tas_ray.cluster.plan import Study
from tas_ray.cluster.train import ACCURACY, ERROR
from tas_ray.randomness import seed_of

JOURNAL_FILE = "optuna.journal"


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """Optuna's suggestions for one study; a trial that reports an error counts as failed and is tried again."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        failed = error or (result is not None and ERROR in result)
        super().on_trial_complete(trial_id, None if failed else result, failed)


def search(study: Study, config: Optuna, folder: Path) -> tuple[StudySearch, int]:
    """The searcher of a study and how many of its trials are still to be finished.

    Trials an earlier driver had begun and not finished come first, and find their checkpoints by their names.
    The folder has to be claimed by this process.
    """
    storage = _storage(folder)
    objectives = {ACCURACY: "max", "macs": "min"} if config.against_macs else {ACCURACY: "max"}
    known = optuna.create_study(
        storage=storage,
        study_name=study.base.name,
        directions=["maximize" if mode == "max" else "minimize" for mode in objectives.values()],
        load_if_exists=True,
    )
    _begin_again(known)
    counted = len(known.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
    metrics, modes = list(objectives), list(objectives.values())
    seed = seed_of("optuna", study.base.name, study.base.seed, len(known.trials)) % 2**32
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.NSGAIISampler(population_size=config.population, seed=seed)
        if config.against_macs
        else optuna.samplers.TPESampler(seed=seed)
    )
    searcher = StudySearch(
        {path: _distribution(values) for path, values in study.parameters.items()},
        metric=metrics if config.against_macs else metrics[0],
        mode=modes if config.against_macs else modes[0],
        sampler=sampler,
        study_name=study.base.name,
        storage=storage,
    )
    return searcher, config.trials - counted


def _storage(folder: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL_FILE
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # left by a driver that was killed while it wrote
    return JournalStorage(JournalFileBackend(str(path)))


def _begin_again(study: optuna.Study) -> None:
    """Lines up the trials that were begun and neither finished nor lined up yet."""
    trials = study.get_trials(deepcopy=False)
    left = [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.FAIL)]
    settled = [trial.params for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    settled += [trial.system_attrs["fixed_params"] for trial in trials if trial.state is TrialState.WAITING]
    for trial in left:
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.params and trial.params not in settled:
            study.enqueue_trial(trial.params)
            settled.append(trial.params)


def _distribution(values: Range | tuple[Value, ...]) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
