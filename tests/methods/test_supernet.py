"""The TAS supernet equals what the paper and its reference code say, written out naively here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import cifar_resnet, imagenet_resnet, metapruning_resnet, mobilenet_v1, mobilenet_v2
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates, Depth, StageOutput, Width
from tas_ray.methods.supernet import (
    Draw,
    DrawnDepth,
    DrawnWidth,
    FixedSupernet,
    SampledConvBN,
    SampledDepthwiseBN,
    SampledLayers,
    SampledLinear,
    SampledStage,
    Supernet,
    interpolate,
)
from tas_ray.space import Budget, SearchSpace

UNBOUNDED = Budget(most=2**62)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""Float64 sums in another order."""


# Channel-wise interpolation


def cwi(x: Tensor, c_out: int) -> Tensor:
    """As the reference does it: adaptive average pooling of channels x height x width volumes."""
    return F.adaptive_avg_pool3d(x, (c_out, *x.shape[2:]))


SOURCES: dict[tuple[int, int], list[tuple[int, ...]]] = {
    (4, 6): [(0,), (0, 1), (1,), (2,), (2, 3), (3,)],
    (4, 5): [(0,), (0, 1), (1, 2), (2, 3), (3,)],
    (9, 12): [(0,), (0, 1), (1, 2), (2,), (3,), (3, 4), (4, 5), (5,), (6,), (6, 7), (7, 8), (8,)],
    (6, 16): [
        *((0,), (0,), (0, 1), (1,), (1,), (1, 2), (2,), (2,)),
        *((3,), (3,), (3, 4), (4,), (4,), (4, 5), (5,), (5,)),
    ],
    (4, 16): [(c,) for c in range(4) for _ in range(4)],
    (3, 3): [(0,), (1,), (2,)],
}


@pytest.mark.parametrize(("c_in", "c_out"), SOURCES)
def test_interpolation_takes_the_channels_the_specification_lists(c_in: int, c_out: int) -> None:
    x = torch.randn(2, c_in, 2, 3, dtype=torch.float64)
    expected = torch.stack([x[:, sources].mean(1) for sources in map(list, SOURCES[c_in, c_out])], 1)
    torch.testing.assert_close(interpolate(x, c_out), expected, **EXACT)


@pytest.mark.parametrize("full", [16, 32, 64, 128, 256])
def test_interpolation_is_adaptive_pooling_for_every_pair_of_candidates(full: int) -> None:
    width = Candidates().width("width", full)
    assert isinstance(width, Width)
    for c_in, c_out in combinations(width.options, 2):
        x = torch.randn(1, c_in, 1, 2)
        assert torch.equal(interpolate(x, c_out), cwi(x, c_out))


@pytest.mark.parametrize(("c_in", "c_out"), [(6, 4), (16, 6), (16, 4), (13, 9), (12, 1)])
def test_fewer_channels_are_interpolated_as_adaptive_pooling_does(c_in: int, c_out: int) -> None:
    x = torch.randn(2, c_in, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(interpolate(x, c_out), cwi(x, c_out), **EXACT)


# One convolution whose widths are drawn


class NaiveConvBN(nn.Module):
    """A full convolution of zero-padded input and a BatchNorm per width, mixed one after the other."""

    def __init__(self, unit: SampledConvBN) -> None:
        super().__init__()
        weight = unit.weight.detach()
        self.padding, self.stride = unit.padding, unit.stride
        self.options = unit.options
        self.weight = nn.Parameter(weight.clone())
        self.norms = nn.ModuleList()
        for width, offset in zip(unit.options, unit.offsets, strict=True):
            norm = nn.BatchNorm2d(width).to(weight.dtype)
            part = slice(offset, offset + width)
            for kept, packed in ((norm.weight, unit.scale), (norm.bias, unit.shift)):
                kept.data.copy_(packed.detach()[part])
            norm.running_mean.copy_(unit.running_mean[part])
            norm.running_var.copy_(unit.running_var[part])
            self.norms.append(norm)

    def forward(self, x: Tensor, indices: Sequence[int], weights: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, self.weight.shape[1] - x.shape[1]))
        z = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        widest = max(self.options[i] for i in indices)
        parts = [cwi(self.norms[i](z[:, : self.options[i]]), widest) for i in indices]
        return sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))

    def packed(self, values: Callable[[nn.BatchNorm2d], Tensor | None]) -> Tensor:
        """One value per channel of every BatchNorm, narrowest first; 0 where there is none."""
        found = [(norm, values(norm)) for norm in self.norms]
        return torch.cat([torch.zeros_like(n.weight) if value is None else value for n, value in found])


