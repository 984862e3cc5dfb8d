"""The command line `tas-ray` with its verbs, and the flags of `jobs`.

Each verb is a dataclass whose fields are its flags and whose `run` calls what a program would call.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from tas_ray import pipeline
from tas_ray.choices import Architecture, Depth, Width, full
from tas_ray.cluster import config
from tas_ray.cluster.folder import claimed, kept_sweep
from tas_ray.cost import CostTable, Row
from tas_ray.data import DataConfig
from tas_ray.distill import Distillation
from tas_ray.evolution import Evolution
from tas_ray.export import ARCHITECTURE_FILE, load_blueprint, save_blueprint
from tas_ray.latency import LatencyTable, Measurement, measure
from tas_ray.limits import TABLE_SUFFIX, Limit
from tas_ray.methods.baselines import Dense, Given, Random, Uniform
from tas_ray.methods.metapruning import MetaPruning, RandomSearch, published_training
from tas_ray.methods.method import Method
from tas_ray.methods.tas import Tas
from tas_ray.pipeline import PHASES, Report, Trial
from tas_ray.plot import draw
from tas_ray.results import RESULT_FILE, leaderboard, print_leaderboard, write_leaderboard
from tas_ray.space import SearchSpace, SpaceConfig
from tas_ray.space import load as load_space
from tas_ray.train import Training
from tas_ray.workers import FileCheckpoints, Workers

CHECKPOINT_FILE = "checkpoint.pt"
MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: the caller's mistake, trials that failed, Ctrl-C."""

DeviceName = Literal["auto", "cpu", "cuda"]
MethodName = Literal["tas", "metapruning", "random-search", "uniform", "random", "dense"]


@dataclass(frozen=True, kw_only=True)
class SpaceFlags:
    """Which networks, and how their candidates are changed."""

    space: Positional[str]
    """Import path of a search space, `package.module:function`, such as
    search_spaces.cifar_resnet:resnet56. Modules in the current folder are found too."""

    options: tuple[str, ...] = ()
    """Arguments of that function as NAME=VALUE, such as published=true."""

    multiple: int = 1
    """Round candidate widths to multiples of this (8 or 16 suit tensor cores)."""

    freeze: tuple[str, ...] = ()
    """Names or patterns ("stage1.*") of widths and depths that stay as in the unpruned network."""

    def load(self, *, classes: int | None, image_size: int | None) -> SearchSpace:
        """The space these flags ask for; None leaves its own size."""
        size = {"classes": classes, "image_size": image_size}
        given = {name: value for name, value in size.items() if value is not None}
        chosen = self.config()
        space = load_space(chosen.name, **{**chosen.options, **given})
        return space if chosen.candidates is None else replace(space, candidates=chosen.candidates)

    def config(self) -> SpaceConfig:
        """What of them goes on record."""
        options = dict(_option(text) for text in self.options)
        candidates = None
        if self.multiple != 1 or self.freeze:
            own = load_space(self.space, **options).candidates
            candidates = replace(own, multiple=self.multiple, freeze=self.freeze)
        return SpaceConfig(name=self.space, options=options, candidates=candidates)


def _option(text: str) -> tuple[str, str | int | float | bool]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"an option of a search space is NAME=VALUE, such as published=true, not {text!r}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, read if isinstance(read, int | float) else value


@dataclass(frozen=True, kw_only=True)
class LocalFlags:
    """Where a stage that runs in this process computes and keeps its files."""

    seed: int = 0
    """Decides initial weights, the order of the data, and every draw."""

    run: str
    """Name of the folder in `storage`."""

    storage: Path = Path("runs")
    """Where runs lie."""

    device: DeviceName = "auto"
    """What to compute on; auto takes a GPU if there is one."""

    def workers(self) -> Workers:
        """This process alone; ValueError if there is no such device."""
        return Workers(device=_device(self.device))

    def trial(self, method: Method, budget: float | None, **settings: Any) -> Trial:
        """A trial whose name and folder follow from its settings: the same command goes on with it."""
        digest = hashlib.sha256(repr((method, budget, sorted(settings.items()))).encode()).hexdigest()[:8]
        amount = "" if budget is None else f"-{budget:g}" if budget <= 1 else f"-{int(budget)}"
        name = f"{method.name}{amount}-seed{self.seed}-{digest}"
        folder = (self.storage / self.run / name).absolute()
        return Trial(run=self.run, name=name, folder=folder, method=method, budget=budget, seed=self.seed, **settings)


