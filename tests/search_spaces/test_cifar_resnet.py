"""ResNets for small images, against figures measured on the reference code of TAS."""

from functools import cache

import pytest
import torch

from search_spaces.cifar_resnet import depth_options, resnet20, resnet32, resnet56, resnet110, resnet164
from search_spaces.residual import BasicBlock, Bottleneck
from tas_ray.choices import Architecture, Candidates
from tas_ray.space import SearchSpace, SpaceConfig
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    network_of,
    params_of,
    published_macs,
    uniform_widths,
)

RESNETS = {20: resnet20, 32: resnet32, 56: resnet56, 110: resnet110, 164: resnet164}
# Depth, classes: MACs without the classifier's biases, parameters.
UNPRUNED = {
    (20, 10): (40_813_184, 272_282),
    (20, 100): (40_818_944, 278_132),
    (32, 10): (69_124_736, 466_714),
    (32, 100): (69_130_496, 472_564),
    (56, 10): (125_747_840, 855_578),
    (56, 100): (125_753_600, 861_428),
    (110, 10): (253_149_824, 1_730_522),
    (110, 100): (253_155_584, 1_736_372),
    (164, 10): (247_646_720, 1_703_386),
    (164, 100): (247_669_760, 1_726_516),
}


@cache
def space_of(depth: int, classes: int = 10, *, published: bool = False) -> SearchSpace:
    return RESNETS[depth](classes=classes, published=published)


@pytest.mark.parametrize(("depth", "classes"), UNPRUNED)
def test_unpruned_networks_cost_what_the_reference_measured(depth: int, classes: int) -> None:
    macs, params = UNPRUNED[depth, classes]
    tied, published = (space_of(depth, classes, published=p) for p in (False, True))
    assert (tied.macs(tied.dense), tied.params(tied.dense)) == (macs, params)
    assert published.macs(published.dense) == published_macs(published, published.dense) == macs
    # The derived networks of ResNet-164 have no BatchNorm behind the projection of their first block.
    assert published.params(published.dense) == params - (2 * 64 if depth == 164 else 0)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("depth", RESNETS)
def test_costs_are_those_of_the_built_networks(depth: int, published: bool) -> None:
    assert_sound(space_of(depth, published=published), samples=2 if depth > 56 else 4)


@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (20, (1, 2, 3)),
        (32, (1, 3, 5)),
        (56, (1, 3, 5, 7, 9)),
        (110, (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)),
        (164, (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)),
    ],
)
def test_every_stage_keeps_an_odd_number_of_blocks_or_all(depth: int, options: tuple[int, ...]) -> None:
    assert [choice.options for choice in space_of(depth).depths] == [options] * 3


def test_two_blocks_can_be_one() -> None:
    assert depth_options(2) == (1, 2)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("depth", RESNETS)
def test_the_smallest_network_costs_what_the_reference_measured(depth: int, published: bool) -> None:
    space = space_of(depth, published=published)
    expected = 1_734_968 if depth == 164 else 1_001_854
    assert space.macs(space.smallest) == published_macs(space, space.smallest) == expected


@pytest.mark.parametrize(
    ("depth", "macs"),
    [(20, 9_125_500), (32, 13_945_468), (56, 13_945_468), (110, 13_945_468), (164, 16_335_482)],
)
def test_a_middling_network_costs_what_the_reference_measured(depth: int, macs: int) -> None:
    space = space_of(depth, published=True)
    widths = {width.name: width.options[3] for width in space.widths}
    depths = {choice.name: choice.options[1] for choice in space.depths}
    assert published_macs(space, Architecture(widths | depths)) == macs


