"""Search spaces: budgets, sampling within them, validation, building and loading."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces.cifar_resnet import resnet20
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates
from tas_ray.space import Budget, SearchSpace, SpaceConfig, load

SPACES = [tiny(), tiny(published=True), resnet20(), resnet20(published=True)]
TINY = SPACES[0]
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def test_a_budget_admits_what_lies_within_it() -> None:
    budget = Budget(most=10, least=5)
    assert [macs for macs in range(20) if budget.admits(macs)] == [5, 6, 7, 8, 9, 10]
    assert Budget(most=10).admits(0)


@every_space
def test_a_budget_is_a_number_of_macs_or_a_share_of_the_dense_ones(space: SearchSpace) -> None:
    dense = space.macs(space.dense)
    assert space.budget(0.5) == Budget(most=dense // 2)
    assert space.budget(dense // 2) == Budget(most=dense // 2)
    assert space.budget(1) == space.budget(1.0) == space.budget(dense) == Budget(most=dense)
    least = space.macs(space.smallest)
    assert space.budget(least) == Budget(most=least)


@every_space
def test_a_window_bounds_a_budget_below(space: SearchSpace) -> None:
    dense = space.macs(space.dense)
    assert space.budget(0.5, window=0.05) == Budget(most=dense // 2, least=dense // 2 - int(0.05 * dense))
    assert space.budget(0.5, window=0.0) == Budget(most=dense // 2, least=dense // 2)
    assert space.budget(0.5, window=1.0) == Budget(most=dense // 2, least=0)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (-1, "positive number of MACs or a share of the dense MACs, not -1"),
        (-0.5, "positive number"),
        (0, "positive number"),
        (float("nan"), "positive number.*not nan"),
        (float("inf"), "positive number.*not inf"),
        (1000, "smallest network of tiny has 42 858 MACs, more than the budget of 1 000; .* 1 142 080"),
        (0.001, "smallest network of tiny has 42 858 MACs, more than the budget of 1 142;"),
        (1_142_081, "1 142 081 MACs is above the dense network of tiny, which has 1 142 080"),
        (2_000_000, "nothing to prune"),
        (1e12, "above the dense network"),
    ],
)
def test_impossible_budgets_are_refused(amount: float | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TINY.budget(amount)


@pytest.mark.parametrize("window", [-0.1, 1.1, float("nan")])
def test_impossible_windows_are_refused(window: float) -> None:
    with pytest.raises(ValueError, match=f"share of the dense MACs from 0 to 1, not {window}"):
        TINY.budget(0.5, window=window)


@every_space
@settings(deadline=None, max_examples=15)
@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 2**63 - 1))
def test_samples_are_candidates_the_budget_admits(space: SearchSpace, share: float, seed: int) -> None:
    least, dense = space.macs(space.smallest), space.macs(space.dense)
    budget = space.budget(least + int(share * (dense - least)))
    architecture = space.sample(budget, seed=seed)
    assert budget.admits(space.macs(architecture))
    assert list(architecture) == [choice.name for choice in space.choices]
    assert all(architecture[choice.name] in choice.options for choice in space.choices)
    assert space.sample(budget, seed=seed) == architecture


@every_space
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_samples_can_be_held_close_to_the_budget(space: SearchSpace, share: float) -> None:
    budget = space.budget(share, window=0.05)
    assert all(budget.admits(space.macs(space.sample(budget, seed=seed))) for seed in range(4))


def test_seeds_give_different_samples() -> None:
    budget = TINY.budget(0.5)
    assert len({TINY.sample(budget, seed=seed) for seed in range(20)}) > 15


def test_every_option_is_sampled() -> None:
    drawn = [TINY.sample(Budget(most=2**62), seed=seed) for seed in range(200)]
    for choice in TINY.choices:
        assert {architecture[choice.name] for architecture in drawn} == set(choice.options)


@pytest.mark.parametrize("budget", [Budget(most=1000), Budget(most=2**62, least=2**61)])
def test_budgets_nothing_meets_end_in_an_error(budget: Budget) -> None:
    nearest = "42 858" if budget.most == 1000 else "1 142 080"
    with pytest.raises(ValueError, match=f"no architecture of tiny was found between .* nearest seen has {nearest}"):
        TINY.sample(budget, seed=0)


def test_a_budget_between_two_costs_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tas_ray.space.REPAIR_STEPS", 100)
    config = SpaceConfig(candidates=Candidates(freeze=("*.block*", "*.depth", "stage2.out")))
    space = config.load(classes=10, image_size=8)
    (width,) = space.widths
    costs = [space.macs(Architecture({width.name: c})) for c in width.options]
    with pytest.raises(ValueError, match=r"nearest seen has .*: widen the budget"):
        space.sample(Budget(most=costs[3] - 1, least=costs[2] + 1), seed=0)


@every_space
def test_a_space_counts_its_architectures(space: SearchSpace) -> None:
    expected = 1
    for choice in space.choices:
        expected *= len(choice.options)
    assert space.size == expected
    assert set(space.choices) == {*space.widths, *space.depths}


def test_a_large_space_is_counted_exactly() -> None:
    space = load("search_spaces.cifar_resnet:resnet110", published=True)
    assert space.size == 8**109 * 10**3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": 4}, "each of its 8 choices; missing: none; unknown: stem"),
        ({"stage1.out": None}, "missing: stage1.out; unknown: none"),
        ({"stage1.out": 0}, "stage1.out=0 is impossible in tiny: it has to be at least 1"),
        ({"stage1.depth": 0}, "stage1.depth=0 is impossible in tiny: it has to be at least 1 and at most 2"),
        ({"stage1.depth": 3}, "stage1.depth=3 is impossible in tiny: .* at most 2"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, int | None], message: str) -> None:
    values = {name: value for name, value in {**TINY.dense, **changes}.items() if value is not None}
    for refuse in (TINY.validate, TINY.build):
        with pytest.raises(ValueError, match=message):
            refuse(Architecture(values))


def test_a_fully_frozen_space_has_one_architecture() -> None:
    space = SpaceConfig(candidates=Candidates(freeze=("*",))).load(classes=10, image_size=8)
    assert space.size == 1
    assert space.choices == ()
    assert space.macs(space.dense) == TINY.macs(TINY.dense)
    assert space.sample(space.budget(1.0), seed=0) == space.dense == space.smallest
    assert space.build(space.dense)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_space_is_loaded_with_its_options() -> None:
    space = load("search_spaces.cifar_resnet:resnet20", classes=100, image_size=64, published=True)
    assert (space.name, space.classes, space.image_size) == ("cifar_resnet20-published", 100, 64)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {}, "named `package.module:function`.*not 'resnet20'"),
        ("search_spaces.cifar_resnet", {}, "named `package.module:function`"),
        ("search_spaces.cifar_resnet:", {}, "named `package.module:function`"),
        ("search_spaces.vgg:vgg16", {}, "no search space search_spaces.vgg:vgg16: No module named"),
        ("search_spaces.cifar_resnet:resnet21", {}, "no search space search_spaces.cifar_resnet:resnet21"),
        ("search_spaces.cifar_resnet:PLANES", {}, "is a tuple, not a function that returns a search space"),
        (
            "search_spaces.cifar_resnet:resnet20",
            {"depth": 20},
            "no option depth; it has classes, image_size, published",
        ),
        ("search_spaces.cifar_resnet:depth_options", {"blocks": 3}, "returned a tuple, not a SearchSpace"),
    ],
)
def test_names_that_are_no_search_space_are_refused(
    name: str, options: dict[str, str | int | float | bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_a_configured_space_has_the_candidates_given() -> None:
    candidates = Candidates(ratios=(0.5,))
    config = SpaceConfig(options={"published": True}, candidates=candidates)
    space = config.load(classes=3, image_size=16)
    assert (space.name, space.classes, space.image_size) == ("tiny-published", 3, 16)
    assert {width.options for width in space.widths} == {(8, 16), (16, 32)}
    assert SpaceConfig().load(classes=10, image_size=8).choices == TINY.choices


def python_blocks(document: str) -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / document).read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_documented_example_works() -> None:
    blocks = python_blocks("search-spaces.md")
    assert len(blocks) >= 3
    example: dict[str, object] = {"__name__": "example"}
    exec("\n".join(blocks), example)
    space = example["space"]
    assert isinstance(space, SearchSpace)
    assert isinstance(space.build(space.smallest), nn.Module)
    assert isinstance(example["small_cnn"], Callable)