def _device(name: DeviceName) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no GPU that torch can use: leave `--device` out, or give cpu")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Show a search space: layers, choices, number of architectures, and what they cost."""

    space: Annotated[SpaceFlags, arg(name="")]

    classes: int | None = None
    """Number of classes. Left out: the space's own."""

    image_size: int | None = None
    """Height and width of an image in pixels. Left out: the space's own."""

    budgets: tuple[float, ...] = ()
    """Say whether these can be reached: MACs above 1 (60e6), else shares of the dense network's (0.5)."""

    def run(self, console: Console) -> None:
        """Prints it; ValueError for a budget that cannot be reached."""
        space = self.space.load(classes=self.classes, image_size=self.image_size)
        console.print(_layer_table(space))
        console.print(_choice_table(space))
        console.print(_cost_table(space))
        console.print(
            "MACs are multiply-accumulates of one image. Papers on pruning mean them when they write FLOPs; "
            "tools that count the multiplication and the addition show twice as many.\n"
        )
        for amount in self.budgets:
            most = space.budget(amount).most
            console.print(f"budget {amount:g}: reachable, at most {most:,} MACs")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measure how long layers and networks of a space take on this machine, for limits on latency, as a CSV.

    Nothing else should run meanwhile. The same command goes on after a stop.
    """

    space: Annotated[SpaceFlags, arg(name="")]

    output: Path = Path("latency.csv")
    """The table, a CSV file."""

    classes: int | None = None
    """Number of classes of the data that will be searched for. Left out: the space's own."""

    image_size: int | None = None
    """Height and width of an image in pixels. Left out: the space's own."""

    measurement: Annotated[Measurement, arg(name="")] = field(default_factory=Measurement)

    device: DeviceName = "auto"
    """What to measure; auto takes a GPU if there is one."""

    def run(self, console: Console) -> None:
        """Measures what is not known yet, and says how far predictions are from whole networks."""
        _refuse_temporary("output", self.output)
        if self.output.suffix != TABLE_SUFFIX:
            raise ValueError(f"a table of latencies is a {TABLE_SUFFIX} file, not {self.output}")
        space = self.space.load(classes=self.classes, image_size=self.image_size)
        with _bars(console) as bars:
            task = bars.add_task("latency", total=None, note="times")
            table = measure(
                space,
                self.measurement,
                _device(self.device),
                self.output,
                on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            )
        _show_latency(table, space, console)
        console.print(
            f"tas-ray search {self.space.space} --method metapruning --budget 0.5 "
            f"--metapruning.limits {_shown(self.output)}=MILLISECONDS",
            soft_wrap=True,
        )


