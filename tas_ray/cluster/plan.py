"""From the settings of a sweep to its trials, each with its name and folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tas_ray import pipeline
from tas_ray.cluster.config import Range, Sweep, Value
from tas_ray.data import Dataset
from tas_ray.evolution import Search
from tas_ray.methods.baselines import Dense
from tas_ray.methods.method import EvolvingMethod, Method
from tas_ray.pipeline import Trial
from tas_ray.results import RESULT_FILE
from tas_ray.space import SearchSpace
from tas_ray.supernets import SUPERNET_FILE

TRIALS_FOLDER = "trials"
SEARCHES_FOLDER = "searches"
SUPERNETS_FOLDER = "supernets"
STOPPED_FILE = "stopped.json"
_ROOTS = ("method", "retrain", "distillation")

Parameters = Mapping[str, Range | tuple[Value, ...]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Trials that differ only in hyper-parameters Optuna chooses."""

    base: Trial
    """The trial before anything is chosen; its name is the study's."""

    parameters: Parameters
    """What is chosen, by dotted path."""

    def trial(self, values: Mapping[str, Value]) -> Trial:
        """The trial with these values: the same name and folder for the same values."""
        return _swept(self.base, values)


@dataclass(frozen=True, kw_only=True)
class SharedSearch:
    """One evolutionary search for all budgets of a method and a seed, whose trials take their architectures from it."""

    supernet: Trial
    """What `tas_ray.pipeline.prepare` trains, in a folder of its own; searches may share it."""

    method: EvolvingMethod
    seed: int
    budgets: tuple[float, ...]
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.folder.name

    def space(self, dataset: Dataset) -> SearchSpace:
        """What is searched, for images and classes of this dataset."""
        return self.supernet.space.load(classes=dataset.classes, image_size=dataset.image_size)

    def begun(self, space: SearchSpace) -> Search:
        """The search at its beginning; ValueError if a budget admits no architecture."""
        budgets = [space.budget(budget, window=self.method.window) for budget in self.budgets]
        return self.method.search(space, budgets, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """All trials of a sweep, finished ones too."""

    teachers: tuple[Trial, ...]
    """Dense networks; the first one teaches."""

    searches: tuple[SharedSearch, ...]
    """What has to be searched before the trials that name them."""

    trials: tuple[Trial, ...]
    """What is known from the start."""

    studies: tuple[Study, ...]
    """What is chosen on the way."""


def done(folder: Path) -> bool:
    """Whether nothing is left to do for the trial with this folder: it is finished, or was stopped early."""
    return (folder / RESULT_FILE).exists() or (folder / STOPPED_FILE).exists()


def plan_sweep(sweep: Sweep, dataset: Dataset) -> SweepPlan:
    """The trials of a sweep on this dataset, each checked, in a fixed order.

    Raises:
        ValueError: a budget that cannot be reached, a swept field that does not exist or refuses its value, and
            whatever else `tas_ray.pipeline.plan` refuses.
    """
    parameters: Parameters = {} if sweep.optuna is None else sweep.optuna.parameters
    methods = [method for method in sweep.methods if not isinstance(method, Dense)]
    _check_paths(sweep, methods, [*sweep.grid, *parameters])
    taught = sweep.distillation is not None or sweep.initialization == "dense"
    teachers = _teachers(sweep, needed=taught and bool(methods))
    teacher = teachers[0].folder if teachers else None
    bases = [
        _with_search(sweep, _swept(trial, point) if point else trial)
        for method in methods
        for budget in sweep.budgets or (None,)
        for seed in sweep.seeds
        for trial in [_trial(sweep, method, budget, seed, teacher)]
        for point in _points(sweep.grid, trial)
    ]
    studies = [Study(base=base, parameters=_there(parameters, base)) for base in bases]
    _check_studies(studies)
    plan = SweepPlan(
        teachers=teachers,
        searches=_searches(bases),
        trials=tuple(study.base for study in studies if not study.parameters),
        studies=tuple(study for study in studies if study.parameters),
    )
    _check_names([*plan.teachers, *plan.trials, *(study.base for study in plan.studies)])
    examples = [study.trial(values) for study in plan.studies for values in _ends(study)]
    for trial in (*plan.teachers, *plan.trials, *examples):
        pipeline.plan(trial, classes=dataset.classes, image_size=dataset.image_size)
    for search in plan.searches:
        space = search.space(dataset)
        pipeline.check_evolving(search.method, space)
        search.begun(space)
    return plan


def _check_names(trials: Sequence[Trial]) -> None:
    names = Counter(trial.name for trial in trials)
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"{count} trials would be called {name}: leave out budgets that are less than a MAC apart")


def _teachers(sweep: Sweep, *, needed: bool) -> tuple[Trial, ...]:
    asked = any(isinstance(method, Dense) for method in sweep.methods)
    seeds = sweep.seeds if asked else sweep.seeds[: int(needed)]
    trials = [_trial(sweep, Dense(), None, seed, None) for seed in seeds]
    return tuple(replace(trial, retrain=sweep.teacher, distillation=None, initialization="random") for trial in trials)


