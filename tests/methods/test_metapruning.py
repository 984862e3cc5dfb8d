"""MetaPruning: its PruningNet's published sizes, what it is trained on, the search in one process from end to end."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.metapruning_resnet import resnet50
from search_spaces.mobilenet_v1 import mobilenet_v1
from search_spaces.mobilenet_v2 import mobilenet_v2
from search_spaces.tiny import tiny
from tas_ray.choices import Candidates, Width
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.metapruning import Limit, MetaPruning, PruningTask, RandomSearch, published_training
from tas_ray.methods.pruningnet import GeneratedConvBN
from tas_ray.pipeline import Trial, plan, prepare, run
from tas_ray.results import read_result
from tas_ray.space import SearchSpace, SpaceConfig
from tas_ray.supernets import SUPERNET_FILE
from tas_ray.train import Training, fit
from tas_ray.workers import Checkpoints, FileCheckpoints, Workers

CPU = torch.device("cpu")
BRIEF = replace(published_training(), epochs=12, batch_size=32, learning_rate=0.1)
SMALL = Evolution(population=8, parents=3, mutations=4, crossovers=4, generations=3)
METHOD = MetaPruning(
    supernet=BRIEF,
    hidden=16,
    hidden_alone=16,
    sampler="even",
    evolution=SMALL,
    evaluation=Evaluation(calibration_images=200, images=200),
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), CPU)


# Published sizes (specification, sections 2.2 and 2.3)


def on_meta(space: SearchSpace, hidden: int) -> PruningTask:
    with torch.device("meta"):
        task = MetaPruning(hidden=hidden).task(space, seed=0)
    assert isinstance(task, PruningTask)
    return task


def layers_of(task: PruningTask) -> list[GeneratedConvBN]:
    return [module for module in task.net.modules() if isinstance(module, GeneratedConvBN)]


@pytest.mark.parametrize(
    ("space", "hidden", "millions", "generated", "batch_norms"),
    [
        (mobilenet_v1(), 32, 106.31, 3.185, 837),
        (mobilenet_v2(), 64, 241.99, 3.986, 1643),
        (resnet50(), 32, 776.07, 23.455, 1643),
    ],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else str(value),
)
def test_pruning_nets_have_the_published_sizes(
    space: SearchSpace, hidden: int, millions: float, generated: float, batch_norms: int
) -> None:
    task = on_meta(space, hidden)
    parameters = sum(parameter.numel() for parameter in task.net.parameters())
    layers = layers_of(task)
    if space.name == "mobilenet_v1":  # published scales and shifts: the stem's and those behind depthwise convolutions
        parameters += 2 * sum(sum(layer.options) for layer in layers if layer.depthwise or layer is layers[0])
    assert parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert sum(np.prod(layer.generator.shape) for layer in layers) / 1e6 == pytest.approx(generated, abs=0.0006)
    # One BatchNorm for each of 31 ids in the reference; ids that are the same width are one here.
    assert 31 * len(layers) == batch_norms


def test_generators_see_the_ratios_of_their_block_in_the_published_order() -> None:
    task = on_meta(mobilenet_v2(), 64)
    names = [tuple(c.name for c in layer.context if isinstance(c, Width)) for layer in layers_of(task)]
    assert names[0] == ("stem",)
    assert names[-1] == ("stage7.out",)
    assert names[4:7] == [("stage2.block0.hidden", "stage1.out", "stage2.out")] * 3


# What the PruningNet is trained on


def genes(task: PruningTask, steps: int) -> np.ndarray:
    space = task.space
    drawn = space.cost.population([task.structure(step) for step in range(steps)])
    columns = [np.searchsorted(choice.options, drawn[:, i]) for i, choice in enumerate(space.choices)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("sampler", ["uniform", "even"])
def test_every_gene_of_the_structures_is_uniform(sampler: Any) -> None:
    space = tiny()
    task = MetaPruning(hidden=4, hidden_alone=4, sampler=sampler).task(space, seed=0)
    assert isinstance(task, PruningTask)
    drawn = genes(task, 4000)
    for column, choice in zip(drawn.T, space.choices, strict=True):
        counts = Counter(column.tolist())
        expected = len(drawn) / len(choice.options)
        assert all(abs(counts[i] - expected) < 6 * expected**0.5 for i in range(len(choice.options)))


def test_even_structures_reach_both_ends_of_the_cost_far_more_often() -> None:
    space = tiny()
    shares = {}
    for sampler in ("uniform", "even"):
        task = MetaPruning(hidden=4, hidden_alone=4, sampler=sampler).task(space, seed=0)
        assert isinstance(task, PruningTask)
        macs = space.cost.macs(space.cost.population([task.structure(step) for step in range(2000)]))
        shares[sampler] = np.mean(macs < 0.12 * space.macs(space.dense))
    assert shares["even"] > 2 * shares["uniform"]


def test_structures_depend_on_seed_and_step_alone() -> None:
    one, same, other = (MetaPruning(hidden=4, hidden_alone=4).task(tiny(), seed=seed) for seed in (1, 1, 2))
    assert isinstance(one, PruningTask)
    assert isinstance(same, PruningTask)
    assert isinstance(other, PruningTask)
    assert [one.structure(i) for i in (3, 5)] == [same.structure(i) for i in (3, 5)]
    assert one.structure(3) != other.structure(3)


class Enough(Exception):
    """Ends a training."""


def test_a_training_interrupted_between_epochs_ends_bit_for_bit_as_an_uninterrupted_one(digits: Dataset) -> None:
    training = replace(BRIEF, epochs=4)
    method = replace(METHOD, supernet=training)
    saved: dict[str, Any] = {}

    def trained(state: Any, until: int) -> PruningTask:
        def end_of_epoch(epoch: int, metrics: dict[str, float], state: Any) -> None:
            if epoch == until:
                saved.update(state())
                raise Enough

        task = method.task(tiny(), seed=0)
        assert isinstance(task, PruningTask)
        with suppress(Enough):
            fit(task, digits, training, seed=0, workers=Workers(), state=state, end_of_epoch=end_of_epoch)
        return task

    whole = trained(None, until=9)
    trained(None, until=2)
    resumed = trained(dict(saved), until=9)
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(generator.lag is not None and generator.lag.behind.any() for generator in whole.net.generators)


# From end to end in this process


def a_trial(folder: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "run": "demo",
        "name": "trial",
        "folder": folder,
        "space": SpaceConfig(),
        "data": DataConfig(),
        "method": METHOD,
        "budget": 0.3,
        "seed": 0,
        "retrain": Training(epochs=1, warmup_epochs=0),
    }
    return Trial(**(settings | changes))


def run_here(trial: Trial) -> list[dict[str, float]]:
    reported: list[dict[str, float]] = []
    run(trial, Workers(), FileCheckpoints(trial.folder / "state.pt"), reported.append)
    return reported


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = a_trial(tmp_path_factory.mktemp("finished"))
    run_here(trial)
    return trial


def scores(folder: Path) -> dict[str, float]:
    (journal,) = folder.glob("scores-*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return {json.dumps(line["architecture"]): line["score"] for line in lines}


def test_a_trial_searches_and_retrains(finished: Trial) -> None:
    result = read_result(finished.folder / "result.json")
    space = tiny()
    assert result.macs <= 0.3 * space.macs(space.dense)
    assert (result.method, result.evaluations) == ("metapruning", 24)
    known = scores(finished.folder)
    assert len(known) == 24
    assert result.search_accuracy == max(known.values())
    assert result.search_seconds > 0


def test_a_trained_supernet_serves_another_budget(finished: Trial, tmp_path: Path) -> None:
    trial = a_trial(tmp_path, budget=0.6, supernet=finished.folder / SUPERNET_FILE)
    phases = {metrics["phase"] for metrics in run_here(trial)}
    assert phases == {1.0, 2.0}  # nothing is trained before the evolution
    assert not (tmp_path / SUPERNET_FILE).exists()


def test_random_search_scores_as_many(finished: Trial, tmp_path: Path) -> None:
    trial = a_trial(tmp_path, method=RandomSearch.beside(METHOD), supernet=finished.folder / SUPERNET_FILE)
    run_here(trial)
    result = read_result(tmp_path / "result.json")
    assert (result.method, result.evaluations, len(scores(tmp_path))) == ("random-search", 24, 24)
    (ours,), (theirs,) = ([file.name for file in folder.glob("scores-*")] for folder in (tmp_path, finished.folder))
    assert ours == theirs  # one context: what one has scored, the other may use


def test_an_evolution_goes_on_where_it_was_killed(finished: Trial, tmp_path: Path) -> None:
    trial = a_trial(tmp_path, supernet=finished.folder / SUPERNET_FILE)
    (journal,) = finished.folder.glob("scores-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    torn = "".join(lines[:13]) + lines[13][:20]
    (tmp_path / journal.name).write_text(torn)
    run_here(trial)
    assert scores(tmp_path) == scores(finished.folder)
    assert (tmp_path / journal.name).read_text().startswith("".join(lines[:13]))
    ours, theirs = (read_result(folder / "result.json") for folder in (tmp_path, finished.folder))
    assert (ours.architecture, ours.test_accuracy) == (theirs.architecture, theirs.test_accuracy)


def test_limits_bind_every_candidate(finished: Trial, tmp_path: Path) -> None:
    space = tiny()
    most = 0.2 * space.params(space.dense)
    method = replace(METHOD, limits=(Limit(cost="params", most=most),))
    run_here(a_trial(tmp_path, method=method, supernet=finished.folder / SUPERNET_FILE))
    assert read_result(tmp_path / "result.json").params <= most


def test_a_supernet_prepared_alone_is_the_same(finished: Trial, tmp_path: Path) -> None:
    trial = a_trial(tmp_path, budget=None)
    path = prepare(trial, Workers(), FileCheckpoints(tmp_path / "state.pt"), lambda metrics: None)
    ours, theirs = (torch.load(file, weights_only=True)["module"] for file in (path, finished.folder / SUPERNET_FILE))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Refused before anything is spent, or before scores that mean nothing


class Untouched(Checkpoints):
    def load(self) -> dict[str, Any] | None:
        return None

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        raise AssertionError("something was trained")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": SpaceConfig(options={"published": True})}, "needs tied widths"),
        ({"budget": 0.001}, "the smallest network of tiny has"),
        ({"method": replace(METHOD, limits=(Limit(cost="params", most=10.0),))}, "params"),
        ({"method": replace(METHOD, tolerance=0.0)}, "nearest"),
        ({"space": SpaceConfig(candidates=Candidates(freeze=("*",)))}, "MACs"),
    ],
)
def test_the_impossible_is_refused_at_once(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, **changes), classes=10, image_size=8)


def test_several_workers_leave_the_search_to_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 workers train one network together.*`searched`"):
        run(a_trial(tmp_path), Workers(world=2), Untouched(), lambda metrics: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(split_seed=7)}, r"split: seed 111.*there, seed 7"),
        ({"space": SpaceConfig(name="search_spaces.cifar_resnet:resnet20")}, "space: .*tiny:tiny"),
        ({"method": replace(METHOD, hidden=9)}, "size mismatch"),
    ],
)
def test_a_supernet_of_something_else_is_refused(
    changes: dict[str, Any], message: str, finished: Trial, tmp_path: Path
) -> None:
    trial = a_trial(tmp_path, supernet=finished.folder / SUPERNET_FILE, **changes)
    with pytest.raises(ValueError, match="was trained for something else") as caught:
        run_here(trial)
    assert any(part in str(caught.value).replace("\n", " ") for part in [message.split(".*")[0]])


def test_a_missing_supernet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no supernet in"):
        run_here(a_trial(tmp_path, supernet=tmp_path / "nowhere.pt"))


def test_an_untrained_supernet_is_refused_before_the_search(tmp_path: Path) -> None:
    frozen = replace(BRIEF, epochs=1, learning_rate=1e-9)
    trial = a_trial(tmp_path, method=replace(METHOD, supernet=frozen))
    with pytest.raises(ValueError, match="the unpruned network scores"):
        run_here(trial)
    (journal,) = tmp_path.glob("scores-*.jsonl")
    assert journal.read_text() == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "at least 1 hidden unit"),
        ({"tolerance": 1.0}, r"share of the dense MACs in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaPruning(**settings)
