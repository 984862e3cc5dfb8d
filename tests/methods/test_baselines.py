"""What needs no search: uniform scaling, a random architecture, a given one, the dense network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from search_spaces import cifar_resnet
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates, Depth
from tas_ray.methods.baselines import Dense, Given, Random, Uniform, scaled
from tas_ray.space import Budget, SearchSpace

SPACES = [tiny(), tiny(published=True), cifar_resnet.resnet20(published=True)]
each_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


@pytest.mark.parametrize(
    ("define", "classes", "kept", "macs"),
    [
        (cifar_resnet.resnet20, 10, 0.5, 19_656_194),
        (cifar_resnet.resnet32, 100, 0.6, 39_488_356),
        (cifar_resnet.resnet32, 100, 0.615, 41_095_816),
    ],
)
def test_scaling_by_a_root_is_the_papers_fixed_baseline(
    define: Callable[..., SearchSpace], classes: int, kept: float, macs: int
) -> None:
    space = define(classes=classes, published=True)
    architecture = scaled(space, math.sqrt(kept))
    assert space.macs(architecture) == macs


def test_the_papers_fixed_resnet_32_has_12_25_and_50_channels() -> None:
    architecture = scaled(cifar_resnet.resnet32(published=True), math.sqrt(0.615))
    assert {architecture[f"stage{stage}.block0.conv1"] for stage in (1, 2, 3)} == {12, 25, 50}
    assert all(architecture[f"stage{stage}.depth"] == 5 for stage in (1, 2, 3))


@each_space
@pytest.mark.parametrize("share", [0.2, 0.5, 0.77, 1.0])
def test_the_uniform_network_is_the_largest_of_its_kind_within_the_budget(space: SearchSpace, share: float) -> None:
    budget = space.budget(share)
    architecture = Uniform().propose(space, budget, None, seed=0)
    assert budget.admits(space.macs(architecture))
    every = space.cost.macs(space.cost.population([scaled(space, step / 500) for step in range(501)]))
    assert space.macs(architecture) >= every[every <= budget.most].max()
    assert all(architecture[c.name] == c.full for c in space.depths)
    assert (architecture == space.dense) == (share == 1.0)


def test_uniform_scaling_that_cannot_reach_a_budget_says_so() -> None:
    space = cifar_resnet.resnet20()
    narrowest = space.macs(scaled(space, 0.0))
    assert set(scaled(space, 0.0).values()) == {1, 3}
    assert Uniform().propose(space, Budget(most=narrowest), None, seed=0) == scaled(space, 0.0)
    with pytest.raises(ValueError, match=f"has {narrowest} MACs, more than the budget of {narrowest - 1}: uniform"):
        Uniform().propose(space, Budget(most=narrowest - 1), None, seed=0)


def test_uniform_scaling_needs_a_width_to_scale() -> None:
    define, candidates = tiny().define, Candidates(freeze=("*.out", "*.conv?"))
    space = SearchSpace(name="depths", define=define, image_size=8, classes=10, candidates=candidates)
    with pytest.raises(ValueError, match=r"the narrowest depths of full depth has .* uniform scaling cannot reach"):
        Uniform().propose(space, space.budget(0.9), None, seed=0)


def test_uniform_scaling_keeps_to_the_spaces_multiple() -> None:
    define = tiny().define
    candidates = Candidates(multiple=8)
    space = SearchSpace(name="by 8", define=define, image_size=8, classes=10, candidates=candidates)
    for ratio in (0.0, 0.3, 0.6, 0.99, 1.0):
        architecture = scaled(space, ratio)
        assert all(architecture[width.name] % 8 == 0 for width in space.widths)
        assert all(architecture[width.name] <= width.full for width in space.widths)
    assert scaled(space, 1.0) == space.dense


@each_space
def test_a_random_architecture_uses_its_budget_up_to_the_tolerance(space: SearchSpace) -> None:
    dense = space.macs(space.dense)
    for tolerance in (0.02, 0.1):
        method = Random(tolerance=tolerance)
        budget = space.budget(0.5, window=method.window)
        drawn = [method.propose(space, budget, None, seed=seed) for seed in range(4)]
        assert all((0.5 - tolerance) * dense <= space.macs(a) + 1 <= 0.5 * dense + 1 for a in drawn)
        assert len(set(drawn)) > 1
        assert all(a[c.name] in c.options for a in drawn for c in space.choices)


@each_space
def test_the_dense_network_is_the_unpruned_one(space: SearchSpace) -> None:
    budget = Budget(most=space.macs(space.dense))
    architecture = Dense().propose(space, budget, None, seed=0)
    assert architecture == space.dense
    assert budget.admits(space.macs(architecture))


def test_a_given_architecture_is_checked_and_handed_on() -> None:
    space = tiny()
    odd = Architecture({c.name: 1 if isinstance(c, Depth) else 7 for c in space.choices})  # no candidates
    macs = space.macs(odd)
    assert Given(architecture=odd).propose(space, Budget(most=macs), None, seed=0) == odd
    with pytest.raises(ValueError, match=f"given has {macs} MACs, more than the budget of {macs - 1}"):
        Given(architecture=odd).propose(space, Budget(most=macs - 1), None, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage9.out": 4}, "unknown: stage9.out"),
        ({"stage1.depth": 3}, "stage1.depth=3 is impossible in tiny: it has to be at least 1 and at most 2"),
        ({"stage1.out": 0}, "stage1.out=0 is impossible in tiny"),
    ],
)
def test_a_given_architecture_of_another_network_is_refused(changes: dict[str, int], message: str) -> None:
    space = tiny()
    given = Given(architecture=Architecture({**space.dense, **changes}))
    with pytest.raises(ValueError, match=message):
        given.propose(space, Budget(most=2**62), None, seed=0)
