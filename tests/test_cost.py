"""The cost table: what it says is what torch counts on the built networks."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tas_ray.choices import Architecture, Candidates, Depth, Size, Width
from tas_ray.cost import CostTable, counted_macs, trace
from tas_ray.layers import Layers, PlainLayers, add, global_average

WIDTHS = Candidates(options={"*.out": (2, 3), "stem": (1, 3), "depth": (1, 2, 3)})


class Block(nn.Module):
    """A 3x3 convolution beside a shortcut."""

    def __init__(self, layers: Layers, c_in: Size, c_out: Size) -> None:
        super().__init__()
        self.conv = layers.conv_bn(c_in, c_out, 3)
        self.shortcut = layers.identity(c_in, c_out, norm=True)
        self.c_out = c_out

    def forward(self, x: Tensor) -> Tensor:
        return add(self.conv(x), self.shortcut(x))


class Network(nn.Module):
    """A stem, a stage of three blocks with a width each, a convolution behind it, a classifier."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        c = layers.width("stem", 3)
        self.stem = layers.conv_bn(4, c, 5, stride=2)
        widths = [layers.width(f"block{i}.out", 3) for i in range(3)]
        builders = [lambda layers, c_in, c=c: Block(layers, c_in, c) for c in widths]
        stage = layers.stage(layers.depth("depth", (1, 2, 3)), c, builders)
        self.stage: nn.Module = stage  # type: ignore[assignment]
        self.neck = layers.conv_bn(stage.c_out, 5, 1, norm=False)
        self.head = layers.linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(global_average(self.neck(self.stage(self.stem(x)))))
        return logits


def built(architecture: Architecture) -> nn.Module:
    return Network(PlainLayers(WIDTHS, architecture))


@pytest.fixture(scope="module")
def table() -> CostTable:
    return trace(Network, WIDTHS, 8, 4)


@pytest.fixture(scope="module")
def architectures(table: CostTable) -> list[Architecture]:
    names = [choice.name for choice in table.choices]
    picks = itertools.product(*(choice.options for choice in table.choices))
    return [Architecture(dict(zip(names, values, strict=True))) for values in picks]


def test_choices_come_in_the_order_of_the_layers(table: CostTable) -> None:
    assert table.choices == (
        Width("stem", (1, 3)),
        Width("block0.out", (2, 3)),
        Width("block1.out", (2, 3)),
        Width("block2.out", (2, 3)),
        Depth("depth", (1, 2, 3)),
    )


def test_every_architecture_costs_what_torch_counts(table: CostTable, architectures: list[Architecture]) -> None:
    population = table.population(architectures)
    networks = [built(architecture) for architecture in architectures]
    assert len(architectures) == 2**4 * 3
    params = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert table.params(population).tolist() == params
    assert table.macs(population).tolist() == [counted_macs(network, 8, 4) for network in networks]


def test_costs_of_many_are_the_costs_of_each(table: CostTable, architectures: list[Architecture]) -> None:
    together = table.population(architectures)
    for cost in (table.macs, table.published_macs, table.params):
        one_by_one = [cost(table.population([architecture])).item() for architecture in architectures]
        assert cost(together).tolist() == one_by_one


def test_no_architectures_cost_nothing(table: CostTable) -> None:
    assert table.macs(table.population([])).shape == (0,)


def test_the_published_count_ignores_that_a_stage_was_shortened(table: CostTable) -> None:
    values = {"stem": 3, "block0.out": 3, "block1.out": 2, "block2.out": 2}
    shortened, whole = Architecture({**values, "depth": 1}), Architecture({**values, "depth": 3})
    population = table.population([shortened, whole])
    # The neck's 5 channels at 4 x 4 positions see block 0's 3 channels, not block 2's 2.
    assert (table.macs(population) - table.published_macs(population)).tolist() == [5 * 16 * (3 - 2), 0]


