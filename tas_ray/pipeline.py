"""One trial, from a method and a budget to a result: search, derive, retrain, test, hand over.

Its folder is the trial's identity: once `result.json` lies there the trial is done and never runs again. Until then
`Checkpoints` hold where it stands, so that it goes on from there wherever it was cut off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tas_ray.batchnorm import recalibrate
from tas_ray.choices import Architecture
from tas_ray.cost import counted_macs
from tas_ray.data import DataConfig, Split
from tas_ray.data import load as load_data
from tas_ray.distill import Distillation, DistilledTask
from tas_ray.export import Blueprint, load_blueprint, load_network, save_network
from tas_ray.methods.baselines import Dense
from tas_ray.methods.method import Method
from tas_ray.provenance import commit, versions
from tas_ray.randomness import seed_of
from tas_ray.results import RESULT_FILE, Result, read_result, write_result
from tas_ray.space import Budget, SearchSpace, SpaceConfig
from tas_ray.train import Classification, EndOfEpoch, Task, Training, accuracy, fit, placed
from tas_ray.workers import Checkpoints, Workers

PHASES = ("search", "retrain")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that one finished network depends on."""

    run: str
    """Name of the run the trial belongs to."""

    name: str
    """Name of the trial, unique in its run."""

    folder: Path
    """Where the result and the network go; absolute, and on storage that all workers share."""

    space: SpaceConfig
    data: DataConfig
    method: Method

    budget: float | None
    """MACs if above 1, else a share of the dense network's MACs; None for the dense network itself."""

    seed: int
    """Decides initial weights, the order of the data, and every draw of the search."""

    retrain: Training
    """How the derived network is trained."""

    distillation: Distillation | None = None
    """How it learns from the teacher; None trains it on labels alone."""

    teacher: Path | None = None
    """Folder of the finished dense network of the same space and data."""

    initialization: Literal["random", "dense"] = "random"
    """Weights the retraining starts from: random, or the teacher's leading channels ("TAS w/ Init")."""

    holdout: bool = False
    """Keeps the search split out of retraining and measures the validation accuracy on it after each epoch: for
    early stopping and for choosing hyper-parameters. Otherwise all training data is used, as published."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters a sweep has set here, for the record."""

    checkpoint_seconds: float = 10.0
    """Least time between two checkpoints."""


Report = Callable[[dict[str, float]], None]
"""Called on the leading worker after each epoch with its metrics."""


@dataclass(frozen=True)
class Plan:
    """A trial's space and budget, found consistent."""

    space: SearchSpace
    budget: Budget


def plan(trial: Trial, *, classes: int, image_size: int) -> Plan:
    """Checks what can be checked before anything is spent, for data of these classes and this size.

    Raises:
        ValueError: there is no such space, the images do not fit it, no network is within the budget, the method
            has no answer to it, or the teacher is missing or of another space, size or number of classes.
    """
    space = trial.space.load(classes=classes, image_size=image_size)
    if isinstance(trial.method, Dense) != (trial.budget is None):
        raise ValueError(f"{trial.method.name} with a budget of {trial.budget}: only the dense network has none")
    budget = Budget(most=space.macs(space.dense))
    if trial.budget is not None:
        budget = space.budget(trial.budget, window=trial.method.window)
    if trial.method.training is None:
        trial.method.propose(space, budget, None, seed=trial.seed)
    else:
        space.sample(budget, seed=trial.seed)  # refuses a budget whose window no network lies in
    if trial.teacher is None and (trial.distillation or trial.initialization == "dense"):
        needs = "distillation" if trial.distillation else "initialization"
        raise ValueError(f"{needs} needs a teacher: give the folder of a finished dense network")
    return Plan(space, budget)


