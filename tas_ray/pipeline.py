"""One trial, from a method and a budget to a result: search, derive, retrain, test, hand over.

A method that evolves architectures searches in two steps, each of which can also be done beforehand for many trials: it
trains shared weights (`prepare`), then compares architectures with them.

Its folder is the trial's identity: once `result.json` lies there the trial is done and never runs again. Until then
`Checkpoints` hold where it stands, so that it goes on from there wherever it was cut off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tas_ray.batchnorm import random_batches, recalibrate
from tas_ray.choices import Architecture
from tas_ray.cost import counted_macs
from tas_ray.data import DataConfig, Dataset, Split
from tas_ray.data import load as load_data
from tas_ray.distill import Distillation, DistilledTask
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Search
from tas_ray.export import Blueprint, load_blueprint, load_network, save_network
from tas_ray.methods.baselines import Dense
from tas_ray.methods.method import EvolvingMethod, Method, ProposingMethod
from tas_ray.provenance import commit, versions
from tas_ray.randomness import seed_of
from tas_ray.results import RESULT_FILE, Result, read_result, write_atomically, write_result
from tas_ray.scores import Journal, search_here
from tas_ray.space import Budget, SearchSpace, SpaceConfig
from tas_ray.supernets import (
    SUPERNET_FILE,
    SupernetScores,
    about,
    context_of,
    images_for,
    load_supernet,
    save_supernet,
    unscored_by,
)
from tas_ray.train import Classification, EndOfEpoch, Task, Training, accuracy, fit, placed
from tas_ray.workers import Checkpoints, Workers

PHASES = ("search", "evolution", "retrain")
"""What is trained before an architecture is known, the comparison of architectures, the training of the one found."""

WINNERS_FILE = "winners.json"
MEASURED_FILE = "measured.json"


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

    supernet: Path | None = None
    """File of the trained supernet an `EvolvingMethod` searches with. Left out: it is trained first."""

    searched: Path | None = None
    """Folder of a finished search for several budgets, this one among them. Left out: the trial searches itself."""

    holdout: bool = False
    """Keeps the search split out of retraining and measures the validation accuracy on it after each epoch: for
    early stopping and for choosing hyper-parameters. Otherwise all training data is used, as published."""

    unscored: Evaluation | None = None
    """Makes the trial one that `measure` runs: its validation accuracy is of those images of the search split only that
    a search with these settings scores no candidate on. It is never tested."""

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
        ValueError: there is no such space, the images do not fit it, no network is within the budget, the method has
            no answer to it (a search done elsewhere is not checked), or the teacher is missing or of another space,
            size or number of classes.
    """
    space = trial.space.load(classes=classes, image_size=image_size)
    if isinstance(trial.method, Dense) != (trial.budget is None):
        raise ValueError(f"{trial.method.name} with a budget of {trial.budget}: only the dense network has none")
    budget = Budget(most=space.macs(space.dense))
    if trial.budget is not None:
        budget = space.budget(trial.budget, window=trial.method.window)
    match trial.method:
        case EvolvingMethod() as method:
            if trial.searched is None:
                check_evolving(method, space)
                method.search(space, [budget], seed=trial.seed)
        case ProposingMethod() as method if method.training is None:
            method.propose(space, budget, None, seed=trial.seed)
        case _:
            space.sample(budget, seed=trial.seed)  # refuses a budget whose window no network lies in
    if trial.teacher is None and (trial.distillation or trial.initialization == "dense"):
        needs = "distillation" if trial.distillation else "initialization"
        raise ValueError(f"{needs} needs a teacher: give the folder of a finished dense network")
    return Plan(space, budget)


def check_evolving(method: EvolvingMethod, space: SearchSpace) -> None:
    """ValueError if the method cannot search this space; nothing of its size is allocated."""
    with torch.device("meta"):
        method.task(space, seed=0)


