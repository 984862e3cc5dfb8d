"""MobileNetV1 with MetaPruning's widths."""

import itertools

import pytest
import torch
from torch import nn

from search_spaces.mobilenet_v1 import mobilenet_v1
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    contexts_of,
    network_of,
)

SPACE = mobilenet_v1()


def test_costs_are_those_of_the_built_networks() -> None:
    assert_sound(SPACE, samples=3)


def test_every_width_but_the_last_is_free() -> None:
    full = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024]
    assert [width.full for width in SPACE.widths] == full
    assert [width.name for width in SPACE.widths] == ["stem", *(f"block{i}.out" for i in range(1, 13))]
    assert SPACE.depths == ()
    assert SPACE.size == 30 * 31**12  # 32 channels have 30 candidates


def test_a_depthwise_convolution_has_the_width_before_it() -> None:
    architecture = SPACE.sample(UNBOUNDED, seed=1)
    convs = [module for module in network_of(SPACE, architecture).modules() if isinstance(module, nn.Conv2d)]
    widths = [*architecture.values(), 1024]
    assert [conv.out_channels for conv in convs[::2]] == widths
    depthwise = convs[1::2]
    assert [conv.out_channels for conv in depthwise] == [conv.groups for conv in depthwise] == widths[:-1]


def test_weights_are_generated_from_a_blocks_input_and_output() -> None:
    architecture = SPACE.sample(UNBOUNDED, seed=0)
    widths = [*architecture.values(), 1024]
    blocks = [pair for pair in itertools.pairwise(widths) for _ in ("depthwise", "pointwise")]
    assert contexts_of(SPACE, architecture) == [(widths[0],), *blocks]


def test_strides_are_the_published_ones() -> None:
    convs = [module for module in network_of(SPACE, SPACE.smallest).modules() if isinstance(module, nn.Conv2d)]
    assert [conv.stride[0] for conv in convs[:1] + convs[1::2]] == [2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert {conv.stride for conv in convs[2::2]} == {(1, 1)}


@pytest.mark.parametrize("size", [32, 50])
def test_a_networks_logits_have_the_classes_of_its_space(size: int) -> None:
    space = mobilenet_v1(classes=7, image_size=size)
    assert space.build(space.smallest)(torch.randn(2, 3, size, size)).shape == (2, 7)
    assert_costs_are_those_of_the_built_network(space, space.smallest)