def a_unit(options: tuple[int, ...], draw: Draw, *, c_in: int = 7, kernel: int = 3, stride: int = 1) -> SampledConvBN:
    """A unit whose every parameter and statistic differs from channel to channel."""
    unit = SampledConvBN(draw, c_in, Width("width", options), kernel, stride).double()
    unit.scale.data.uniform_(0.5, 2.0)
    unit.shift.data.normal_()
    unit.running_mean.normal_()
    unit.running_var.uniform_(0.5, 2.0)
    return unit


def assert_same_gradients_and_statistics(unit: SampledConvBN, naive: NaiveConvBN) -> None:
    assert unit.weight.grad is not None
    assert unit.scale.grad is not None
    assert unit.shift.grad is not None
    torch.testing.assert_close(unit.weight.grad, naive.weight.grad, **EXACT)
    torch.testing.assert_close(unit.scale.grad, naive.packed(lambda norm: norm.weight.grad), **EXACT)
    torch.testing.assert_close(unit.shift.grad, naive.packed(lambda norm: norm.bias.grad), **EXACT)
    torch.testing.assert_close(unit.running_mean, naive.packed(lambda norm: norm.running_mean), **EXACT)
    torch.testing.assert_close(unit.running_var, naive.packed(lambda norm: norm.running_var), **EXACT)