def prepare(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Path:
    """Trains the supernet of an `EvolvingMethod`, or goes on with it, and returns its file, on every worker.

    The trial needs no budget: the supernet serves all.

    Raises:
        ValueError: the method cannot search the space, the training diverged; a checkpoint is of another trial.
    """
    path = trial.folder / SUPERNET_FILE
    if not path.exists():
        dataset = load_data(trial.data, workers.device)
        progress = _Progress(trial, workers, checkpoints, on_epoch)
        _train_supernet(trial, dataset, workers, progress, path)
    return path


def _train_supernet(trial: Trial, dataset: Dataset, workers: Workers, progress: _Progress, path: Path) -> None:
    method = trial.method
    assert isinstance(method, EvolvingMethod)
    space = trial.space.load(classes=dataset.classes, image_size=dataset.image_size)
    task = method.task(space, seed=seed_of("search", trial.seed))
    placed(task, workers.device)
    progress.fit(task, dataset, method.training, "search", dict)
    if workers.leads:
        save_supernet(path, task, about(trial.space, trial.data, dataset), progress.seconds["search"])
    workers.wait()


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network that was retrained to be compared with its score, and not tested."""

    macs: int

    validation_accuracy: float
    """On images that neither the search nor any training has seen, 0..1."""

    images: int
    """How many these are."""

    retrain_seconds: float


def measure(trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> Measured:
    """Retrains the architecture of a trial with `holdout` and `unscored`, or goes on with it, on every worker.

    Nothing is left of it but `measured.json`: no network, and no result that a leaderboard would show.

    Raises:
        ValueError: see `run`; or the search has left no image unscored.
    """
    path = trial.folder / MEASURED_FILE
    if not path.exists():
        assert trial.holdout
        assert trial.unscored is not None
        stages = _Stages(trial, workers, checkpoints, on_epoch)
        measured = stages.measure(stages.retrain(stages.search().blueprint.architecture))
        if workers.leads:
            write_atomically(path, (json.dumps(asdict(measured), indent=2) + "\n").encode())
        workers.wait()
    return read_measured(trial.folder)


def read_measured(folder: Path) -> Measured:
    """What `measure` found for the trial with this folder; ValueError if its file is damaged."""
    path = folder / MEASURED_FILE
    try:
        return Measured(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, and the same command repeats it") from error


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

    evaluations: int | None
    """Architectures that were scored in the search; None where none was."""

    seconds: float
    """What a search outside of the trial took, for all budgets: its supernet's training, all slots' scoring."""


class _Stages:
    """A trial's stages on one worker, with all they share: data, space, budget, teacher, progress."""

    def __init__(self, trial: Trial, workers: Workers, checkpoints: Checkpoints, on_epoch: Report) -> None:
        self.trial, self.workers = trial, workers
        self.dataset = load_data(trial.data, workers.device)
        if trial.unscored is not None:
            self.dataset = unscored_by(self.dataset, trial.unscored)
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
            evaluations=found["evaluations"],
            seconds=found["seconds"],
        )

    def _propose(self) -> dict[str, Any]:
        if self.trial.searched is not None:
            return read_winner(self.trial.searched, self.plan.budget)
        match self.trial.method:
            case EvolvingMethod() as method:
                return self._evolve(method)
            case ProposingMethod() as method:
                return self._ask(method)
            case method:
                raise TypeError(f"{method.name} is neither a ProposingMethod nor an EvolvingMethod")

    def _ask(self, method: ProposingMethod) -> dict[str, Any]:
        space, budget, seed = self.plan.space, self.plan.budget, self.trial.seed
        training = method.training
        task = method.task(space, budget, seed=seed_of("search", seed))
        if task is None or training is None:
            return _found(method.propose(space, budget, None, seed=seed), None, None)
        placed(task, self.workers.device)
        self.progress.fit(task, self.dataset, training, "search", dict)
        architecture = method.propose(space, budget, task, seed=seed)
        fixed = task.network(architecture)
        dtype = training.dtype(self.workers.device)
        with torch.autocast(self.workers.device.type, dtype, enabled=dtype != torch.float32):
            recalibrate(fixed, random_batches(self.dataset, "train", seed=seed_of("score", seed)))
        score = accuracy(fixed, self.dataset, "search", self.workers, training.precision)
        return _found(architecture, score, None)

    def _evolve(self, method: EvolvingMethod) -> dict[str, Any]:
        if self.workers.world > 1:
            raise ValueError(
                f"{self.workers.world} workers train one network together, but {method.name} compares many: let a "
                "sweep search first (`searched`), or use one worker"
            )
        trial, space, dataset = self.trial, self.plan.space, self.dataset
        path = trial.supernet or trial.folder / SUPERNET_FILE
        if trial.supernet is None and not path.exists():
            _train_supernet(trial, dataset, self.workers, self.progress, path)
        images = images_for(dataset, method.evaluation)
        scores = SupernetScores(
            task=load_supernet(path, method, space, about(trial.space, trial.data, dataset)),
            space=space,
            images=images,
            settings=method.evaluation,
            device=self.workers.device,
        )
        search = method.search(space, [self.plan.budget], seed=trial.seed)
        journal = Journal(trial.folder, context_of(path, images, space))
        search_here(search, scores, journal, self.progress.of_evolution)
        (best,) = search.best(0)
        return _found(best.architecture, best.score, search.evaluated)

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
        self.progress.fit(task, self.dataset, trial.retrain, "retrain", partial(self._measured, network))
        network.requires_grad_(True)
        return network

    def _measured(self, network: nn.Module) -> dict[str, float]:
        return {"validation_accuracy": self._accuracy(network, "search")} if self.trial.holdout else {}

    def _accuracy(self, network: nn.Module, split: Split) -> float:
        return accuracy(network, self.dataset, split, self.workers, self.trial.retrain.precision)

    def measure(self, network: nn.Module) -> Measured:
        """Its accuracy on what is held out."""
        return Measured(
            macs=counted_macs(network, self.dataset.image_size, self.dataset.channels),
            validation_accuracy=self._accuracy(network, "search"),
            images=self.dataset.size("search"),
            retrain_seconds=self.progress.seconds.get("retrain", 0.0),
        )

    def test(self, found: Found, network: nn.Module) -> Result:
        """Tests the network, once, and counts it."""
        trial, space, budget = self.trial, self.plan.space, self.plan.budget
        dense = space.macs(space.dense)
        macs = counted_macs(network, self.dataset.image_size, self.dataset.channels)
        tested = self._accuracy(network, "test")
        pruned = trial.budget is not None
        seconds = self.progress.seconds
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
            evaluations=found.evaluations,
            search=trial.searched.name if trial.searched else None,
            search_seconds=found.seconds + seconds.get("search", 0.0) + seconds.get("evolution", 0.0),
            retrain_seconds=seconds.get("retrain", 0.0),
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


