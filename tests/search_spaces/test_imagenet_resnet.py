"""ResNet-18 and -50, against figures measured on the reference code of TAS."""

import pytest
import torch

from search_spaces.imagenet_resnet import resnet18, resnet50
from tas_ray.choices import Architecture, Candidates
from tas_ray.space import SpaceConfig
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    contexts_of,
    published_macs,
)

SPACES = {18: resnet18, 50: resnet50}


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("depth", "macs", "params"), [(18, 1_814_073_344, 11_689_512), (50, 4_089_184_256, 25_557_032)]
)
def test_unpruned_networks_cost_what_the_reference_measured(
    depth: int, macs: int, params: int, published: bool
) -> None:
    space = SPACES[depth](published=published)
    assert (space.macs(space.dense), space.params(space.dense)) == (macs, params)
    assert published_macs(space, space.dense) == macs


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("depth", SPACES)
def test_costs_are_those_of_the_built_networks(depth: int, published: bool) -> None:
    assert_sound(SPACES[depth](published=published), samples=3)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("depth", SPACES)
def test_costs_follow_the_image_size(depth: int, published: bool) -> None:
    space = SPACES[depth](image_size=64, classes=5, published=published)
    assert_costs_are_those_of_the_built_network(space, space.sample(UNBOUNDED, seed=0))


@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (18, [(1, 2), (1, 2), (1, 2), (1, 2)]),
        (50, [(1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3)]),
    ],
)
def test_depths_are_shares_of_each_stage(depth: int, options: list[tuple[int, ...]]) -> None:
    assert [choice.options for choice in SPACES[depth]().depths] == options


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(("depth", "macs"), [(18, 103_285_897), (50, 174_736_137)])
def test_the_smallest_network_costs_what_the_reference_measured(depth: int, macs: int, published: bool) -> None:
    space = SPACES[depth](published=published)
    assert space.macs(space.smallest) == published_macs(space, space.smallest) == macs


@pytest.mark.parametrize(("depth", "widths"), [(18, 17), (50, 49)])
def test_every_convolution_has_a_published_width(depth: int, widths: int) -> None:
    assert len(SPACES[depth](published=True).widths) == widths


@pytest.mark.parametrize("depth", SPACES)
def test_residual_branches_start_as_nothing(depth: int) -> None:
    space = SPACES[depth](image_size=32, classes=3)
    network = space.build(space.smallest)
    conv = "conv3" if depth == 50 else "conv2"
    scales = {name: p for name, p in network.named_parameters() if name.endswith(f"{conv}.bn.weight")}
    assert len(scales) == sum(choice.options[0] for choice in space.depths)
    assert all(scale.count_nonzero() == 0 for scale in scales.values())


@pytest.mark.parametrize(
    ("depth", "inner", "convolutions"), [(18, ["conv1"], 2), (50, ["conv1", "conv2"], 3)], ids=["basic", "bottleneck"]
)
def test_weights_are_generated_from_all_widths_of_a_block(depth: int, inner: list[str], convolutions: int) -> None:
    space = SPACES[depth]()
    c = Architecture({**space.sample(UNBOUNDED, seed=0), **{f"stage{i}.depth": 1 for i in range(1, 5)}})
    c_in = c.get("stem", c["stage1.out"])
    expected = [(3, c_in)]
    for stage in range(1, 5):
        c_out = c[f"stage{stage}.out"]
        downsampled = stage > 1 or depth == 50
        block = (*(c[f"stage{stage}.block0.{conv}"] for conv in inner), c_in, c_out)
        expected += (convolutions + downsampled) * [block]
        c_in = c_out
    assert contexts_of(space, c) == expected


def test_every_shortcut_that_projects_has_a_norm() -> None:
    space = resnet18(published=True)
    network = space.build(Architecture({**space.smallest, "stage1.block0.conv2": 25}))
    names = [name for name, _ in network.named_parameters() if ".shortcut." in name]
    assert sum(name.endswith("conv.weight") for name in names) == 4
    assert sum(name.endswith("bn.weight") for name in names) == 4


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("depth", SPACES)
def test_a_networks_logits_have_the_classes_of_its_space(depth: int, published: bool) -> None:
    space = SPACES[depth](classes=7, image_size=32, published=published)
    network = space.build(space.smallest)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("size", [4, 40, 48])
def test_images_that_cannot_be_halved_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"images of 3 x {size} x {size} do not fit this network"):
        _ = resnet18(image_size=size).cost


def test_a_bottleneck_stage_as_narrow_as_its_stem_needs_no_projection() -> None:
    candidates = Candidates(options={"stem": (32, 64), "stage1.out": (64, 256)})
    config = SpaceConfig(name="search_spaces.imagenet_resnet:resnet50", candidates=candidates)
    space = config.load(classes=10, image_size=32)
    equal = Architecture({**space.dense, "stage1.out": 64})
    assert_costs_are_those_of_the_built_network(space, equal)
    assert_costs_are_those_of_the_built_network(space, Architecture({**equal, "stem": 32}))