def _trial(sweep: Sweep, method: Method, budget: float | None, seed: int, teacher: Path | None) -> Trial:
    amount = "" if budget is None else f"-{budget}" if budget <= 1 else f"-{int(budget)}"
    name = f"{method.name}{amount}-seed{seed}"
    return Trial(
        run=sweep.run,
        name=name,
        folder=sweep.folder / TRIALS_FOLDER / name,
        space=sweep.space,
        data=replace(sweep.data, path=sweep.data.path and sweep.data.path.absolute()),
        method=method,
        budget=budget,
        seed=seed,
        retrain=sweep.retrain,
        distillation=sweep.distillation,
        teacher=teacher,
        initialization=sweep.initialization,
        holdout=sweep.holdout,
        checkpoint_seconds=sweep.checkpoint_seconds,
    )


def _with_search(sweep: Sweep, trial: Trial) -> Trial:
    """The trial with the folder its architecture will be found in and the supernet that scores it, if that is how."""
    method = trial.method
    if not isinstance(method, EvolvingMethod):
        return trial
    searched = f"{method.name}-seed{trial.seed}-{_digest(method)}"
    supernet = f"seed{trial.seed}-{_digest(method.task_settings)}"
    return replace(
        trial,
        searched=sweep.folder / SEARCHES_FOLDER / searched,
        supernet=sweep.folder / SUPERNETS_FOLDER / supernet / SUPERNET_FILE,
    )


def _searches(trials: Sequence[Trial]) -> tuple[SharedSearch, ...]:
    shared: dict[Path, list[Trial]] = {}
    for trial in trials:
        if trial.searched is not None:
            shared.setdefault(trial.searched, []).append(trial)
    return tuple(_shared(folder, group) for folder, group in shared.items())


def _shared(folder: Path, trials: Sequence[Trial]) -> SharedSearch:
    first = trials[0]
    assert isinstance(first.method, EvolvingMethod)
    assert first.supernet is not None
    place = first.supernet.parent
    return SharedSearch(
        supernet=replace(first, name=place.name, folder=place, budget=None, supernet=None, searched=None, teacher=None),
        method=first.method,
        seed=first.seed,
        budgets=tuple(dict.fromkeys(trial.budget for trial in trials if trial.budget is not None)),
        folder=folder,
    )


def _check_studies(studies: Sequence[Study]) -> None:
    for study in studies:
        chosen = [path for path in study.parameters if path == "budget" or path.startswith("method.")]
        if chosen and study.base.searched is not None:
            raise ValueError(
                f"{study.base.method.name} searches once for all trials, so Optuna cannot choose {', '.join(chosen)} "
                'for each: put them into `grid` or `budgets`, and leave Optuna what comes after, as "retrain.epochs"'
            )


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def _swept(base: Trial, values: Mapping[str, Value]) -> Trial:
    trial = base
    for path, value in values.items():
        trial = changed(trial, path, value)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{base.name}-{digest}"
    return replace(trial, name=name, folder=base.folder.with_name(name), parameters={**base.parameters, **values})


def _points(grid: Mapping[str, tuple[Value, ...]], trial: Trial) -> Iterator[dict[str, Value]]:
    axes = {path: values for path, values in grid.items() if has(trial, path)}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _there(parameters: Parameters, trial: Trial) -> Parameters:
    return {path: values for path, values in parameters.items() if has(trial, path)}


def _ends(study: Study) -> list[dict[str, Value]]:
    """Both ends of all ranges and every value of all choices, each parameter in turn by itself."""
    values = {p: (v.low, v.high) if isinstance(v, Range) else v for p, v in study.parameters.items()}
    first = {path: ends[0] for path, ends in values.items()}
    return [{**first, path: value} for path, ends in values.items() for value in ends]


def _check_paths(sweep: Sweep, methods: list[Method], paths: list[str]) -> None:
    for path in paths:
        root, _, rest = path.partition(".")
        if path == "budget" and path not in sweep.grid:
            continue
        if root not in _ROOTS or not rest:
            raise ValueError(f"{path} cannot be swept: what can be lies below {', '.join(_ROOTS)}")
        owners: list[Any] = methods if root == "method" else [getattr(sweep, root)]
        if not any(has(owner, rest) for owner in owners):
            known = sorted({f.name for owner in owners if owner for f in dataclasses.fields(owner)})
            raise ValueError(f"{path} cannot be swept: there is no {rest} in {root}, which has {', '.join(known)}")


def has(config: Any, path: str) -> bool:
    """Whether a nest of dataclasses has a field at the dotted path."""
    name, _, rest = path.partition(".")
    fields = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    return name in fields and (not rest or has(getattr(config, name), rest))


def changed(config: Any, path: str, value: Value) -> Any:
    """A copy of a nest of dataclasses with the field at the dotted path, which `has` found, set to value.

    Raises:
        ValueError: one of the dataclasses refuses the value.
    """
    name, _, rest = path.partition(".")
    inner = changed(getattr(config, name), rest, value) if rest else value
    return replace(config, **{name: inner})