OPTIONS = (4, 6, 8, 9, 11, 12, 14, 16)
DRAWN = ((0, 7), (2, 3), (6,), (1, 4, 5), tuple(range(8)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("indices", DRAWN, ids=str)
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 5), (1, 2, 4), (3, 2, 2)])
def test_a_convolution_with_drawn_widths_is_batchnorm_interpolation_and_a_weighted_sum(
    layout: torch.memory_format, indices: tuple[int, ...], kernel: int, stride: int, size: int
) -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_unit(OPTIONS, draw, kernel=kernel, stride=stride)
    naive = NaiveConvBN(unit)
    logits = torch.randn(len(indices), dtype=torch.float64)
    images = torch.randn(6, 5, size, size, dtype=torch.float64)  # 5 of the 7 channels the unit can take
    grad = torch.randn(6, OPTIONS[indices[-1]], *(2 * [(size + stride - 1) // stride]), dtype=torch.float64)

    inputs, weights, outputs = [], [], []
    for module in (unit, naive):
        x = images.clone(memory_format=layout).requires_grad_()
        leaf = logits.softmax(0).requires_grad_()
        draw.widths = {"width": DrawnWidth(indices, leaf if len(indices) > 1 else None)}
        y = unit(x) if module is unit else naive(x, indices, leaf)
        y.backward(grad)
        inputs.append(x.grad)
        weights.append(leaf.grad)
        outputs.append(y)
    torch.testing.assert_close(*outputs, **EXACT)
    torch.testing.assert_close(*inputs, **EXACT)
    if len(indices) > 1:
        torch.testing.assert_close(*weights, **EXACT)
    assert_same_gradients_and_statistics(unit, naive)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_single_positions_are_mixed_as_well(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_unit((3, 4), draw, c_in=2, kernel=1)
    naive = NaiveConvBN(unit)
    x = torch.randn(5, 2, 1, 1, dtype=torch.float64).to(memory_format=layout)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    draw.widths = {"width": DrawnWidth((0, 1), weights)}
    ours, theirs = unit(x), naive(x, (0, 1), weights)
    torch.testing.assert_close(ours, theirs, **EXACT)
    grad = torch.randn_like(ours)
    ours.backward(grad)
    theirs.backward(grad)
    assert_same_gradients_and_statistics(unit, naive)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_of_the_mix_are_those_of_finite_differences(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_unit((2, 3, 5), draw, c_in=2)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)

    def mixed(x: Tensor, weights: Tensor, *_: Tensor) -> Tensor:
        draw.widths = {"width": DrawnWidth((0, 1, 2), weights)}
        return unit(x).sin()

    assert torch.autograd.gradcheck(mixed, (x, weights, unit.weight, unit.scale, unit.shift))


def test_bfloat16_features_are_normalized_by_float32_statistics() -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_unit(OPTIONS, draw).float()
    naive = NaiveConvBN(unit).double()
    x, weights = 30 + torch.randn(8, 7, 6, 6), torch.tensor([0.6, 0.4])
    draw.widths = {"width": DrawnWidth((1, 5), weights)}
    with torch.autocast("cpu", torch.bfloat16):
        y = unit(x)
    assert y.dtype == torch.bfloat16
    expected = naive(x.double(), (1, 5), weights.double())
    assert (y.double() - expected).abs().mean() < 0.05  # outputs are of the order of 1, bfloat16 of 0.01
    torch.testing.assert_close(
        unit.running_var.double(), naive.packed(lambda norm: norm.running_var), rtol=0.02, atol=0.02
    )


def test_an_evaluation_cannot_mix_widths() -> None:
    draw = Draw({"width": DrawnWidth((0, 1), torch.tensor([0.5, 0.5], dtype=torch.float64))})
    unit = a_unit((3, 4), draw).eval()
    with pytest.raises(AssertionError, match="batch statistics only"):
        unit(torch.randn(2, 7, 2, 2, dtype=torch.float64))


# A whole supernet, against one written from the reference's description


class NaiveStage(nn.Module):
    def __init__(self, stage: SampledStage, strides: Iterator[int]) -> None:
        super().__init__()
        self.depth = stage.depth
        self.blocks = nn.ModuleList(NaiveBlock(block, next(strides)) for block in stage.blocks)


class NaiveBlock(nn.Module):
    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.stride = stride
        units = [unit for unit in block.modules() if isinstance(unit, SampledConvBN)]
        self.names = [unit.choice for unit in units]
        self.units = nn.ModuleList(NaiveConvBN(unit) for unit in units)


class NaiveSupernet(nn.Module):
    """A CIFAR ResNet's supernet of basic blocks, full size everywhere (specification, sections 2.4 to 3.3)."""

    def __init__(self, supernet: Supernet) -> None:
        super().__init__()
        network = supernet.network
        assert isinstance(network.stem, SampledConvBN)
        assert isinstance(network.head, SampledLinear)
        assert isinstance(network.stages, nn.ModuleList)
        self.stem_name = network.stem.choice
        self.stem = NaiveConvBN(network.stem)
        firsts = [block for stage in network.stages for block in stage.blocks]
        strides = iter([block.conv1.stride for block in firsts])
        self.stages = nn.ModuleList(NaiveStage(stage, strides) for stage in network.stages)
        self.weight = nn.Parameter(network.head.weight.detach().clone())
        self.bias = nn.Parameter(network.head.bias.detach().clone())

    def forward(self, x: Tensor, widths: dict[str, DrawnWidth], depths: dict[str, DrawnDepth]) -> Tensor:
        def convolved(unit: NaiveConvBN, name: str, x: Tensor) -> Tensor:
            drawn = widths[name]
            assert drawn.weights is not None
            return unit(x, drawn.indices, drawn.weights)

        x = F.relu(convolved(self.stem, self.stem_name, x))
        for stage in self.stages:
            outputs = []
            for block in stage.blocks:
                y = F.relu(convolved(block.units[0], block.names[0], x))
                y = convolved(block.units[1], block.names[1], y)
                if block.stride == 2:
                    x = convolved(block.units[2], block.names[2], F.avg_pool2d(x, 2))
                channels = max(x.shape[1], y.shape[1])
                x, y = (F.pad(part, (0, 0, 0, 0, 0, channels - part.shape[1])) for part in (x, y))
                x = F.relu(x + y)
                outputs.append(x)
            kept = [outputs[option - 1] for option in stage.depth.options]
            widest = max(output.shape[1] for output in kept)
            mixture = depths[stage.depth.name].weights
            assert mixture is not None
            x = sum(w * cwi(output, widest) for w, output in zip(mixture, kept, strict=True))
        features = x.mean((2, 3))
        return F.linear(features, self.weight[:, : features.shape[1]], self.bias)


def a_draw(
    space: SearchSpace, count: int, seed: int
) -> tuple[dict[str, DrawnWidth], dict[str, DrawnDepth], list[Tensor]]:
    """Random widths and depths in float64, and their mixing weights as leaves to differentiate by."""
    random = torch.Generator().manual_seed(seed)
    leaves: list[Tensor] = []

    def mixture(size: int) -> Tensor:
        weights = torch.randn(size, generator=random, dtype=torch.float64).softmax(0)
        leaves.append(weights.requires_grad_())
        return weights

    widths = {}
    for choice in space.widths:
        indices = torch.randperm(len(choice.options), generator=random)[:count].sort().values
        widths[choice.name] = DrawnWidth(tuple(indices.tolist()), mixture(count))
    depths = {choice.name: DrawnDepth(mixture(len(choice.options))) for choice in space.depths}
    return widths, depths, leaves


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("define", "count"), [(cifar_resnet.resnet20, 2), (cifar_resnet.resnet32, 3)])
def test_the_published_supernet_is_the_one_of_the_reference_code(
    layout: torch.memory_format, define: Callable[..., SearchSpace], count: int
) -> None:
    torch.manual_seed(0)
    space = define(image_size=8, published=True)
    supernet = Supernet(space.define, space.candidates).double()
    for unit in units_of(supernet):
        unit.scale.data.uniform_(0.5, 1.5)
        unit.shift.data.normal_(std=0.3)
    naive = NaiveSupernet(supernet)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64).to(memory_format=layout)
    labels = torch.randint(10, (4,))
    gradients = []
    for module in (supernet, naive):
        widths, depths, leaves = a_draw(space, count, seed=1)
        logits = module(images, widths, depths)
        F.cross_entropy(logits, labels).backward()
        gradients.append((logits.detach(), [leaf.grad for leaf in leaves]))
    (ours, our_gradients), (theirs, their_gradients) = gradients
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    for mine, reference in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-10)
    naive_units = [unit for unit in naive.modules() if isinstance(unit, NaiveConvBN)]
    for unit, naive_unit in zip(units_of(supernet), naive_units, strict=True):
        torch.testing.assert_close(unit.weight.grad, naive_unit.weight.grad, rtol=1e-8, atol=1e-10)
        assert_same_gradients_and_statistics(unit, naive_unit)
    assert isinstance(supernet.network.head, SampledLinear)
    torch.testing.assert_close(supernet.network.head.weight.grad, naive.weight.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(supernet.network.head.bias.grad, naive.bias.grad, rtol=1e-8, atol=1e-10)


def units_of(module: nn.Module) -> list[SampledConvBN]:
    return [unit for unit in module.modules() if isinstance(unit, SampledConvBN)]


# One depthwise convolution whose widths are drawn


class NaiveDepthwiseBN(NaiveConvBN):
    """Every drawn width's filters on what arrives, brought to its channels; mixed one after the other."""

    def forward(self, x: Tensor, indices: Sequence[int], weights: Tensor) -> Tensor:
        parts = []
        for i in indices:
            c = self.options[i]
            filters = self.weight[:c]
            z = F.conv2d(cwi(x, c), filters, stride=self.stride, padding=self.padding, groups=c)
            parts.append(cwi(self.norms[i](z), x.shape[1]))
        return sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))