def run(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Result:
    """Runs a trial to its end, or goes on with it, and returns its result, on every worker.

    Raises:
        ValueError: the caller's mistake, see `plan`; the training diverged; a checkpoint is of another trial.
    """
    if (trial.folder / RESULT_FILE).exists():
        return read_result(trial.folder / RESULT_FILE)
    stages = _Stages(trial, workers, checkpoints, on_epoch)
    found = stages.search()
    network = stages.retrain(found.blueprint.architecture)
    result = stages.test(found, network)
    if workers.leads:
        save_network(trial.folder, network, found.blueprint)
        write_result(trial.folder, result)
    workers.wait()
    return result


def search(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Found:
    """Runs only the search of a trial, or goes on with it, on every worker; nothing is retrained or written.

    Raises:
        ValueError: see `run`.
    """
    return _Stages(trial, workers, checkpoints, on_epoch).search()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found."""

    blueprint: Blueprint
    """The architecture and what it was searched for; its network is not trained yet."""

    macs: int
    params: int

    accuracy: float | None
    """On the search split with the supernet's shared weights, 0..1; None where the method has no supernet."""


class _Stages:
    """A trial's stages on one worker, with all they share: data, space, budget, teacher, progress."""

    def __init__(self, trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> None:
        self.trial, self.workers = trial, workers
        self.dataset = load_data(trial.data, workers.device)
        self.plan = plan(trial, classes=self.dataset.classes, image_size=self.dataset.image_size)
        self.teacher = _Teacher.load(trial, self.plan.space) if trial.teacher else None
        self.progress = _Progress(trial, workers, checkpoints, on_epoch)

    def search(self) -> Found:
        """Trains the method's task, if it has one, and asks the method for its architecture."""
        space, dataset = self.plan.space, self.dataset
        found = self.progress.finished("search") or self.progress.finish("search", self._propose())
        architecture = Architecture(found["architecture"])
        return Found(
            blueprint=Blueprint(
                space=self.trial.space,
                architecture=architecture,
                classes=dataset.classes,
                image_size=dataset.image_size,
                mean=dataset.mean,
                std=dataset.std,
            ),
            macs=space.macs(architecture),
            params=space.params(architecture),
            accuracy=found["accuracy"],
        )

    def _propose(self) -> dict[str, Any]:
        method, space, budget, seed = self.trial.method, self.plan.space, self.plan.budget, self.trial.seed
        training = method.training
        task = method.task(space, budget, seed=seed_of("search", seed))
        if task is None or training is None:
            return {"architecture": dict(method.propose(space, budget, None, seed=seed)), "accuracy": None}
        placed(task, self.workers.device)
        self._fit(task, training, "search", dict)
        architecture = method.propose(space, budget, task, seed=seed)
        fixed = task.network(architecture)
        recalibrate(fixed, self.dataset, "train", training, self.workers, seed=seed_of("score", seed))
        score = accuracy(fixed, self.dataset, "search", self.workers, training.precision)
        return {"architecture": dict(architecture), "accuracy": score}

    def retrain(self, architecture: Architecture) -> nn.Module:
        """The network of this architecture, trained."""
        trial, teacher = self.trial, self.teacher
        network = self.plan.space.build(architecture, seed=seed_of("retrain", trial.seed))
        if trial.initialization == "dense":
            assert teacher is not None
            inherit(network, teacher.network)
        split: Split = "train" if trial.holdout else "training"
        task: Task = Classification(network, trial.retrain, split)
        if trial.distillation is not None:
            assert teacher is not None
            placed(teacher.network, self.workers.device)
            task = DistilledTask(network, teacher.network, trial.distillation, trial.retrain, split)
        placed(task, self.workers.device)
        self._fit(task, trial.retrain, "retrain", lambda: self._validate(network) if trial.holdout else {})
        network.requires_grad_(True)
        return network

    def _validate(self, network: nn.Module) -> dict[str, float]:
        return {"validation_accuracy": self._accuracy(network, "search")}

    def _accuracy(self, network: nn.Module, split: Split) -> float:
        return accuracy(network, self.dataset, split, self.workers, self.trial.retrain.precision)

    def _fit(self, task: Task, training: Training, phase: str, measure: Callable[[], dict[str, float]]) -> None:
        fit(
            task,
            self.dataset,
            training,
            seed=seed_of(phase, self.trial.seed),
            workers=self.workers,
            state=self.progress.state(phase),
            end_of_epoch=self.progress.end_of_epoch(phase, measure),
        )

    def test(self, found: Found, network: nn.Module) -> Result:
        """Tests the network, once, and counts it."""
        trial, space, budget = self.trial, self.plan.space, self.plan.budget
        dense = space.macs(space.dense)
        macs = counted_macs(network, self.dataset.image_size, self.dataset.channels)
        tested = self._accuracy(network, "test")
        pruned = trial.budget is not None
        used = versions()
        return Result(
            run=trial.run,
            trial=trial.name,
            space=space.name,
            dataset=self.dataset.name,
            method=trial.method.name,
            seed=trial.seed,
            budget_macs=budget.most if pruned else None,
            budget_ratio=budget.most / dense if pruned else None,
            macs=macs,
            macs_ratio=macs / dense,
            params=sum(parameter.numel() for parameter in network.parameters()),
            test_accuracy=tested,
            dense_accuracy=self.teacher.accuracy if self.teacher else None if pruned else tested,
            search_accuracy=found.accuracy,
            validation_accuracy=self._accuracy(network, "search") if trial.holdout else None,
            search_seconds=self.progress.seconds.get("search", 0.0),
            retrain_seconds=self.progress.seconds.get("retrain", 0.0),
            workers=self.workers.world,
            device=_name_of(self.workers.device),
            precision=str(trial.retrain.dtype(self.workers.device)).removeprefix("torch."),
            architecture=str(found.blueprint.architecture),
            checkpoint=str(trial.folder),
            parameters=json.dumps(dict(trial.parameters), sort_keys=True, default=str),
            tas_ray_version=used["tas_ray"],
            torch_version=used["torch"],
            ray_version=used["ray"],
            python_version=used["python"],
            commit=commit(),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True)
class _Teacher:
    network: nn.Module
    accuracy: float

    @staticmethod
    def load(trial: Trial, space: SearchSpace) -> _Teacher:
        assert trial.teacher is not None
        blueprint = load_blueprint(trial.teacher)
        own, given = (space.classes, space.image_size), (blueprint.classes, blueprint.image_size)
        if own != given:
            raise ValueError(
                f"the teacher in {trial.teacher} has {given[0]} classes and {given[1]}-pixel images, but the data "
                f"has {own[0]} and {own[1]}: train a dense network on this data"
            )
        if trial.initialization == "dense" and blueprint.space.name != trial.space.name:
            raise ValueError(
                f"the teacher in {trial.teacher} is of {blueprint.space.name}, so its weights do not fit "
                f"{trial.space.name}: train the dense network of that space, or initialize at random"
            )
        return _Teacher(load_network(trial.teacher), read_result(trial.teacher / RESULT_FILE).test_accuracy)


def inherit(network: nn.Module, dense: nn.Module) -> None:
    """Copies into every parameter and buffer of `network` the leading part of the one of the same name in `dense`.

    What has no counterpart there (a projection that only the narrow network has) stays as it is.
    """
    source = dense.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            given = source.get(name)
            if given is not None and given.dim() == tensor.dim():
                tensor.copy_(given[tuple(slice(size) for size in tensor.shape)])


class _Progress:
    """Where a trial stands: phases finished, the state of the one under way, the time each has taken."""

    def __init__(self, trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> None:
        self.trial, self.workers, self.checkpoints, self.on_epoch = trial, workers, checkpoints, on_epoch
        self.saved = checkpoints.load() or {
            "trial": trial.name,
            "done": {},
            "phase": "",
            "fit": None,
            "seconds": {},
        }
        if self.saved.get("trial") != trial.name:
            raise ValueError(
                f"the checkpoint is of trial {self.saved.get('trial')}, not of {trial.name}; "
                "move it aside and run the same command again"
            )
        self.seconds: dict[str, float] = dict(self.saved["seconds"])
        self.last_save = time.monotonic()

    def finished(self, phase: str) -> dict[str, Any] | None:
        """What a phase has found, if it is finished."""
        found: dict[str, Any] | None = self.saved["done"].get(phase)
        return found

    def state(self, phase: str) -> Mapping[str, Any] | None:
        """Where `fit` goes on with a phase."""
        return self.saved["fit"] if self.saved["phase"] == phase else None

    def finish(self, phase: str, found: dict[str, Any]) -> dict[str, Any]:
        """Keeps what a phase has found, and returns it."""
        self.saved = self.saved | {"done": {**self.saved["done"], phase: found}, "phase": "", "fit": None}
        if self.trial.method.training is not None:
            self._save({"phase": float(PHASES.index(phase))})
        return found

    def end_of_epoch(self, phase: str, measure: Callable[[], dict[str, float]]) -> EndOfEpoch:
        """What `fit` calls after each epoch: reports, and saves when the last checkpoint is old enough."""

        def done(epoch: int, metrics: dict[str, float], state: Callable[[], dict[str, Any]]) -> None:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + metrics["seconds"]
            metrics = {"phase": float(PHASES.index(phase)), **metrics, **measure()}
            if self.workers.leads:
                self.on_epoch(metrics)
            due = time.monotonic() - self.last_save >= self.trial.checkpoint_seconds
            if self.workers.agree(due):
                self.saved = self.saved | {"phase": phase, "fit": state()}
                self._save(metrics)

        return done

    def _save(self, metrics: dict[str, float]) -> None:
        self.saved = self.saved | {"seconds": dict(self.seconds)}
        self.checkpoints.save(self.saved, metrics)
        self.last_save = time.monotonic()


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
