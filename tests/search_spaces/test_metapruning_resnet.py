"""ResNet-50 with MetaPruning's shortcuts and widths."""

import pytest
import torch
from torch import nn

from search_spaces.metapruning_resnet import Bottleneck, resnet50
from tas_ray.choices import Architecture
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    contexts_of,
    network_of,
)

SPACE = resnet50()


def test_costs_are_those_of_the_built_networks() -> None:
    assert_sound(SPACE, samples=3)


def test_the_trunk_has_four_widths_and_every_block_one() -> None:
    full = {choice.name: choice.full for choice in SPACE.choices}
    trunk = {"stem": 64, "stage1.out": 256, "stage2.out": 512, "stage3.out": 1024}
    assert {name: base for name, base in full.items() if "block" not in name} == trunk
    assert [base for name, base in full.items() if "block" in name] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    assert SPACE.depths == ()
    assert SPACE.size == 31**20


def test_strides_sit_on_3x3_convolutions_and_shortcuts() -> None:
    blocks = [module for module in network_of(SPACE, SPACE.smallest).modules() if isinstance(module, Bottleneck)]
    firsts = [0, 3, 7, 13]
    assert [block.conv2.conv.stride[0] for block in blocks] == [2 if i in firsts[1:] else 1 for i in range(16)]
    assert {block.conv1.conv.stride for block in blocks} == {(1, 1)}
    shortcuts = [
        (i, block.shortcut.conv.stride[0])
        for i, block in enumerate(blocks)
        if isinstance(block.shortcut, nn.Sequential)
    ]
    assert shortcuts == [(0, 1), (3, 2), (7, 2), (13, 2)]


def test_weights_are_generated_from_a_blocks_hidden_input_and_output_widths() -> None:
    c = SPACE.sample(UNBOUNDED, seed=0)
    expected, c_in = [(c["stem"],)], c["stem"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        c_out = c.get(f"stage{stage}.out", 2048)
        for block in range(blocks):
            convolutions = 4 if block == 0 else 3
            expected += convolutions * [(c[f"stage{stage}.block{block}.hidden"], c_in, c_out)]
            c_in = c_out
    assert contexts_of(SPACE, c) == expected


def test_the_first_shortcut_projects_even_equal_widths() -> None:
    equal = Architecture({**SPACE.dense, "stem": 56, "stage1.out": 56})
    network = network_of(SPACE, equal)
    (first, *_) = (module for module in network.modules() if isinstance(module, Bottleneck))
    assert isinstance(first.shortcut, nn.Sequential)
    assert_costs_are_those_of_the_built_network(SPACE, equal)


@pytest.mark.parametrize("size", [32, 40])
def test_a_networks_logits_have_the_classes_of_its_space(size: int) -> None:
    space = resnet50(classes=7, image_size=size)
    architecture = space.sample(UNBOUNDED, seed=0)
    assert space.build(space.smallest)(torch.randn(2, 3, size, size)).shape == (2, 7)
    assert_costs_are_those_of_the_built_network(space, architecture)
