"""A sweep from its settings to its leaderboard; goes on wherever it was killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tas_ray import data
from tas_ray.cluster.config import Sweep
from tas_ray.cluster.cost import Cost, cost_of, cost_of_search, cost_of_supernets, typical
from tas_ray.cluster.folder import claimed, keep_config
from tas_ray.cluster.plan import STOPPED_FILE, TRIALS_FOLDER, SharedSearch, Study, SweepPlan, done, plan_sweep
from tas_ray.cluster.progress import Progress
from tas_ray.cluster.resources import alive_nodes, check_resources
from tas_ray.cluster.searches import run_search, searched
from tas_ray.cluster.studies import StudySearch, search
from tas_ray.cluster.train import TRAIN_FOLDER
from tas_ray.cluster.tuner import Runner, connect
from tas_ray.data import Dataset
from tas_ray.pipeline import Trial
from tas_ray.plot import draw
from tas_ray.results import leaderboard, read_results, write_leaderboard

PICTURE_FILE = "leaderboard.png"


def sweep(config: Sweep) -> pd.DataFrame:
    """Runs every trial of a sweep that is not finished yet, and returns the run's leaderboard.

    `leaderboard.csv` and `leaderboard.png` in the run's folder show the same, and are written even if trials failed.
    After a kill at any moment the same call goes on: what is finished is not repeated, what was begun resumes from
    its latest checkpoint.

    Raises:
        ValueError: the caller's mistake, before anything is spent.
        RuntimeError: trials failed; names each with its error. The same call tries them again.
    """
    dataset = data.load(config.data, torch.device("cpu"))
    plan = plan_sweep(config, dataset)
    with claimed(config.folder):
        keep_config(config)
        work = _left(config, plan, dataset)
        print(work.describe(), flush=True)
        failures = _run(config, work) if work.count else {}
        table = publish(config.folder)
    if failures:
        listed = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise RuntimeError(f"{len(failures)} trial(s) failed; the same command tries them again:\n{listed}")
    return table


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is left to do of a sweep."""

    folder: Path
    teachers: Sequence[Trial]
    searches: Sequence[SharedSearch]
    trials: Sequence[Trial]
    studies: Sequence[tuple[Study, StudySearch, int]]
    dataset: Dataset

    @property
    def count(self) -> int:
        """Trials to be finished."""
        return len(self.teachers) + len(self.trials) + sum(missing for _, _, missing in self.studies)

    @cached_property
    def cost(self) -> Cost:
        """What they cost, as it was estimated before any of it was done."""
        chosen = [typical(study) for study, _, missing in self.studies for _ in range(missing)]
        trials = (cost_of(trial, self.dataset) for trial in [*self.teachers, *self.trials, *chosen])
        searches = (cost_of_search(search, self.dataset) for search in self.searches)
        return sum([*trials, *searches], cost_of_supernets(self.searches, self.dataset))

    def describe(self) -> str:
        """The estimate for people."""
        dense, planned, cost = len(self.teachers), len(self.trials), self.cost
        return (
            f"{self.count} trials to go in {self.folder}: {dense} dense, {planned} planned, "
            f"{self.count - dense - planned} chosen by Optuna. Estimate: {cost.search:.2g} MACs of search, "
            f"{cost.retrain:.2g} of training (twice as many floating-point operations)"
        )


def _left(config: Sweep, plan: SweepPlan, dataset: Dataset) -> _Work:
    studies = []
    for study in plan.studies:
        assert config.optuna is not None
        studies.append((study, *search(study, config.optuna, config.folder)))
    return _Work(
        folder=config.folder,
        teachers=[trial for trial in plan.teachers if not done(trial.folder)],
        searches=[shared for shared in plan.searches if not searched(shared)],
        trials=[trial for trial in plan.trials if not done(trial.folder)],
        studies=[(study, searcher, missing) for study, searcher, missing in studies if missing > 0],
        dataset=dataset,
    )


def _run(config: Sweep, work: _Work) -> dict[str, str]:
    """Does the work on a cluster and returns what failed, by name of trial."""
    connect()
    at_once = check_resources(config.resources, alive_nodes())
    progress = Progress(config.folder, lambda trial: cost_of(trial, work.dataset).total, work.count, work.cost.total)
    runner = Runner(
        folder=config.folder,
        resources=config.resources,
        at_once=config.resources.concurrent_trials or at_once,
        asha=config.asha,
        progress=progress,
    )
    runner.fixed(work.teachers)
    if work.teachers and work.teachers[0].name in progress.failures:
        return progress.failures
    failed: set[Path] = set()
    images: dict[str, Any] = {}
    for shared in work.searches:
        cost = cost_of_supernets([shared], work.dataset) + cost_of_search(shared, work.dataset)
        try:
            run_search(shared, config.resources, images)
        except (ValueError, RuntimeError) as error:  # other methods do not need it
            progress.failures[shared.name] = str(error)
            failed.add(shared.folder)
        else:
            progress.spent(cost.total)
    runner.fixed([trial for trial in work.trials if trial.searched not in failed])
    for study, searcher, missing in work.studies:
        if study.base.searched not in failed:
            runner.study(study, searcher, missing)
    for stopped in config.folder.glob(f"{TRIALS_FOLDER}/*/{STOPPED_FILE}"):
        shutil.rmtree(stopped.parent / TRAIN_FOLDER, ignore_errors=True)
    return progress.failures


def publish(folder: Path) -> pd.DataFrame:
    """The leaderboard of what is finished, also as CSV and picture; empty where nothing is."""
    if not read_results(folder):
        return pd.DataFrame()
    write_leaderboard(folder)
    table = leaderboard(folder)
    draw(table, folder / PICTURE_FILE)
    return table
