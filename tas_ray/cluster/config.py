"""What a sweep is: its settings, free of Ray so that the command line can show them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tas_ray.data import DataConfig
from tas_ray.distill import Distillation
from tas_ray.methods.baselines import Dense
from tas_ray.methods.method import Method
from tas_ray.space import SpaceConfig
from tas_ray.train import Training

Value = str | int | float | bool

LEAST_NETWORKS = 3
"""Two networks have one order, which says nothing."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets of the cluster, and how many trials run at once.

    The batch size of a training is the global one: it is split over however many workers there are, so neither the
    learning rate nor its schedule changes with the number of workers.
    """

    workers: int = 1
    """Training processes of one trial. With `min_workers`, the most it grows to."""

    min_workers: int | None = None
    """The least number of workers a trial goes on with when nodes are lost; it grows again when they come back.
    Left out: always exactly `workers`."""

    cpus_per_worker: float = 1.0
    """CPUs reserved for each worker, also its number of threads (at least one)."""

    gpus_per_worker: float = 0.0
    """GPUs reserved for each worker: 0 trains on the CPU; a fraction such as 0.25 lets four small trials share one."""

    concurrent_trials: int | None = None
    """Trials that run at the same time. Left out: as many as the cluster holds when the sweep starts."""

    slots: int | None = None
    """Processes that score the candidates of an evolutionary search, each with a worker's share of the cluster. Left
    out: as many as the cluster holds when the search starts. The answer does not depend on them."""

    max_failures: int = 3
    """How often a trial's workers are started again after a crash, from its latest checkpoint."""

    def __post_init__(self) -> None:
        if not 1 <= self.least_workers <= self.workers:
            raise ValueError(
                f"workers is {self.workers} and min_workers {self.min_workers}, but 1 <= min_workers <= workers"
            )
        if not self.cpus_per_worker > 0:
            raise ValueError(
                f"cpus_per_worker is {self.cpus_per_worker}, but a worker needs some CPU, also beside a GPU"
            )
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker}, but must be 0, a fraction below 1 or a whole number"
            )
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"{self.workers} workers with {self.gpus_per_worker} GPU each may meet on one GPU, where NCCL cannot "
                "connect them: give a trial one worker with a share of a GPU, or several with one each"
            )
        if self.concurrent_trials is not None and self.concurrent_trials < 1:
            raise ValueError(f"concurrent_trials is {self.concurrent_trials}, but must be at least 1")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"slots is {self.slots}, but a search is evaluated by at least 1")
        if self.max_failures < 0:
            raise ValueError(f"max_failures is {self.max_failures}, but must be 0 or more")

    @property
    def least_workers(self) -> int:
        """The number of workers below which a trial waits."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def per_worker(self) -> dict[str, float]:
        """One worker's share in Ray's own words."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values from `low` to `high`, both included; whole numbers only if both are whole."""

    low: int | float
    """Smallest value."""

    high: int | float
    """Largest value."""

    log: bool = False
    """Draw the logarithm evenly, as for learning rates; needs `low` above 0."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a range goes from a smaller to a larger value, not from {self.low} to {self.high}")
        if self.log and not self.low > 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low}")


@dataclass(frozen=True, kw_only=True)
class Optuna:
    """Hyper-parameters chosen by Optuna, in one study for every method, budget, seed and grid point.

    The objective is `validation_accuracy`, never the test set.
    """

    parameters: Mapping[str, Range | tuple[Value, ...]]
    """What is searched: dotted paths such as "retrain.learning_rate" or "method.tau_max", each with a range or with
    the values to choose from. "budget" may be one of them if `against_macs` is set and the sweep has no `budgets`."""

    trials: int = 20
    """Finished trials of one study."""

    against_macs: bool = False
    """Search the front of accuracy against MACs (NSGA-II) instead of the best accuracy (TPE)."""

    population: int = 10
    """Trials of one generation of NSGA-II."""

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError('Optuna has nothing to search: name parameters, for example "retrain.learning_rate"')
        for path, values in self.parameters.items():
            if not isinstance(values, Range) and len(values) < 2:
                raise ValueError(f"{path} has {len(values)} value(s), but a choice needs at least two")
        if self.trials < 1 or self.population < 2:
            raise ValueError(f"trials is {self.trials} and population {self.population}, but it takes at least 1 and 2")
        if "budget" in self.parameters and not self.against_macs:
            raise ValueError(
                "the largest budget would always win on accuracy alone: set against_macs, or name `budgets` instead"
            )


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Early stopping of weak retrainings by asynchronous successive halving (ASHA).

    Only trials of the same method, budget and seed compete, so that no row of a comparison is missing: what is
    stopped are hyper-parameters. The measure is `validation_accuracy`, never the test set.
    """

    grace_epochs: int = 1
    """Epochs of retraining before a trial may be stopped."""

    reduction_factor: float = 3.0
    """One in so many trials goes on at each rung; the rungs lie at the grace epochs times its powers."""

    def __post_init__(self) -> None:
        if self.grace_epochs < 1 or not self.reduction_factor > 1:
            raise ValueError(
                f"grace_epochs is {self.grace_epochs} and reduction_factor {self.reduction_factor}, "
                "but they must be at least 1 and more than 1"
            )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All trials of one run: every method at every budget with every seed, retrained the same way."""

    run: str
    """Name of the run: its folder in `storage`, a column of the leaderboard, a tag of the metrics."""

    storage: Path = Path("runs")
    """Where runs lie. With more than one node: a folder all of them see."""

    space: SpaceConfig = field(default_factory=SpaceConfig)
    """The networks."""

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""

    methods: tuple[Method, ...]
    """How architectures are found."""

    budgets: tuple[float, ...] = ()
    """MACs if above 1, shares of the dense network's MACs otherwise."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of search and retraining. The teacher has the first one."""

    teacher: Training
    """Training of the dense network."""

    retrain: Training
    """Training of each architecture found."""

    distillation: Distillation | None = field(default_factory=Distillation)
    """How architectures learn from the dense network; None: they do not, and no teacher is trained for them."""

    initialization: Literal["random", "dense"] = "random"
    """Weights retraining starts from: random, or the leading channels of the dense network."""

    holdout: bool = False
    """Keeps the search split out of retraining and measures `validation_accuracy` on it, which Optuna and ASHA need.
    Otherwise all training data is used, as published."""

    checkpoint_seconds: float = 10.0
    """Least time between two checkpoints of a trial, which are also what ASHA and the progress lines see of it."""

    grid: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Hyper-parameters tried in every combination: dotted paths below `method`, `retrain` or `distillation`, such as
    "retrain.learning_rate". A path below `method` multiplies only the methods that have it; nothing multiplies the
    dense network."""

    optuna: Optuna | None = None
    """Hyper-parameters Optuna chooses, in the same dotted paths."""

    asha: Asha | None = None
    """Early stopping of weak retrainings."""

    resources: Resources = field(default_factory=Resources)
    """What a trial gets; may change when an interrupted sweep goes on."""

    def __post_init__(self) -> None:
        if not self.run or Path(self.run).name != self.run or self.run.startswith("."):
            raise ValueError(f"run is {self.run!r}, but must be a plain name that can be a folder")
        names = [method.name for method in self.methods]
        for what, values in (("methods", names), ("budgets", self.budgets), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} are {values}, but no two may be the same; compare settings by `grid`")
        if not self.methods or not self.seeds:
            raise ValueError("a sweep needs at least one method and one seed")
        self._check_budgets()
        for path, options in self.grid.items():
            if not options or len(set(options)) != len(options):
                raise ValueError(f"grid has {options} for {path}, but needs one or more different values")
            if path in self._searched:
                raise ValueError(f"{path} is in `grid` and in Optuna's parameters: leave it out of one")
        if (self.asha is not None or self.optuna is not None) and not self.holdout:
            raise ValueError(
                "Optuna and ASHA compare accuracies on images the training has not seen: set `holdout`, which keeps "
                "the search split for them; the test set is never used to choose"
            )
        if self.asha is not None and not self.grid and self.optuna is None:
            raise ValueError("ASHA stops weak hyper-parameters, but none is swept: add `grid` or `optuna`")
        if self.asha is not None and self.optuna is not None and self.optuna.against_macs:
            raise ValueError("ASHA compares accuracies and would stop every small network: use it without against_macs")

    @property
    def folder(self) -> Path:
        """The run's own folder, absolute."""
        return (self.storage / self.run).absolute()

    @property
    def _searched(self) -> Mapping[str, Any]:
        return {} if self.optuna is None else self.optuna.parameters

    def _check_budgets(self) -> None:
        bad = [budget for budget in self.budgets if not budget > 0]
        if bad:
            raise ValueError(f"budgets are positive: MACs above 1, shares of the dense MACs up to 1, not {bad}")
        wanted = any(not isinstance(method, Dense) for method in self.methods)
        if ("budget" in self._searched) == bool(self.budgets) and wanted:
            raise ValueError(
                "name `budgets` (for example 0.5 for half the MACs of the dense network), "
                'or search "budget" by Optuna, one of the two'
            )


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Which candidates of a run's finished searches are retrained, and how, to see if the scores rank them."""

    networks: int = 12
    """Networks for each search and budget, one from each of as many equally large strata of scores."""

    epochs: int | None = None
    """Of each retraining, which is otherwise that of the run, without a teacher. Left out: a fifth of the run's."""

    below: float = 0.15
    """They use the budget up to this share of it: networks of all costs would be ranked well by their cost alone."""

    budgets: tuple[float, ...] = ()
    """Budgets of the run, written as they were there. Left out: all."""

    searches: tuple[str, ...] = ()
    """Names of folders below `searches` in the run's. Left out: all that have finished."""

    resources: Resources = field(default_factory=Resources)
    """What one retraining gets of the cluster."""

    def __post_init__(self) -> None:
        if self.networks < LEAST_NETWORKS:
            raise ValueError(f"networks is {self.networks}, but a rank correlation takes at least {LEAST_NETWORKS}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}, but a network is retrained for at least 1")
        if not 0 < self.below <= 1:
            raise ValueError(f"below is {self.below}, but must be a share of the budget above 0 and up to 1")