@pytest.mark.parametrize(
    ("depth", "classes", "ratio", "macs", "widths"),
    [
        (20, 10, 0.5, 19_656_194, {11, 22, 45}),
        (32, 100, 0.6, 39_488_356, {12, 24, 49}),
        (32, 100, 0.615, 41_095_816, {12, 25, 50}),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_uniformly_scaled_networks_cost_what_the_reference_measured(
    depth: int, classes: int, ratio: float, macs: int, widths: set[int], published: bool
) -> None:
    space = space_of(depth, classes, published=published)
    architecture = uniform_widths(space, ratio**0.5)
    assert {architecture[width.name] for width in space.widths} == widths
    assert space.macs(architecture) == macs


@pytest.mark.parametrize("depth", RESNETS)
def test_published_widths_are_in_the_order_of_the_convolutions(depth: int) -> None:
    space = space_of(depth, published=True)
    convs = 3 if depth == 164 else 2
    blocks = (depth - 2) // (3 * convs)
    names = [f"stage{s}.block{b}.conv{c}" for s in (1, 2, 3) for b in range(blocks) for c in range(1, convs + 1)]
    assert [width.name for width in space.widths] == ["stem", *names]
    assert [choice.name for choice in space.depths] == ["stage1.depth", "stage2.depth", "stage3.depth"]


def shortcuts(space: SearchSpace, architecture: Architecture) -> list[torch.nn.Module]:
    modules = network_of(space, architecture).modules()
    return [block.shortcut for block in modules if isinstance(block, BasicBlock | Bottleneck)]


@pytest.mark.parametrize("depth", [20, 56, 164])
def test_tied_networks_never_need_a_projection_the_unpruned_one_lacks(depth: int) -> None:
    space = space_of(depth)
    unpruned = 3 if depth == 164 else 2
    for seed in range(5):
        kept = shortcuts(space, space.sample(UNBOUNDED, seed=seed))
        assert sum(not isinstance(shortcut, torch.nn.Identity) for shortcut in kept) == unpruned


def test_published_networks_project_wherever_widths_differ() -> None:
    space = resnet20(published=True)
    narrowed = Architecture({**space.dense, "stage1.block1.conv2": 12})
    kept = shortcuts(space, narrowed)
    assert [isinstance(s, torch.nn.Identity) for s in kept[:3]] == [True, False, False]
    projections = 2 * (16 * 12 + 12 + 16)  # two 1x1 convolutions with BatchNorm
    inside = (16 * 9 + 2) + 16 * 9  # four channels fewer in block 1's second and block 2's first convolution
    assert space.params(space.dense) - space.params(narrowed) == 4 * inside - projections
    assert_costs_are_those_of_the_built_network(space, narrowed)


def test_published_bottlenecks_project_without_a_norm() -> None:
    space = resnet164(published=True)
    kept = shortcuts(space, Architecture({**space.dense, "stage1.block1.conv3": 57}))
    assert [sum(isinstance(m, torch.nn.BatchNorm2d) for m in s.modules()) for s in kept[:3]] == [0, 0, 0]
    assert [sum(isinstance(m, torch.nn.Conv2d) for m in s.modules()) for s in kept[:4]] == [1, 1, 1, 0]


@pytest.mark.parametrize("published", [False, True])
def test_a_networks_logits_have_the_classes_of_its_space(published: bool) -> None:
    space = resnet20(classes=7, image_size=16, published=published)
    network = space.build(space.sample(UNBOUNDED, seed=0))
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_networks_of_one_seed_start_with_the_same_weights() -> None:
    space = resnet20()
    one, same, other = (space.build(space.smallest, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    resnet20().build(resnet20().smallest)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 30])
@pytest.mark.parametrize("published", [False, True])
def test_images_that_cannot_be_halved_twice_are_refused(size: int, published: bool) -> None:
    with pytest.raises(ValueError, match=f"images of 3 x {size} x {size} do not fit this network"):
        _ = resnet20(image_size=size, published=published).cost


def test_candidates_can_be_rounded_frozen_and_given() -> None:
    candidates = Candidates(
        multiple=8,
        freeze=("stage1.depth", "stage3.block0.*"),
        options={"stage2.depth": (2, 3), "stage2.out": (9, 32)},
    )
    space = SpaceConfig(name="search_spaces.cifar_resnet:resnet20", candidates=candidates).load(
        classes=10, image_size=32
    )
    assert {choice.name: choice.options for choice in space.depths} == {
        "stage2.depth": (2, 3),
        "stage3.depth": (1, 2, 3),
    }
    options = {width.name: width.options for width in space.widths}
    assert options.pop("stage2.out") == (9, 32)
    assert "stage3.block0.conv1" not in options
    assert all(option % 8 == 0 for widths in options.values() for option in widths)
    assert_sound(space, samples=3)
    assert params_of(space.build(space.dense)) == 272_282
