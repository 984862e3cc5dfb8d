"""MobileNetV2 with MetaPruning's widths."""

import pytest
import torch
from torch import nn

from search_spaces.mobilenet_v2 import InvertedResidual, mobilenet_v2
from tas_ray.choices import Architecture
from tas_ray.methods.tas import ExpectedMacs, Tas
from tas_ray.train import Training
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    contexts_of,
    network_of,
)

SPACE = mobilenet_v2()
SMALL = mobilenet_v2(classes=10, image_size=32, small_images=True)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)


def blocks_of(network: nn.Module) -> list[InvertedResidual]:
    return [module for module in network.modules() if isinstance(module, InvertedResidual)]


@pytest.mark.parametrize("space", [SPACE, SMALL], ids=lambda space: space.name)
def test_costs_are_those_of_the_built_networks(space) -> None:  # type: ignore[no-untyped-def]
    assert_sound(space, samples=3)


def test_stages_share_an_output_and_blocks_have_their_own_hidden_width() -> None:
    full = {choice.name: choice.full for choice in SPACE.choices}
    outputs, hidden = (22, 33, 44, 88, 132, 224, 448), (44, 132, 198, 264, 528, 792, 1344)
    assert full["stem"] == 44
    assert [full[f"stage{i}.out"] for i in range(1, 8)] == list(outputs)
    assert [full[f"stage{i}.block0.hidden"] for i in range(1, 8)] == list(hidden)
    for stage in (2, 3, 4, 5, 6):
        later = {full[f"stage{stage}.block{i}.hidden"] for i in range(1, BLOCKS[stage - 1])}
        assert later == {6 * outputs[stage - 1]}
    assert len(full) == 25
    assert SPACE.depths == ()
    assert SPACE.size == 21 * 31**24  # 22 channels have 21 candidates


def test_the_standard_network_costs_what_its_paper_says() -> None:
    outputs = (16, 24, 32, 64, 96, 160, 320)
    numbers, c = {"stem": 32}, 32
    for stage, (c_out, blocks) in enumerate(zip(outputs, BLOCKS, strict=True), start=1):
        numbers[f"stage{stage}.out"] = c_out
        for block in range(blocks):
            numbers[f"stage{stage}.block{block}.hidden"] = c if stage == 1 else 6 * c
            c = c_out
    standard = Architecture(numbers)
    assert (SPACE.macs(standard), SPACE.params(standard)) == (313_620_328 - 1000, 3_505_960)
    assert_costs_are_those_of_the_built_network(SPACE, standard)


def test_weights_are_generated_from_a_blocks_hidden_input_and_output_widths() -> None:
    c = SPACE.sample(UNBOUNDED, seed=0)
    outs = [c["stem"], *(c[f"stage{i}.out"] for i, blocks in enumerate(BLOCKS, start=1) for _ in range(blocks))]
    hidden = [number for name, number in c.items() if name.endswith("hidden")]
    blocks = [
        (c_mid, c_in, c_out)
        for c_mid, c_in, c_out in zip(hidden, outs[:-1], outs[1:], strict=True)
        for _ in ("expand", "depthwise", "project")
    ]
    assert contexts_of(SPACE, c) == [(c["stem"],), *blocks, (c["stage7.out"],)]


def test_a_block_adds_its_input_if_the_unpruned_widths_are_equal() -> None:
    # Chosen alike, the widths around stages 1, 5 and 7 make no shortcut, although their strides are 1.
    alike = {"stem": 20, "stage1.out": 20, "stage4.out": 60, "stage5.out": 60, "stage6.out": 200, "stage7.out": 200}
    network = network_of(SPACE, Architecture({**SPACE.dense, **alike}))
    residual = [block.residual for block in blocks_of(network)]
    assert residual == [index > 0 for blocks in BLOCKS for index in range(blocks)]


def test_what_is_added_is_the_blocks_input() -> None:
    network = SMALL.build(SMALL.sample(UNBOUNDED, seed=0)).eval()
    block = blocks_of(network)[2]
    assert block.residual
    x = torch.randn(2, block.expand.conv.in_channels, 4, 4)
    with torch.no_grad():
        y = block(x)
        for parameter in block.project.parameters():
            parameter.zero_()
        assert torch.equal(block(x), x)
    assert not torch.equal(y, x)


def test_the_projection_is_linear_and_the_rest_is_clipped_at_6() -> None:
    block = blocks_of(SMALL.build(SMALL.dense).eval())[0]
    seen = {}
    for name in ("depthwise", "project"):
        getattr(block, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    y = block(50 * torch.randn(2, 44, 8, 8))
    for x in seen.values():
        assert x.min() == 0
        assert x.max() == 6
    assert y.min() < 0


@pytest.mark.parametrize(
    ("space", "strides", "positions"),
    [(SPACE, [2, 1, 2, 2, 2, 1, 2, 1], 49), (SMALL, [1, 1, 1, 2, 2, 1, 2, 1], 16)],
    ids=["published", "small"],
)
def test_strides_sit_on_the_first_block_of_a_stage(space, strides, positions) -> None:  # type: ignore[no-untyped-def]
    network = network_of(space, space.smallest)
    found = [block.depthwise.conv.stride[0] for block in blocks_of(network)]
    firsts = [sum(BLOCKS[:i]) for i in range(7)]
    assert [network.stem.conv.stride[0], *(found[first] for first in firsts)] == strides
    assert {stride for i, stride in enumerate(found) if i not in firsts} == {1}
    assert space.cost.rows[-2].positions == positions


def test_the_network_for_small_images_costs_fourteen_times_the_published_one() -> None:
    published = mobilenet_v2(classes=10, image_size=32)
    assert published.params(published.dense) == SMALL.params(SMALL.dense) == 4_045_008
    assert (published.macs(published.dense), SMALL.macs(SMALL.dense)) == (11_609_560, 162_852_736)


def test_a_networks_logits_have_the_classes_of_its_space() -> None:
    assert SMALL.build(SMALL.smallest)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_expected_macs_of_a_certain_network_are_its_macs() -> None:
    for architecture in (SPACE.dense, SPACE.smallest, SPACE.sample(UNBOUNDED, seed=0)):
        most = max(len(width.options) for width in SPACE.widths)
        certain = torch.zeros(len(SPACE.widths), most)
        for row, width in zip(certain, SPACE.widths, strict=True):
            row[width.options.index(architecture[width.name])] = 1
        expected = ExpectedMacs(SPACE)(certain, torch.zeros(0, 1))
        assert expected.item() == pytest.approx(SPACE.macs(architecture), rel=1e-5)


def test_tas_trains_its_weights_and_its_widths() -> None:
    config = Tas(search=Training(epochs=1, warmup_epochs=0, batch_size=4))
    task = config.task(SMALL, SMALL.budget(0.5), seed=0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for group in task.groups:
        loss = task.forward(group.name, images, labels, step=0)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in group.parameters)
    assert all(row.count_nonzero() > 0 for row in task.width_logits.grad)