def a_depthwise_unit(
    options: tuple[int, ...], draw: Draw, *, kernel: int = 3, stride: int = 1, distinct: bool = True
) -> SampledDepthwiseBN:
    unit = SampledDepthwiseBN(draw, Width("width", options), kernel, stride).double()
    if distinct:
        unit.scale.data.uniform_(0.5, 2.0)
        unit.shift.data.normal_()
        unit.running_mean.normal_()
        unit.running_var.uniform_(0.5, 2.0)
    return unit


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("indices", DRAWN, ids=str)
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 5), (5, 2, 4)])
def test_a_depthwise_convolution_filters_mixes_and_normalizes_width_by_width(
    layout: torch.memory_format, indices: tuple[int, ...], kernel: int, stride: int, size: int
) -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_depthwise_unit(OPTIONS, draw, kernel=kernel, stride=stride)
    naive = NaiveDepthwiseBN(unit)
    logits = torch.randn(len(indices), dtype=torch.float64)
    images = torch.randn(6, OPTIONS[indices[-1]], size, size, dtype=torch.float64)
    grad = torch.randn(6, OPTIONS[indices[-1]], *(2 * [size // stride]), dtype=torch.float64)
    results = []
    for module in (unit, naive):
        x = images.clone(memory_format=layout).requires_grad_()
        leaf = logits.softmax(0).requires_grad_()
        draw.widths = {"width": DrawnWidth(indices, leaf if len(indices) > 1 else None)}
        y = unit(x) if module is unit else naive(x, indices, leaf)
        y.backward(grad)
        results.append((y, x.grad, leaf.grad if len(indices) > 1 else None))
    torch.testing.assert_close(*results, **EXACT)
    assert_same_gradients_and_statistics(unit, naive)


def test_behind_a_narrow_width_a_depthwise_convolution_is_that_of_the_narrow_width() -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_depthwise_unit((4, 6, 12), draw)
    narrow = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    draw.widths = {"width": DrawnWidth((0,))}
    alone = unit(narrow)
    # All of the weight on 4 channels, while 12 are drawn as well: 4 channels arrive as 12, each of them three times.
    draw.widths = {"width": DrawnWidth((0, 2), torch.tensor([1.0, 0.0], dtype=torch.float64))}
    torch.testing.assert_close(unit(interpolate(narrow, 12)), interpolate(alone, 12), **EXACT)


def test_a_depthwise_convolution_that_changes_nothing_keeps_the_widest_width_as_it_is() -> None:
    torch.manual_seed(0)
    draw = Draw(widths={"width": DrawnWidth((0, 1), torch.tensor([0.0, 1.0], dtype=torch.float64))})
    unit = a_depthwise_unit((3, 5), draw, distinct=False)
    unit.weight.data.zero_()
    unit.weight.data[:, :, 1, 1] = 1.0
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(unit(x), F.batch_norm(x, None, None, training=True), **EXACT)


def test_a_depthwise_convolution_mixes_in_training_only() -> None:
    draw = Draw({"width": DrawnWidth((0, 1), torch.tensor([0.5, 0.5], dtype=torch.float64))})
    with pytest.raises(AssertionError, match="batch statistics only"):
        a_depthwise_unit((3, 4), draw).eval()(torch.randn(1, 4, 2, 2, dtype=torch.float64))


def test_a_depthwise_convolution_in_bfloat16_stays_near_the_exact_one() -> None:
    torch.manual_seed(0)
    draw = Draw()
    unit = a_depthwise_unit(OPTIONS, draw).float()
    naive = NaiveDepthwiseBN(unit).double()
    x, weights = 30 + torch.randn(8, OPTIONS[5], 6, 6), torch.tensor([0.6, 0.4])
    x = x.bfloat16()
    draw.widths = {"width": DrawnWidth((1, 5), weights)}
    with torch.autocast("cpu", torch.bfloat16):
        y = unit(x)
    assert y.dtype == torch.bfloat16
    assert (y.double() - naive(x.double(), (1, 5), weights.double())).abs().mean() < 0.1


def test_a_depthwise_convolution_takes_the_width_before_it_only() -> None:
    draw = Draw(widths={"width": DrawnWidth((1,))})
    unit = a_depthwise_unit((3, 4, 6), draw)
    with pytest.raises(ValueError, match="6 channels reach a depthwise convolution whose width width has 4"):
        unit(torch.randn(1, 6, 2, 2, dtype=torch.float64))


def test_a_depthwise_convolution_behind_a_stage_of_different_widths_is_refused() -> None:
    depth = Depth("stage1.depth", (1, 2))
    c = StageOutput(depth, (Width("a", (2, 4)), Width("b", (2, 4))))
    with pytest.raises(ValueError, match=r"right behind the stage of stage1.depth .* tie the widths"):
        SampledLayers(Candidates(), Draw()).depthwise_bn(c, 3)


# The supernet fixed to an architecture


TIED = {
    "mobilenet_v1": mobilenet_v1.mobilenet_v1(image_size=32, classes=7),
    "mobilenet_v2": mobilenet_v2.mobilenet_v2(image_size=32, classes=7),
    "metapruning_resnet50": metapruning_resnet.resnet50(image_size=32, classes=7),
    "tiny": tiny(),
    "resnet20": cifar_resnet.resnet20(image_size=8),
    "resnet32": cifar_resnet.resnet32(image_size=8),
    "resnet56": cifar_resnet.resnet56(image_size=8),
    "resnet110": cifar_resnet.resnet110(image_size=8),
    "resnet164": cifar_resnet.resnet164(image_size=8),
    "resnet18": imagenet_resnet.resnet18(image_size=32, classes=7),
    "resnet50": imagenet_resnet.resnet50(image_size=32, classes=7),
}


def copied(network: nn.Module, supernet: nn.Module, architecture: Architecture) -> None:
    """Gives a derived network the supernet's leading weights and the BatchNorms of its widths.

    The supernet normalizes behind every convolution. Where the derived network does not, the supernet's
    BatchNorm is made to change nothing.
    """
    derived = dict(network.named_modules())
    # A supernet stage holds its blocks in `blocks`, a derived one is a sequence of them.
    for name, unit in supernet.named_modules():
        layer = derived.get(name.replace(".blocks.", "."))
        if isinstance(unit, SampledLinear):
            assert isinstance(layer, nn.Linear)
            layer.weight.data.copy_(unit.weight[:, : layer.in_features])
            layer.bias.data.copy_(unit.bias)
        if not isinstance(unit, SampledConvBN) or layer is None:
            continue
        assert isinstance(layer, nn.Sequential)
        conv, *norms = layer
        c_out, c_in, *_ = conv.weight.shape
        conv.weight.data.copy_(unit.weight[:c_out, :c_in])
        offset = unit.offsets[unit.options.index(architecture[unit.choice] if unit.choice else c_out)]
        part = slice(offset, offset + c_out)
        if not norms:
            unit.scale.data[part], unit.shift.data[part] = (1 + 1e-5) ** 0.5, 0.0
            unit.running_mean[part], unit.running_var[part] = 0.0, 1.0
        for norm in norms:
            norm.weight.data.copy_(unit.scale[part])
            norm.bias.data.copy_(unit.shift[part])
            norm.running_mean.copy_(unit.running_mean[part])
            norm.running_var.copy_(unit.running_var[part])


@pytest.mark.parametrize("name", TIED)
def test_a_tied_supernet_fixed_to_an_architecture_is_the_derived_network(name: str) -> None:
    torch.manual_seed(0)
    space = TIED[name]
    supernet = Supernet(space.define, space.candidates).double()
    for unit in units_of(supernet):
        unit.scale.data.uniform_(0.5, 1.5)
        unit.shift.data.normal_(std=0.3)
        unit.running_mean.normal_(std=0.3)
        unit.running_var.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, space.image_size, space.image_size, dtype=torch.float64)
    seen = set()
    for architecture in (space.dense, space.smallest, *(space.sample(UNBOUNDED, seed=s) for s in range(2))):
        network = space.build(architecture).double()
        copied(network, supernet.network, architecture)
        fixed = FixedSupernet(supernet, space.choices, architecture)
        with torch.no_grad():
            ours, theirs = fixed.eval()(images), network.eval()(images)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        seen.add(round(float(ours.sum()), 9))
    assert len(seen) == 4  # the architectures do differ


def test_widths_and_depths_that_are_not_searched_are_the_unpruned_networks() -> None:
    torch.manual_seed(0)
    freeze = ("stage1.*", "stage2.out", "stage2.depth")
    space = SearchSpace(
        name="partly", define=tiny().define, image_size=8, classes=10, candidates=Candidates(freeze=freeze)
    )
    assert [choice.name for choice in space.choices] == ["stage2.block0.conv1", "stage2.block1.conv1"]
    supernet = Supernet(space.define, space.candidates).double()
    network = space.build(space.smallest).double()
    copied(network, supernet.network, space.smallest)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        ours = FixedSupernet(supernet, space.choices, space.smallest).eval()(images)
        torch.testing.assert_close(ours, network.eval()(images), **EXACT)


def test_a_width_that_is_no_candidate_cannot_be_fixed() -> None:
    space = TIED["tiny"]
    supernet = Supernet(space.define, space.candidates)
    with pytest.raises(ValueError, match="not in tuple"):
        FixedSupernet(supernet, space.choices, Architecture({**space.dense, "stage1.out": 7}))


def test_a_stage_stops_behind_the_drawn_depth() -> None:
    draw = Draw(depths={"depth": DrawnDepth(index=0)})
    layers = SampledLayers(Candidates(), draw)
    builders = [lambda layers, c_in: _Counting() for _ in range(3)]
    stage = layers.stage(layers.depth("depth", (2, 3)), 1, builders)
    assert isinstance(stage, SampledStage)
    assert stage(torch.zeros(1, 1, 1, 1)).item() == 2
    draw.depths = {"depth": DrawnDepth(index=1)}
    assert stage(torch.zeros(1, 1, 1, 1)).item() == 3
    draw.depths = {"depth": DrawnDepth(torch.tensor([0.25, 0.75]))}
    assert stage(torch.zeros(1, 1, 1, 1)).item() == 2.75


class _Counting(nn.Module):
    c_out = 1

    def forward(self, x: Tensor) -> Tensor:
        return x + 1
