"""Whether scores rank networks: the measure on known numbers, the choice of networks, and images nobody has seen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tas_ray.choices import Architecture
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.evaluation import Evaluation, evaluation_images, unscored
from tas_ray.fidelity import ScoredNetwork, comparable, kendall, stratified
from tas_ray.methods.baselines import Given
from tas_ray.pipeline import MEASURED_FILE, Measured, Trial, measure, read_measured
from tas_ray.space import Budget, SpaceConfig
from tas_ray.space import load as load_space
from tas_ray.supernets import unscored_by
from tas_ray.train import Training
from tas_ray.workers import Checkpoints, FileCheckpoints, Workers

CPU = torch.device("cpu")
SPACE = load_space("search_spaces.tiny:tiny")


# Kendall's tau


def naive_tau(x: list[float], y: list[float]) -> float:
    """Tau-b by its definition, pair by pair."""
    pairs = list(itertools.combinations(zip(x, y, strict=True), 2))
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in pairs]
    agreeing = sum(s * t for s, t in signs)
    return float(agreeing / np.sqrt(sum(s != 0 for s, _ in signs) * sum(t != 0 for _, t in signs)))


def test_tau_is_what_its_definition_says() -> None:
    assert kendall([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.4, 0.3], seed=0).tau == pytest.approx(4 / 6)
    assert kendall([1.0, 2.0, 3.0], [0.3, 0.2, 0.1], seed=0).tau == -1
    random = np.random.default_rng(0)
    for _ in range(20):
        x, y = (random.integers(most, size=9).astype(float).tolist() for most in (6, 4))
        assert kendall(x, y, seed=0).tau == pytest.approx(naive_tau(x, y))


def test_p_is_exact_where_nothing_is_tied() -> None:
    rising = [1.0, 2.0, 3.0, 4.0]
    assert kendall(rising, rising, seed=0).p == pytest.approx(2 / 24)  # 2 of 4! orders are as extreme


def test_the_interval_holds_the_tau_narrows_with_more_networks_and_is_always_the_same() -> None:
    random = np.random.default_rng(1)
    widths = []
    for count in (10, 40):
        scores = random.uniform(size=count)
        found = kendall(scores.tolist(), (scores + 0.3 * random.normal(size=count)).tolist(), seed=3)
        assert -1 <= found.low < found.tau < found.high <= 1
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 3.0, 5.0, 4.0]
    assert kendall(x, y, seed=3) == kendall(x, y, seed=3)


def test_scores_that_say_nothing_have_zero_in_the_interval_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    found = [kendall(random.uniform(size=12).tolist(), random.uniform(size=12).tolist(), seed=i) for i in range(20)]
    assert sum(one.low <= 0 <= one.high for one in found) >= 16


@pytest.mark.parametrize(
    ("scores", "accuracies", "message"),
    [
        ([0.5] * 3, [0.1, 0.2, 0.3], "the same score, 0.5"),
        ([1.0, 2.0, 3.0], [0.1] * 3, "the same accuracy, 0.1: retrain"),
    ],
)
def test_what_has_no_order_has_no_tau(scores: list[float], accuracies: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kendall(scores, accuracies, seed=0)


# Which networks


def networks(scores: list[float]) -> list[ScoredNetwork]:
    return [ScoredNetwork(Architecture({"width": number}), 10, score) for number, score in enumerate(scores)]


def test_one_network_comes_from_each_quantile_of_the_scores() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(40.0) ** 3).tolist()
    chosen = [network.score for network in stratified(networks(scores), 8, seed=1)]
    ranks = [sorted(scores).index(score) for score in chosen]
    assert [rank // 5 for rank in ranks] == list(range(8))
    assert stratified(networks(scores), 8, seed=1) == stratified(networks(scores), 8, seed=1)
    assert stratified(networks(scores), 8, seed=1) != stratified(networks(scores), 8, seed=2)


def test_all_candidates_are_taken_where_there_are_no_more() -> None:
    assert [network.score for network in stratified(networks([3.0, 1.0, 2.0]), 3, seed=0)] == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"4 networks were asked for, but the search scored 3 there.*`below`"):
        stratified(networks([3.0, 1.0, 2.0]), 4, seed=0)


def test_only_networks_that_nearly_use_the_budget_are_compared() -> None:
    drawn = [SPACE.sample(Budget(most=SPACE.macs(SPACE.dense)), seed=seed) for seed in range(60)]
    scores = {architecture: number / 100 for number, architecture in enumerate(drawn)}
    middle = sorted(SPACE.macs(architecture) for architecture in scores)[30]
    found = comparable(SPACE, scores, Budget(most=middle), below=0.3)
    assert [one.architecture for one in found] == [a for a in scores if 0.7 * middle <= SPACE.macs(a) <= middle]
    assert all(one.macs == SPACE.macs(one.architecture) and one.score == scores[one.architecture] for one in found)
    tighter = comparable(SPACE, scores, Budget(most=middle, least=int(0.9 * middle)), below=0.3)
    assert 0 < len(tighter) < len(found)
    assert all(one.macs >= int(0.9 * middle) for one in tighter)
    assert comparable(SPACE, {}, Budget(most=middle), below=0.3) == []


def test_twins_are_one_network() -> None:
    shallow = dict(SPACE.dense) | {depth.name: min(depth.options) for depth in SPACE.depths}
    gone = "stage1.block1.conv1"
    twins = {Architecture(shallow): 0.5, Architecture(shallow | {gone: 1}): 0.5}
    assert len(comparable(SPACE, twins, Budget(most=SPACE.macs(SPACE.dense)), below=1.0)) == 1


# Which images


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), CPU)


def images_of(dataset: Dataset, split: Any) -> list[bytes]:
    images, _ = dataset.pixels(split, torch.arange(dataset.size(split)))
    return [image.tobytes() for image in images.numpy()]


@pytest.mark.parametrize("settings", [Evaluation(), Evaluation(images=200)])
def test_images_are_measured_on_that_neither_scores_nor_training_saw(digits: Dataset, settings: Evaluation) -> None:
    left = unscored(digits, settings, seed=0)
    rows = {split: set(left.rows[split].tolist()) for split in ("train", "search")}
    assert not rows["train"] & rows["search"]
    assert rows["search"] < set(digits.rows["search"].tolist())
    scored = evaluation_images(digits, settings, seed=0)
    assert len(scored.images) + left.size("search") == digits.size("search")
    everything = sorted([*(image.tobytes() for image in scored.images), *images_of(left, "search")])
    assert everything == sorted(images_of(digits, "search"))  # so that no image is in both, or in none


def test_a_search_that_scored_on_every_image_leaves_none(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"Search again with fewer `evaluation.images`"):
        unscored(digits, Evaluation(images=digits.size("search")), seed=0)


# The training


def a_trial(folder: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "run": "demo",
        "name": "candidate",
        "folder": folder,
        "space": SpaceConfig(),
        "data": DataConfig(),
        "method": Given(architecture=SPACE.smallest),
        "budget": float(SPACE.macs(SPACE.smallest)),
        "seed": 3,
        "retrain": Training(epochs=3, warmup_epochs=0, batch_size=128),
        "holdout": True,
        "unscored": Evaluation(),
        "checkpoint_seconds": 0.0,
    }
    return Trial(**(settings | changes))


def measured(trial: Trial, report: Callable[[dict[str, float]], None] = lambda metrics: None) -> Measured:
    return measure(trial, Workers(), FileCheckpoints(trial.folder / "state.pt"), report)


def test_a_measured_network_leaves_its_accuracy_on_unscored_images_and_no_result(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    batches = type(digits).batches

    def watched(self: Any, split: Any, *arguments: Any, **named: Any) -> Any:
        seen.add(f"{split} {self.size(split)}")
        return batches(self, split, *arguments, **named)

    monkeypatch.setattr(type(digits), "batches", watched)
    found = measured(a_trial(tmp_path))
    left = unscored_by(digits, Evaluation()).size("search")
    assert seen == {f"train {digits.size('train')}", f"search {left}"}
    assert found.images == left
    assert found.macs == SPACE.macs(SPACE.smallest)
    assert round(found.validation_accuracy * left) == pytest.approx(found.validation_accuracy * left)
    assert {path.name for path in tmp_path.iterdir()} == {MEASURED_FILE, "state.pt"}
    assert read_measured(tmp_path) == found


class Killed(Exception):
    """Ends a training as a kill would."""


class Fragile(Checkpoints):
    """Checkpoints that are written once, and then the process ends."""

    def __init__(self, kept: FileCheckpoints) -> None:
        self.kept = kept

    def load(self) -> dict[str, Any] | None:
        return self.kept.load()

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        self.kept.save(state, metrics)
        raise Killed


def test_a_killed_measurement_goes_on_and_ends_the_same_and_is_not_repeated(tmp_path: Path) -> None:
    trial = a_trial(tmp_path / "killed")
    kept = FileCheckpoints(trial.folder / "state.pt")
    with pytest.raises(Killed):
        measure(trial, Workers(), Fragile(kept), lambda metrics: None)
    epochs: list[float] = []
    found = measured(trial, lambda metrics: epochs.append(metrics["epoch"]))
    assert epochs == [2, 3]
    undisturbed = measured(a_trial(tmp_path / "undisturbed"))
    assert replace(found, retrain_seconds=0.0) == replace(undisturbed, retrain_seconds=0.0)
    assert measured(trial, lambda metrics: epochs.append(metrics["epoch"])) == found
    assert epochs == [2, 3]


def test_a_damaged_measurement_is_named(tmp_path: Path) -> None:
    (tmp_path / MEASURED_FILE).write_text(json.dumps({"macs": 1}))
    with pytest.raises(ValueError, match=r"measured.json cannot be read .*: delete it"):
        read_measured(tmp_path)