def test_macs_are_those_counted_by_hand(table: CostTable) -> None:
    architecture = Architecture({"stem": 1, "block0.out": 2, "block1.out": 3, "block2.out": 3, "depth": 2})
    stem = 25 * 4 * 1
    block0 = 9 * 1 * 2 + 1 * 2  # with a projection
    block1 = 9 * 2 * 3 + 2 * 3
    neck = 3 * 5
    expected = 16 * (stem + block0 + block1 + neck) + 5 * 2
    assert table.macs(table.population([architecture])).tolist() == [expected]
    norms = 2 * (1 + 2 + 2 + 3 + 3)  # of the stem, and of the blocks' convolutions and projections
    weights = stem + block0 + block1 + neck + 5 * 2 + 2
    assert table.params(table.population([architecture])).tolist() == [weights + norms]


def test_the_columns_of_a_population_are_the_choices(table: CostTable) -> None:
    values = {"depth": 2, "block2.out": 6, "block1.out": 5, "block0.out": 4, "stem": 3}  # in any order
    assert table.population([Architecture(values)]).tolist() == [[3, 4, 5, 6, 2]]


def test_costs_do_not_overflow() -> None:
    table = trace(_wide, Candidates(), 4096, 3)
    population = table.population([Architecture({"a": 65536, "b": 65536})])
    expected = 4096**2 * (9 * 3 * 65536 + 9 * 65536**2)
    assert table.macs(population).tolist() == [expected]
    assert expected > 2**53  # beyond what floating point holds exactly


def _wide(layers: Layers) -> nn.Module:
    a, b = layers.width("a", 65536), layers.width("b", 65536)
    return nn.Sequential(layers.conv_bn(3, a, 3), layers.conv_bn(a, b, 3))


