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
from torch import Tensor, nn

from tas_ray.batchnorm import recalibrate
from tas_ray.choices import Architecture
from tas_ray.cost import counted_macs
from tas_ray.data import DataConfig, Dataset, Split
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
        raise ValueError(
            f"{trial.method.name} with a budget of {trial.budget}: only the dense network has none"
        )
    budget = Budget(most=space.macs(space.dense))
    if trial.budget is not None:
        budget = space.budget(trial.budget, window=trial.method.window)
    if trial.method.training is None:
        trial.method.propose(space, budget, None, seed=trial.seed)
    if trial.teacher is None:
        needs = (
            "distillation"
            if trial.distillation
            else "initialization"
            if trial.initialization == "dense"
            else ""
        )
        if needs:
            raise ValueError(f"{needs} needs a teacher: give the folder of a finished dense network")
    return Plan(space, budget)


def run(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Result:
    """Runs a trial to its end, or goes on with it, and returns its result, on every worker.

    Raises:
        ValueError: the caller's mistake, see `plan`; the training diverged; a checkpoint is of another trial.
    """
    if (trial.folder / RESULT_FILE).exists():
        return read_result(trial.folder / RESULT_FILE)
    dataset = load_data(trial.data, workers.device)
    planned = plan(trial, classes=dataset.classes, image_size=dataset.image_size)
    teacher = _Teacher.load(trial, planned.space) if trial.teacher else None
    progress = _Progress(trial, workers, checkpoints, on_epoch)
    found = progress.finished("search") or _search(trial, planned, dataset, workers, progress)
    architecture = Architecture.from_json(found["architecture"])
    network, validation = _retrain(trial, planned.space, architecture, teacher, dataset, workers, progress)
    result = _result(
        trial, planned, architecture, found, network, validation, teacher, dataset, workers, progress
    )
    if workers.leads:
        save_network(trial.folder, network, _blueprint(trial, architecture, dataset))
        write_result(trial.folder, result)
    workers.wait()
    return result


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found."""

    blueprint: Blueprint
    """The architecture and what it was searched for; its network is not trained yet."""

    macs: int
    params: int

    accuracy: float | None
    """On the search split with the supernet's shared weights, 0..1; None where the method has no supernet."""


def search(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Found:
    """Runs only the search of a trial, or goes on with it, on every worker; nothing is retrained or written.

    Raises:
        ValueError: see `run`.
    """
    dataset = load_data(trial.data, workers.device)
    planned = plan(trial, classes=dataset.classes, image_size=dataset.image_size)
    progress = _Progress(trial, workers, checkpoints, on_epoch)
    found = progress.finished("search") or _search(trial, planned, dataset, workers, progress)
    architecture = Architecture.from_json(found["architecture"])
    return Found(
        blueprint=_blueprint(trial, architecture, dataset),
        macs=planned.space.macs(architecture),
        params=planned.space.params(architecture),
        accuracy=found["accuracy"],
    )


def _blueprint(trial: Trial, architecture: Architecture, dataset: Dataset) -> Blueprint:
    return Blueprint(
        space=trial.space,
        architecture=architecture,
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
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
        return _Teacher(load_network(trial.teacher), read_result(trial.teacher / RESULT_FILE).test_accuracy)


def _search(
    trial: Trial, planned: Plan, dataset: Dataset, workers: Workers, progress: _Progress
) -> dict[str, Any]:
    """Trains the method's task, if it has one, and returns what it proposes."""
    method, space, budget = trial.method, planned.space, planned.budget
    task = method.task(space, budget, seed=seed_of("search", trial.seed))
    measured = None
    if task is not None:
        assert method.training is not None
        placed(task, workers.device)
        _fit(task, dataset, method.training, "search", trial, workers, progress)
    architecture = method.propose(space, budget, task, seed=trial.seed)
    macs = space.macs(architecture)
    assert macs <= budget.most, f"{method.name} proposed {macs} MACs for a budget of {budget.most}"
    if task is not None and method.training is not None:
        fixed = task.network(architecture)
        recalibrate(fixed, dataset, "train", method.training, workers, seed=seed_of("score", trial.seed))
        measured = accuracy(fixed, dataset, "search", workers, method.training.precision)
    return progress.finish("search", {"architecture": architecture.to_json(), "accuracy": measured})


def _retrain(
    trial: Trial,
    space: SearchSpace,
    architecture: Architecture,
    teacher: _Teacher | None,
    dataset: Dataset,
    workers: Workers,
    progress: _Progress,
) -> tuple[nn.Module, float | None]:
    """Trains the architecture from its initial weights; the network, and its accuracy on held-out data."""
    network = space.build(architecture, seed=seed_of("retrain", trial.seed))
    if trial.initialization == "dense":
        assert teacher is not None
        inherit(network, teacher.network)
    split: Split = "train" if trial.holdout else "training"
    task: Task
    if trial.distillation is None:
        task = Classification(network, trial.retrain, split)
    else:
        assert teacher is not None
        placed(teacher.network, workers.device)
        task = DistilledTask(network, teacher.network, trial.distillation, trial.retrain, split)
    placed(task, workers.device)

    def validate() -> dict[str, float]:
        return {"validation_accuracy": accuracy(network, dataset, "search", workers, trial.retrain.precision)}

    _fit(
        task, dataset, trial.retrain, "retrain", trial, workers, progress, validate if trial.holdout else dict
    )
    network.requires_grad_(True)
    return network, validate()["validation_accuracy"] if trial.holdout else None


def inherit(network: nn.Module, dense: nn.Module) -> None:
    """Copies into every parameter and buffer of `network` the leading part of the one of the same name in `dense`.

    What has no counterpart there (a projection that only the narrow network has) stays as it is.
    """
    source = dense.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            given = source.get(name)
            if given is not None and given.dim() == tensor.dim():
                tensor.copy_(_leading(given, tensor.shape))


def _leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor[tuple(slice(size) for size in shape)]


def _fit(
    task: Task,
    dataset: Dataset,
    training: Training,
    phase: str,
    trial: Trial,
    workers: Workers,
    progress: _Progress,
    measure: Callable[[], dict[str, float]] = dict,
) -> None:
    fit(
        task,
        dataset,
        training,
        seed=seed_of(phase, trial.seed),
        workers=workers,
        state=progress.state(phase),
        end_of_epoch=progress.end_of_epoch(phase, measure),
    )


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


def _result(
    trial: Trial,
    planned: Plan,
    architecture: Architecture,
    found: Mapping[str, Any],
    network: nn.Module,
    validation: float | None,
    teacher: _Teacher | None,
    dataset: Dataset,
    workers: Workers,
    progress: _Progress,
) -> Result:
    """Tests the network, once, and counts it."""
    space = planned.space
    dense = space.macs(space.dense)
    macs = counted_macs(network, dataset.image_size, dataset.channels)
    tested = accuracy(network, dataset, "test", workers, trial.retrain.precision)
    pruned = trial.budget is not None
    used = versions()
    return Result(
        run=trial.run,
        trial=trial.name,
        space=space.name,
        dataset=dataset.name,
        method=trial.method.name,
        seed=trial.seed,
        budget_macs=planned.budget.most if pruned else None,
        budget_ratio=planned.budget.most / dense if pruned else None,
        macs=macs,
        macs_ratio=macs / dense,
        params=sum(parameter.numel() for parameter in network.parameters()),
        test_accuracy=tested,
        dense_accuracy=teacher.accuracy if teacher else None if pruned else tested,
        search_accuracy=found["accuracy"],
        validation_accuracy=validation,
        search_seconds=progress.seconds.get("search", 0.0),
        retrain_seconds=progress.seconds.get("retrain", 0.0),
        workers=workers.world,
        device=torch.cuda.get_device_name(workers.device) if workers.device.type == "cuda" else "cpu",
        precision=str(trial.retrain.dtype(workers.device)).removeprefix("torch."),
        architecture=str(architecture),
        checkpoint=str(trial.folder),
        parameters=json.dumps(dict(trial.parameters), sort_keys=True, default=str),
        tas_ray_version=used["tas_ray"],
        torch_version=used["torch"],
        ray_version=used["ray"],
        python_version=used["python"],
        commit=commit(),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