def _show_latency(table: LatencyTable, space: SearchSpace, console: Console) -> None:
    (constant, scale), errors, conditions = table.calibration, abs(table.errors), table.conditions
    smallest, dense = table.cost(space)(space.cost.population([space.smallest, space.dense]))
    console.print(
        f"{conditions.batch_size} images of {conditions.dtype} on {conditions.device} "
        f"({conditions.threads} CPU threads): {smallest:.4g} ms through the smallest network of {space.name}, "
        f"{dense:.4g} ms through the dense one",
        f"predicted: {constant:.3g} ms + {scale:.3g} x the sum over layers ({len(table.layers)} were measured); on "
        f"{len(errors)} other networks off by {np.median(errors):.1%} (median), {errors.max():.1%} (most)",
        sep="\n",
        soft_wrap=True,
    )


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search one architecture for one budget, in this process without Ray, and write architecture.json."""

    space: Annotated[SpaceFlags, arg(name="")]

    budget: float | None = None
    """MACs if above 1 (60e6), else a share of the dense network's (0.5). Only `--method dense` has none."""

    method: MethodName = "tas"
    """How the architecture is found."""

    tas: Tas = field(default_factory=Tas)
    """Settings of TAS."""

    metapruning: MetaPruning = field(default_factory=MetaPruning)
    """Settings of MetaPruning, and of the random search that uses its PruningNet."""

    supernet: Path | None = None
    """A trained PruningNet (supernet.pt) to search with. Left out: it is trained first."""

    data: Annotated[DataConfig, arg(name="")] = field(default_factory=DataConfig)

    local: Annotated[LocalFlags, arg(name="")] = field(default_factory=lambda: LocalFlags(run="search"))

    def run(self, console: Console) -> None:
        """Runs the search, or goes on with it."""
        if self.budget is None and self.method != "dense":
            raise ValueError(f"{self.method} needs a budget, for example --budget 0.5 for half of the dense MACs")
        trial = self.local.trial(
            method_named(self.method, self.tas, self.metapruning),
            self.budget,
            space=self.space.config(),
            data=self.data,
            retrain=Training(),
            supernet=self.supernet and self.supernet.absolute(),
        )
        with claimed(trial.folder), _progress(console) as report:
            checkpoints = FileCheckpoints(trial.folder / CHECKPOINT_FILE)
            found = pipeline.search(trial, self.local.workers(), checkpoints, report)
            save_blueprint(trial.folder, found.blueprint)
        console.print(str(found.blueprint.architecture), soft_wrap=True)
        score = "" if found.accuracy is None else f", {found.accuracy:.2%} on the search split with shared weights"
        console.print(f"{found.macs:,} MACs, {found.params:,} parameters{score}")
        if isinstance(trial.method, MetaPruning):
            blueprint = found.blueprint
            space = blueprint.space.load(classes=blueprint.classes, image_size=blueprint.image_size)
            for constraint in (limit.constraint(space) for limit in trial.method.limits):
                cost = constraint.cost(space.cost.population([blueprint.architecture]))[0]
                console.print(
                    f"{cost:,.6g} {constraint.name}, limited to {constraint.least:,.6g} to {constraint.most:,.6g}"
                )
        console.print(f"tas-ray retrain {_shown(trial.folder / ARCHITECTURE_FILE)}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train one architecture in this process, without Ray, and write its weights and result."""

    architecture: Positional[Path]
    """An architecture.json, as `tas-ray search` and finished trials write it, or the folder it lies in."""

    budget: float | None = None
    """The budget it was found for, for the record. Left out: its own MACs."""

    teacher: Path | None = None
    """Folder of a finished dense network to learn from. Left out: the labels alone."""

    initialization: Literal["random", "dense"] = "random"
    """Weights the training starts from: random, or the teacher's leading channels."""

    training: Annotated[Training, arg(name="")] = field(default_factory=Training)

    distillation: Distillation = field(default_factory=Distillation)
    """How it learns from a teacher."""

    data: Annotated[DataConfig, arg(name="")] = field(default_factory=DataConfig)

    local: Annotated[LocalFlags, arg(name="")] = field(default_factory=lambda: LocalFlags(run="retrain"))

    def run(self, console: Console) -> None:
        """Runs the training, or goes on with it."""
        trial = self._trial()
        with claimed(trial.folder), _progress(console) as report:
            checkpoints = FileCheckpoints(trial.folder / CHECKPOINT_FILE)
            result = pipeline.run(trial, self.local.workers(), checkpoints, report)
            checkpoints.path.unlink(missing_ok=True)
        dense = "" if result.dense_accuracy is None else f", dense {result.dense_accuracy:.2%}"
        console.print(f"{result.test_accuracy:.2%} on the test set{dense}; {result.macs:,} MACs")
        console.print(f"network and result: {_shown(trial.folder)}", soft_wrap=True)

    def _trial(self) -> Trial:
        blueprint = load_blueprint(_folder_of(self.architecture))
        space = blueprint.space.load(classes=blueprint.classes, image_size=blueprint.image_size)
        space.validate(blueprint.architecture)
        dense = dict(blueprint.architecture) == dict(space.dense)
        return self.local.trial(
            Dense() if dense else Given(architecture=blueprint.architecture),
            None if dense else self.budget or float(space.macs(blueprint.architecture)),
            space=blueprint.space,
            data=self.data,
            retrain=self.training,
            distillation=self.distillation if self.teacher else None,
            teacher=self.teacher.absolute() if self.teacher else None,
            initialization=self.initialization,
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Search and retrain every method at every budget with every seed, on a Ray cluster or this machine.

    The dense network is trained first, the same way, and teaches the others. The same command goes on after a
    stop. For swept hyper-parameters, Optuna and early stopping, write a function like those in jobs/.
    """

    space: Annotated[SpaceFlags, arg(name="")]

    run_name: Annotated[str, arg(name="run")]
    """Name of the run: its folder in `storage`, a column of the leaderboard."""

    budgets: tuple[float, ...]
    """MACs above 1 (60e6), shares of the dense network's MACs otherwise (0.25 0.5 0.75)."""

    methods: tuple[MethodName, ...] = ("tas", "metapruning", "uniform", "random")
    """How architectures are found."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of search and retraining."""

    storage: Path = Path("runs")
    """Where runs lie. With more than one node: a folder all of them see."""

    tas: Tas = field(default_factory=Tas)
    """Settings of TAS."""

    metapruning: MetaPruning = field(default_factory=MetaPruning)
    """Settings of MetaPruning, and of the random search that uses its PruningNet."""

    retrain: Training = field(default_factory=Training)
    """Training of the dense network and of each architecture found."""

    distill: bool = True
    """Architectures found learn from the dense network too, not from labels alone."""

    distillation: Distillation = field(default_factory=Distillation)
    """How they learn from it."""

    data: Annotated[DataConfig, arg(name="")] = field(default_factory=DataConfig)

    resources: config.Resources = field(default_factory=config.Resources)
    """What a trial gets of the cluster."""

    def run(self, console: Console) -> None:
        """Runs what is left of the sweep and shows the leaderboard."""
        run_sweep(
            config.Sweep(
                run=self.run_name,
                storage=self.storage,
                space=self.space.config(),
                data=self.data,
                methods=tuple(method_named(name, self.tas, self.metapruning) for name in self.methods),
                budgets=self.budgets,
                seeds=self.seeds,
                teacher=self.retrain,
                retrain=self.retrain,
                distillation=self.distillation if self.distill else None,
                resources=self.resources,
            ),
            console,
        )


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Retrain some candidates of a run's finished searches: do the scores rank networks as training does?

    The number, Kendall's tau, is added to the leaderboard. The same command goes on after a stop.
    """

    folder: Positional[Path]
    """A run's folder, with a search of metapruning or random-search that has finished."""

    settings: Annotated[config.Fidelity, arg(name="")] = field(default_factory=config.Fidelity)

    def run(self, console: Console) -> None:
        """Runs what is left of it and shows the leaderboard."""
        sweep = kept_sweep(self.folder)
        from tas_ray.cluster.fidelity import fidelity  # Ray takes seconds to import

        try:
            fidelity(sweep, self.settings)
        except RuntimeError as error:
            _complain(str(error))
            raise SystemExit(FAILED) from error
        if any(self.folder.rglob(RESULT_FILE)):
            Leaderboard(folder=self.folder).run(console)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Print the leaderboard of a run, or of a folder of runs, and write it as CSV and picture."""

    folder: Positional[Path]
    """A run's folder, or one that holds several runs."""

    def run(self, console: Console) -> None:
        """Prints, writes and draws."""
        table = leaderboard(self.folder)
        print_leaderboard(table, console)
        csv = write_leaderboard(self.folder)
        picture = draw(table, csv.with_suffix(".png"))
        console.print(f"table:   {_shown(csv)}\npicture: {_shown(picture)}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Three budgets on handwritten digits, with TAS, MetaPruning, uniform scaling and random networks: minutes."""

    storage: Path = Path("runs")
    """Where the run is kept."""

    def run(self, console: Console) -> None:
        """Runs what is left of it and shows the leaderboard."""
        run_sweep(quickstart(storage=self.storage), console)


def quickstart(*, storage: Path = Path("runs")) -> config.Sweep:
    """A tiny network on scikit-learn's digits: dense, and four methods at three budgets, one seed.

    Args:
        storage: Where the run is kept.
    """
    training = Training(epochs=20, warmup_epochs=2, batch_size=64)
    return config.Sweep(
        run="quickstart",
        storage=storage,
        methods=(
            Tas(search=Training(epochs=20, warmup_epochs=0, batch_size=64), learning_rate=0.03),
            MetaPruning(
                supernet=replace(published_training(), epochs=30, batch_size=64, learning_rate=0.1),
                hidden=32,
                sampler="even",
                evolution=Evolution(population=20, parents=5, mutations=10, crossovers=10, generations=5),
            ),
            Uniform(),
            Random(),
        ),
        budgets=(0.06, 0.12, 0.25),
        teacher=training,
        retrain=training,
    )


def method_named(name: MethodName, tas: Tas, metapruning: MetaPruning) -> Method:
    """The method of this name, with these settings if it has any."""
    match name:
        case "tas":
            return tas
        case "metapruning":
            return metapruning
        case "random-search":
            return RandomSearch.beside(metapruning)
        case "uniform":
            return Uniform()
        case "random":
            return Random()
        case "dense":
            return Dense()


def run_sweep(sweep: config.Sweep, console: Console) -> None:
    """Runs a sweep, or goes on with it, and shows its leaderboard; exits with `FAILED` if trials failed."""
    _refuse_temporary("storage", sweep.storage)
    from tas_ray.cluster.sweep import sweep as run  # Ray takes seconds to import, and only sweeps need it

    try:
        run(sweep)
    except RuntimeError as error:
        if sweep.folder.is_dir() and any(sweep.folder.rglob("result.json")):
            Leaderboard(folder=sweep.folder).run(console)
        _complain(str(error))
        raise SystemExit(FAILED) from error
    Leaderboard(folder=sweep.folder).run(console)


def _refuse_temporary(flag: str, path: Path) -> None:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not path.is_absolute():
        raise ValueError(
            f"a submitted job runs in a temporary copy of its working folder, where {path} would be "
            f"lost: give `--{flag}` an absolute path that all nodes see"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the verb that the arguments (of the process, if left out) name."""
    sys.path.append(str(Path.cwd()))  # the user's own search spaces
    with _explained():
        verb = tyro.cli(
            Describe | Latency | Search | Retrain | Sweep | Fidelity | Leaderboard | Quickstart,
            prog="tas-ray",
            description="Search architectures that prune convolutional networks to a compute budget, retrain "
            "them, rank them. Begin with `tas-ray quickstart`.",
            args=arguments,
            registry=_REGISTRY,
        )
        verb.run(Console())


def job(define: Callable[..., config.Sweep | Latency], arguments: Sequence[str] | None = None) -> None:
    """Runs the sweep or measurement `define` returns; the arguments of the process are those of `define`."""
    with _explained():
        prog = f"python -m jobs.{define.__name__}"
        match tyro.cli(define, prog=prog, args=arguments, config=(OmitArgPrefixes,), registry=_REGISTRY):
            case Latency() as latency:
                latency.run(Console())
            case sweep:
                run_sweep(sweep, Console())


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _limit_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Limit] | None:
    """Has limits written as COST=MOST; what is wrong with one is said in its own words."""
    if info.type is not Limit:
        return None

    def read(words: list[str]) -> Limit:
        with _explained():
            return Limit.parse(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="COST=MOST",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Limit),
        str_from_instance=lambda limit: [f"{limit.cost}={limit.least:g}..{limit.most:g}"],
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Turns the caller's mistakes and Ctrl-C into a line and an exit code."""
    try:
        yield
    except ValueError as error:
        _complain(str(error))
        raise SystemExit(MISTAKE) from error
    except KeyboardInterrupt as error:
        _complain("stopped; the same command goes on from the latest checkpoint")
        raise SystemExit(INTERRUPTED) from error


def _complain(text: str) -> None:
    Console(stderr=True).print(Text(text, style="red"), soft_wrap=True)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """Bars for search and retraining, and the function that moves them by an epoch's metrics."""
    with _bars(console) as bars:
        tasks: dict[str, Any] = {}

        def report(metrics: dict[str, float]) -> None:
            phase = PHASES[int(metrics["phase"])]
            if phase not in tasks:  # the first epoch reported is not number 1 where a training goes on
                begun = int(metrics["epoch"]) - 1
                tasks[phase] = bars.add_task(phase, total=metrics["epochs"], completed=begun, note="")
            loss, score = metrics.get("loss"), metrics.get("score")
            note = f"candidates, best {score:.2%}" if loss is None else f"epochs, loss {loss:.3f}"
            bars.update(tasks[phase], completed=int(metrics["epoch"]), note=note)

        yield report


def _layer_table(space: SearchSpace) -> Table:
    table = _table(f"layers of {space.name}, unpruned", left=("output", "layer"))
    for name in ("channels", "positions", "MACs", "params"):
        table.add_column(name, justify="right", no_wrap=True)
    dense = space.cost.population([space.dense])
    for row in space.cost.rows:
        alone = CostTable(space.choices, (row,))
        macs, params = int(alone.macs(dense)[0]), int(alone.params(dense)[0])
        costs = (f"{macs:,}", f"{params:,}") if macs else ("-", "-")
        sizes = f"{full(row.c_in)} > {full(row.c_out)}"
        table.add_row(_output(row), _kind(row), sizes, f"{row.positions:,}", *costs)
    return table


def _table(title: str, left: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, no_wrap=name != "options")
    return table


def _output(row: Row) -> str:
    """The name of a layer's width; a frozen one has none, so the block instead."""
    if isinstance(row.c_out, Width):
        return row.c_out.name
    return f"{row.kept.depth.name.removesuffix('.depth')}.block{row.kept.block}" if row.kept else ""


def _kind(row: Row) -> str:
    if row.bias:
        return "linear"
    if row.projection:
        return "1x1 if widths differ"
    return f"{row.kernel}x{row.kernel}" + " depthwise" * row.depthwise


def _choice_table(space: SearchSpace) -> Table:
    table = _table("choices", left=("name", "of", "options"))
    for choice in space.choices:
        kind = "blocks" if isinstance(choice, Depth) else "channels"
        table.add_row(choice.name, kind, " ".join(map(str, choice.options)))
    return table


def _cost_table(space: SearchSpace) -> Table:
    table = _table(f"{_count(space.size)} architectures", left=("",))
    for name in ("MACs", "of dense", "params"):
        table.add_column(name, justify="right", no_wrap=True)
    dense = space.macs(space.dense)
    for name, architecture in (
        ("minimum", space.smallest),
        ("dense", space.dense),
        ("maximum found", _most_expensive(space)),
    ):
        macs = space.macs(architecture)
        table.add_row(name, f"{macs:,}", f"{macs / dense:.1%}", f"{space.params(architecture):,}")
    return table


def _most_expensive(space: SearchSpace) -> Architecture:
    """Where the dense network ends when one choice at a time raises its MACs: projections can cost more."""
    best = space.cost.population([space.dense])
    for _ in range(2 * len(space.choices)):
        changes = np.repeat(best, sum(len(choice.options) for choice in space.choices), axis=0)
        row = 0
        for column, choice in enumerate(space.choices):
            for option in choice.options:
                changes[row, column] = option
                row += 1
        macs = space.cost.macs(changes)
        if macs.max() <= space.cost.macs(best)[0]:
            break
        best = changes[[macs.argmax()]]
    return Architecture({choice.name: int(v) for choice, v in zip(space.choices, best[0], strict=True)})


def _count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{float(number):.2g}" if number < 1e300 else "over 1e300"


def _folder_of(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.name != ARCHITECTURE_FILE:
        raise ValueError(f"{path} is no folder and not called {ARCHITECTURE_FILE}: give one of the two")
    return path.parent


def _shown(path: Path) -> Path:
    """The path from the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