def _found(
    architecture: Architecture, score: float | None, evaluations: int | None, seconds: float = 0.0
) -> dict[str, Any]:
    """What a search has found; the seconds are those it took outside of the trial."""
    return {"architecture": dict(architecture), "accuracy": score, "evaluations": evaluations, "seconds": seconds}


def write_winners(folder: Path, search: Search, seconds: float) -> None:
    """Writes what a finished search, which took so long, has found for its budgets; `read_winner` reads it."""
    found = []
    for place, budget in enumerate(search.budgets):
        (best,) = search.best(place)
        winner = _found(best.architecture, best.score, search.evaluated, seconds)
        found.append({"budget": [budget.least, budget.most], **winner})
    write_atomically(folder / WINNERS_FILE, (json.dumps(found, indent=2) + "\n").encode())


def read_winner(folder: Path, budget: Budget) -> dict[str, Any]:
    """What a search has found for one of its budgets; ValueError if it has nothing for it."""
    path = folder / WINNERS_FILE
    if not path.is_file():
        raise ValueError(f"no search has finished in {folder}: {WINNERS_FILE} is missing")
    for found in json.loads(path.read_text()):
        if found["budget"] == [budget.least, budget.most]:
            return {name: found[name] for name in ("architecture", "accuracy", "evaluations", "seconds")}
    raise ValueError(f"the search in {folder} was not for a budget of {budget.most} MACs: search again for it")


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

    def fit(
        self,
        task: Task,
        dataset: Dataset,
        training: Training,
        phase: str,
        measure: Callable[[], dict[str, float]],
    ) -> None:
        """Trains a task to its end, from where it stands; `measure` gives what to report beside its metrics."""
        fit(
            task,
            dataset,
            training,
            seed=seed_of(phase, self.trial.seed),
            workers=self.workers,
            state=self.saved["fit"] if self.saved["phase"] == phase else None,
            end_of_epoch=self._end_of_epoch(phase, measure),
        )

    def of_evolution(self, done: int, total: int, best: Sequence[float], seconds: float) -> None:
        """Reports how far the comparison of architectures is (see `tas_ray.scores.OnProgress`)."""
        self.seconds["evolution"] = seconds
        self.on_epoch(
            {"phase": float(PHASES.index("evolution")), "epoch": float(done), "epochs": float(total), "score": best[0]}
        )

    def finish(self, phase: str, found: dict[str, Any]) -> dict[str, Any]:
        """Keeps what a phase has found, and returns it."""
        self.saved = self.saved | {"done": {**self.saved["done"], phase: found}, "phase": "", "fit": None}
        if self.trial.method.training is not None:
            self._save({"phase": float(PHASES.index(phase))})
        return found

    def _end_of_epoch(self, phase: str, measure: Callable[[], dict[str, float]]) -> EndOfEpoch:
        """What is called after each epoch: reports, and saves when the last checkpoint is old enough."""

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