class Separable(nn.Module):
    """A stem, a depthwise convolution at half the size, one behind a stage of two 1x1 convolutions, a classifier."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        c = layers.width("stem", 4)
        self.stem = layers.conv_bn(3, c, 3)
        self.halve = layers.depthwise_bn(c, 3, stride=2)
        widths = [layers.width(f"block{i}.out", 4) for i in range(2)]
        builders = [lambda layers, c_in, c=c: Block(layers, c_in, c) for c in widths]
        stage = layers.stage(layers.depth("depth", (1, 2)), c, builders)
        self.stage: nn.Module = stage  # type: ignore[assignment]
        self.spread = layers.depthwise_bn(stage.c_out, 5)
        self.head = layers.linear(stage.c_out, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(global_average(self.spread(self.stage(self.halve(self.stem(x))))))
        return logits


def test_depthwise_convolutions_cost_one_filter_per_channel() -> None:
    candidates = Candidates(options={"depth": (1, 2), "*": (2, 3, 4)})
    table = trace(Separable, candidates, 8, 3)
    picks = itertools.product(*(choice.options for choice in table.choices))
    names = [choice.name for choice in table.choices]
    architectures = [Architecture(dict(zip(names, values, strict=True))) for values in picks]
    networks = [Separable(PlainLayers(candidates, architecture)) for architecture in architectures]
    population = table.population(architectures)
    assert table.macs(population).tolist() == [counted_macs(network, 8, 3) for network in networks]
    assert table.params(population).tolist() == [sum(p.numel() for p in network.parameters()) for network in networks]
    alone = CostTable(table.choices, (table.rows[1],))
    assert alone.macs(population).tolist() == [16 * 9 * architecture["stem"] for architecture in architectures]


def test_normalized_elements_are_those_batchnorm_sees(table: CostTable, architectures: list[Architecture]) -> None:
    seen: list[int] = []
    for architecture in architectures:
        network, elements = built(architecture).eval(), []
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda _, args, __, elements=elements: elements.append(args[0].numel()))
        network(torch.zeros(1, 4, 8, 8))
        seen.append(sum(elements))
    assert table.normalized(table.population(architectures)).tolist() == seen


def test_frozen_choices_cost_what_the_unpruned_network_does() -> None:
    table = trace(Network, Candidates(options={"*.out": (2, 3)}, freeze=("stem", "depth")), 8, 4)
    assert [choice.name for choice in table.choices] == ["block0.out", "block1.out", "block2.out"]
    architecture = Architecture({"block0.out": 2, "block1.out": 3, "block2.out": 2})
    (macs,) = table.macs(table.population([architecture]))
    assert macs == counted_macs(built(architecture), 8, 4)


def test_one_width_may_be_declared_twice() -> None:
    def define(layers: Layers) -> nn.Module:
        return nn.Sequential(
            layers.conv_bn(3, layers.width("tied", 8), 3),
            layers.conv_bn(layers.width("tied", 8), layers.width("tied", 8), 3),
        )

    table = trace(define, Candidates(), 4, 3)
    assert table.choices == (Width("tied", (2, 3, 4, 5, 6, 7, 8)),)
    assert table.macs(np.array([[5]])).tolist() == [16 * 9 * (3 * 5 + 5 * 5)]


def test_two_different_choices_of_one_name_are_refused() -> None:
    def define(layers: Layers) -> nn.Module:
        return nn.Sequential(layers.conv_bn(3, layers.width("c", 8), 3), layers.conv_bn(8, layers.width("c", 16), 3))

    with pytest.raises(ValueError, match="two different choices are called c"):
        trace(define, Candidates(), 4, 3)


def test_a_width_and_a_depth_of_one_name_are_refused() -> None:
    def define(layers: Layers) -> nn.Module:
        layers.depth("c", (1, 2))
        return layers.conv_bn(3, layers.width("c", 8), 3)

    with pytest.raises(ValueError, match="two different choices are called c"):
        trace(define, Candidates(), 4, 3)


@pytest.mark.parametrize(
    "candidates",
    [Candidates(freeze=("stme",)), Candidates(options={"stme": (2, 3)}), Candidates(freeze=("stem", "stme"))],
)
def test_candidates_of_a_name_the_network_lacks_are_refused(candidates: Candidates) -> None:
    with pytest.raises(ValueError, match=r"name stme, but .* it has stem, block0.out, .*depth"):
        trace(Network, candidates, 8, 4)


@pytest.mark.parametrize(("size", "channels"), [(0, 4), (-8, 4), (8, 3)])
def test_images_that_do_not_fit_are_refused(size: int, channels: int) -> None:
    with pytest.raises(ValueError, match=f"images of {channels} x {size} x {size} do not fit this network"):
        trace(Network, WIDTHS, size, channels)


def test_tracing_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trace(Network, WIDTHS, 8, 4)
    assert torch.equal(torch.rand(1), expected)


def test_torch_counts_convolutions_and_linear_layers_without_biases() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10))
    assert counted_macs(network, 4, 3) == 9 * 3 * 4 * 16 + 64 * 10


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_a_network_as_it_was(training: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    counted_macs(network, 4, 3)
    assert network.training == training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_equal_signatures_are_equal_networks(table: CostTable, architectures: list[Architecture]) -> None:
    layers: dict[bytes, set[str]] = {}
    for architecture, signature in zip(architectures, table.signature(table.population(architectures)), strict=True):
        layers.setdefault(signature.tobytes(), set()).add(str(built(architecture)))
    assert all(len(networks) == 1 for networks in layers.values())
    assert len(layers) == len(set().union(*layers.values())) == 2**4 + 2**3 + 2**2


def test_widths_of_removed_blocks_are_no_part_of_a_signature(table: CostTable) -> None:
    kept = {"stem": 3, "block0.out": 2, "block1.out": 2, "block2.out": 2, "depth": 2}
    values = [kept, {**kept, "block2.out": 3}, {**kept, "block1.out": 3}, {**kept, "depth": 3}]
    first, twin, wider, deeper = table.signature(table.population([Architecture(v) for v in values])).tolist()
    assert first == twin
    assert first != wider != deeper != first
    assert len(first) == 2 * len(table.rows)
    assert table.signature(table.population([])).shape == (0, 2 * len(table.rows))
