"""The layer factory networks are written against, and the factory that makes plain PyTorch layers of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tas_ray.choices import Architecture, Candidates, Depth, Size, StageOutput, full


@runtime_checkable
class Block(Protocol):
    """A module that knows how many channels it hands on."""

    c_out: Size

    def __call__(self, x: Tensor) -> Tensor:
        """Images' features to features."""


BlockBuilder = Callable[["Layers", Size], Block]
"""Makes a block behind a tensor of so many channels."""


class Layers(ABC):
    """Decides what a layer is: a network's code asks here for its widths, depths and layers.

    Factories differ in what they return, never in what it computes on the unpruned network's topology.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates

    @abstractmethod
    def width(self, name: str, base: int) -> Size:
        """A number of channels, `base` in the unpruned network; use the result twice to tie two layers."""

    @abstractmethod
    def depth(self, name: str, options: tuple[int, ...]) -> Depth:
        """A stage's number of blocks, the last of the ascending `options` in the unpruned network."""

    @abstractmethod
    def conv_bn(
        self,
        c_in: Size,
        c_out: Size,
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = True,
        zero_scale: bool = False,
        context: tuple[Size, ...] = (),
    ) -> nn.Module:
        """A convolution without bias, padded to keep the size at stride 1, and its BatchNorm.

        Args:
            norm: without it the deployed network has no BatchNorm here.
            zero_scale: the deployed BatchNorm starts with scale 0 (a residual branch that starts as nothing).
            context: the widths whose ratios tell a generator of weights about this layer, in order; empty:
                its own, input before output. Factories that generate nothing ignore it.
        """

    @abstractmethod
    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        """A convolution without bias that filters each of `c` channels by itself, and its BatchNorm.

        Its width is that of the layer before it: what has one `c` is handed on with the same. Padded to keep the
        size at stride 1.

        Args:
            context: see `conv_bn`; empty: its own width.
        """

    @abstractmethod
    def identity(self, c_in: Size, c_out: Size, *, norm: bool) -> nn.Module:
        """A shortcut that passes its input on and, where a chosen network's widths differ, projects it.

        Args:
            norm: whether a projection's convolution is followed by BatchNorm.
        """

    @abstractmethod
    def stage(self, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> Block:
        """The first `depth` of the blocks, one behind the other."""

    @abstractmethod
    def linear(self, c_in: Size, c_out: int) -> nn.Module:
        """A fully connected layer with bias on features `(batch, c_in)`."""

    def shortcut(
        self,
        c_in: Size,
        c_out: Size,
        *,
        stride: int,
        downsample_norm: bool,
        projection_norm: bool,
        context: tuple[Size, ...] = (),
    ) -> nn.Module:
        """What a residual block adds to its branch (TAS, section 4.1 and the reference's derived networks).

        Stride 2 averages 2x2 positions and projects by a 1x1 convolution; at stride 1 the input is projected
        if even the unpruned network's widths differ there, and passed on otherwise (see `identity`).

        Args:
            context: of the convolution, see `conv_bn`.
        """
        if stride > 1:
            pool = nn.AvgPool2d(stride, stride)
            return nn.Sequential(pool, self.conv_bn(c_in, c_out, 1, norm=downsample_norm, context=context))
        if full(c_in) != full(c_out):
            return self.conv_bn(c_in, c_out, 1, norm=projection_norm, context=context)
        return self.identity(c_in, c_out, norm=projection_norm)


def add(
    a: Float[Tensor, "batch channels_a height_a width_a"],
    b: Float[Tensor, "batch channels_b height_b width_b"],
) -> Float[Tensor, "batch channels height_a width_a"]:
    """`a + b`; in a supernet the narrower lands on the leading channels of the wider (TAS reference).

    A built network never sees different widths here: its shortcuts project (`Layers.identity`).

    Raises:
        RuntimeError: the sizes differ, as behind a stride of 2 on an odd size; nothing is broadcast.
    """
    if a.shape[2:] != b.shape[2:]:
        sizes = " and ".join(f"{height} x {width}" for _, _, height, width in (a.shape, b.shape))
        raise RuntimeError(f"features of {sizes} positions cannot be added; even sizes halve alike")
    if a.shape[1] == b.shape[1]:
        return a + b
    wide, narrow = (a, b) if a.shape[1] > b.shape[1] else (b, a)
    return _PaddedAdd.apply(wide, narrow)


class _PaddedAdd(torch.autograd.Function):
    """`wide + pad(narrow)` in one pass, nothing saved."""

    @staticmethod
    def forward(ctx, wide: Tensor, narrow: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.narrow = narrow.shape[1]
        out = wide.clone()
        out[:, : ctx.narrow] += narrow
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        return grad, grad[:, : ctx.narrow]


class PlainLayers(Layers):
    """Ordinary PyTorch layers of one architecture: the dense teacher and every derived network."""

    def __init__(self, candidates: Candidates, architecture: Architecture) -> None:
        super().__init__(candidates)
        self.architecture = architecture

    def width(self, name: str, base: int) -> int:
        """See `Layers.width`: the architecture's, or `base` where it is frozen."""
        return self.architecture.get(name, base)

    def depth(self, name: str, options: tuple[int, ...]) -> Depth:
        """See `Layers.depth`: the one option the architecture has."""
        return Depth(name, (self.architecture.get(name, options[-1]),))

    def conv_bn(
        self,
        c_in: Size,
        c_out: Size,
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = True,
        zero_scale: bool = False,
        context: tuple[Size, ...] = (),
    ) -> nn.Module:
        """See `Layers.conv_bn`: `nn.Conv2d` and `nn.BatchNorm2d`."""
        conv = nn.Conv2d(full(c_in), full(c_out), kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layer = nn.Sequential()
        layer.add_module("conv", conv)
        if norm:
            bn = nn.BatchNorm2d(full(c_out))
            nn.init.constant_(bn.weight, 0.0 if zero_scale else 1.0)
            layer.add_module("bn", bn)
        return layer

    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        """See `Layers.depthwise_bn`: `nn.Conv2d` in as many groups as channels, and `nn.BatchNorm2d`."""
        channels = full(c)
        conv = nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")  # a channel's fan-out is its fan-in
        layer = nn.Sequential()
        layer.add_module("conv", conv)
        layer.add_module("bn", nn.BatchNorm2d(channels))
        return layer

    def identity(self, c_in: Size, c_out: Size, *, norm: bool) -> nn.Module:
        """See `Layers.identity`."""
        return nn.Identity() if full(c_in) == full(c_out) else self.conv_bn(c_in, c_out, 1, norm=norm)

    def stage(self, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> Block:
        """See `Layers.stage`: only the kept blocks are built."""
        return Chain(c_in, _chained(self, c_in, blocks[: depth.full]))

    def linear(self, c_in: Size, c_out: int) -> nn.Module:
        """See `Layers.linear`."""
        layer = nn.Linear(full(c_in), c_out)
        nn.init.normal_(layer.weight, 0.0, 0.01)
        nn.init.zeros_(layer.bias)
        return layer


class Chain(nn.Sequential):
    """Blocks one behind the other; hands on what the last one does."""

    def __init__(self, c_in: Size, blocks: Iterable[Block]) -> None:
        kept = list(blocks)
        super().__init__(*kept)  # type: ignore[call-overload]
        self.c_out: Size = kept[-1].c_out if kept else c_in


def all_blocks(layers: Layers, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> list[Block]:
    """Every block of a stage, for factories that build the whole supernet."""
    built = list(_chained(layers, c_in, blocks))
    assert depth.full == len(built), f"{depth.name} keeps at most {depth.full} of {len(built)} blocks"
    return built


def stage_output(depth: Depth, blocks: Sequence[Block]) -> Size:
    """The channels behind a stage of all these blocks: one width if they are tied, else chosen by depth."""
    widths = tuple(block.c_out for block in blocks)
    return widths[-1] if len(set(widths)) == 1 else StageOutput(depth, widths)  # type: ignore[arg-type]


def _chained(layers: Layers, c_in: Size, blocks: Sequence[BlockBuilder]) -> Iterable[Block]:
    for build in blocks:
        block = build(layers, c_in)
        c_in = block.c_out
        yield block


def global_average(
    x: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels"]:
    """The mean over positions, what a classifier sees."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
