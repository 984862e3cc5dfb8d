"""What any architecture of a space costs, without building it: multiply-accumulates and parameters.

A MAC is one multiply-accumulate of a convolution or linear layer for one image; biases, BatchNorm, pooling
and additions count nothing. (Papers on pruning write "FLOPs" for this number.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tas_ray.choices import (
    Architecture,
    Candidates,
    Choice,
    Depth,
    Size,
    StageOutput,
    Width,
    full,
)
from tas_ray.layers import Block, BlockBuilder, Chain, Layers, all_blocks, stage_output

Population = Int[np.ndarray, "architectures choices"]
_C = TypeVar("_C", Width, Depth)
Values = Int[np.ndarray, " architectures"]


@dataclass(frozen=True)
class Kept:
    """A layer stands in a network only if its stage keeps more than `block` blocks (counted from 0)."""

    depth: Depth
    block: int


@dataclass(kw_only=True)
class Row:
    """One convolution or linear layer: its sizes, and when it is there."""

    c_in: Size
    c_out: Size
    kernel: int = 1
    stride: int = 1
    norm: bool = False
    bias: bool = False
    depthwise: bool = False
    """Every channel is filtered by itself: `c_in` and `c_out` are one width, which costs once."""
    kept: Kept | None = None
    projection: bool = False
    """There only where the chosen `c_in` and `c_out` differ (see `Layers.identity`)."""
    positions: int = 0
    """Output height x width, found by running the unpruned network."""
    input_positions: int = 0
    """Input height x width, found the same way."""


@dataclass(frozen=True)
class CostTable:
    """The cost of every architecture of a space, from one row per layer."""

    choices: tuple[Width | Depth, ...]
    rows: tuple[Row, ...]
    columns: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", {choice.name: i for i, choice in enumerate(self.choices)})

    def population(self, architectures: Sequence[Architecture]) -> Population:
        """The architectures' numbers of channels and blocks as one array, columns as in `choices`."""
        values = [[architecture[c.name] for c in self.choices] for architecture in architectures]
        return np.array(values, dtype=np.int64).reshape(len(architectures), len(self.choices))

    def macs(self, population: Population) -> Values:
        """MACs of each built network: exactly `torch.utils.flop_counter` / 2."""
        return self._sum(population, lambda row: row.positions * row.kernel**2)

    def published_macs(self, population: Population) -> Values:
        """MACs as TAS counts them in its search (`get_flop` of the reference, specification section 4.3).

        Behind a shortened stage the next layer is charged for the width of the *removed* last block.
        """
        return self._sum(population, lambda row: row.positions * row.kernel**2, rewired=False)

    def params(self, population: Population) -> Values:
        """Parameters of each built network, BatchNorm scales and shifts and biases included."""
        vectors = self._outputs(population, lambda row: 2 * row.norm + row.bias)
        return self._sum(population, lambda row: row.kernel**2) + vectors

    def normalized(self, population: Population) -> Values:
        """Elements that pass each built network's BatchNorms for one image, which some papers add to the MACs."""
        return self._outputs(population, lambda row: row.positions * row.norm)

    def signature(self, population: Population) -> Int[np.ndarray, "architectures sizes"]:
        """What tells built networks apart: `c_in` and `c_out` of every layer, 0 where it is not there.

        Equal rows are one network, even of two architectures: the widths inside a block that was removed count nothing.
        """
        sizes = []
        for row in self.rows:
            there = self._there(row, population)
            sizes += [there * self._size(row.c_in, population), there * self._size(row.c_out, population)]
        return np.stack(sizes, axis=1)

    def _sum(self, population: np.ndarray, weight: Callable[[Row], int], rewired: bool = True) -> np.ndarray:
        total = np.zeros(len(population), dtype=np.int64)
        for row in self.rows:
            c_in = 1 if row.depthwise else self._size(row.c_in, population, rewired)
            there = self._there(row, population)
            total += weight(row) * c_in * self._size(row.c_out, population) * there
        return total

    def _outputs(self, population: np.ndarray, weight: Callable[[Row], int]) -> np.ndarray:
        total = np.zeros(len(population), dtype=np.int64)
        for row in self.rows:
            if weight(row):
                total += weight(row) * self._size(row.c_out, population) * self._there(row, population)
        return total

    def _size(self, size: Size, population: np.ndarray, rewired: bool = True) -> np.ndarray:
        if isinstance(size, int):
            return np.full(len(population), size, dtype=np.int64)
        if isinstance(size, Width):
            return population[:, self.columns[size.name]]
        if not rewired:
            return self._size(size.widths[-1], population)
        by_depth = np.stack([self._size(width, population) for width in size.widths])
        return by_depth[self._depth(size.depth, population) - 1, np.arange(len(population))]

    def _depth(self, depth: Depth, population: np.ndarray) -> np.ndarray:
        column = self.columns.get(depth.name)
        return np.full(len(population), depth.full) if column is None else population[:, column]

    def _there(self, row: Row, population: np.ndarray) -> np.ndarray:
        there = np.ones(len(population), dtype=np.int64)
        if row.kept is not None:
            there &= self._depth(row.kept.depth, population) > row.kept.block
        if row.projection:
            there &= self._size(row.c_in, population) != self._size(row.c_out, population)
        return there


def trace(define: Callable[[Layers], nn.Module], candidates: Candidates, image_size: int, channels: int) -> CostTable:
    """The cost table of the networks `define` describes, for square images.

    Raises:
        ValueError: the images are too small (or otherwise unfit) for the network.
    """
    layers = RecordingLayers(candidates)
    with torch.device("meta"):
        network = define(layers)
        _refuse_unmatched(candidates, layers)
        try:
            network(torch.zeros(1, channels, image_size, image_size))
        except RuntimeError as error:
            raise ValueError(
                f"images of {channels} x {image_size} x {image_size} do not fit this network: {error}"
            ) from error
    return CostTable(tuple(layers.choices.values()), tuple(layers.rows))


def _refuse_unmatched(candidates: Candidates, layers: RecordingLayers) -> None:
    unmatched = candidates.unmatched(layers.names)
    if unmatched:
        raise ValueError(
            f"the candidates name {', '.join(unmatched)}, but the network has no such width or depth; "
            f"it has {', '.join(layers.names)}"
        )


def counted_macs(network: nn.Module, image_size: int, channels: int) -> int:
    """MACs of one image through `network` as torch's own counter sees them: the reference for every table."""
    device = next(network.parameters()).device
    training = network.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, channels, image_size, image_size, device=device))
    network.train(training)
    return int(counter.get_total_flops()) // 2


class RecordingLayers(Layers):
    """The factory that writes a row per layer; its network, run once, finds the rows' output sizes."""

    def __init__(self, candidates: Candidates) -> None:
        super().__init__(candidates)
        self.choices: dict[str, Width | Depth] = {}
        self.names: dict[str, None] = {}  # of all widths and depths, frozen ones too, in order
        self.rows: list[Row] = []
        self._kept: Kept | None = None

    def width(self, name: str, base: int) -> Size:
        """See `Layers.width`."""
        self.names[name] = None
        width = self.candidates.width(name, base)
        return width if isinstance(width, int) else self._declare(width)

    def depth(self, name: str, options: tuple[int, ...]) -> Depth:
        """See `Layers.depth`."""
        self.names[name] = None
        depth = self.candidates.depth(name, options)
        return depth if len(depth.options) == 1 else self._declare(depth)

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
        """See `Layers.conv_bn`."""
        conv = nn.Conv2d(full(c_in), full(c_out), kernel, stride, padding=kernel // 2, bias=False)
        return _Recorded(conv, self._row(c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, norm=norm))

    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        """See `Layers.depthwise_bn`."""
        conv = nn.Conv2d(full(c), full(c), kernel, stride, padding=kernel // 2, groups=full(c), bias=False)
        row = self._row(c_in=c, c_out=c, kernel=kernel, stride=stride, norm=True, depthwise=True)
        return _Recorded(conv, row)

    def identity(self, c_in: Size, c_out: Size, *, norm: bool) -> nn.Module:
        """See `Layers.identity`."""
        if c_in == c_out:
            return nn.Identity()
        return _Recorded(nn.Identity(), self._row(c_in=c_in, c_out=c_out, norm=norm, projection=True))

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
        """See `Layers.shortcut`; at stride 1 a built network projects only where the chosen widths differ."""
        first = len(self.rows)
        layer = super().shortcut(
            c_in, c_out, stride=stride, downsample_norm=downsample_norm, projection_norm=projection_norm
        )
        for row in self.rows[first:]:
            row.projection = stride == 1
        return layer

    def stage(self, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> Block:
        """See `Layers.stage`."""
        kept = [self._keeping(Kept(depth, i), build) for i, build in enumerate(blocks)]
        built = all_blocks(self, depth, c_in, kept)
        chain = Chain(c_in, built)
        chain.c_out = stage_output(depth, built)
        return chain

    def linear(self, c_in: Size, c_out: int) -> nn.Module:
        """See `Layers.linear`."""
        return _Recorded(nn.Linear(full(c_in), c_out), self._row(c_in=c_in, c_out=c_out, bias=True))

    def _declare(self, choice: _C) -> _C:
        known: Choice = self.choices.setdefault(choice.name, choice)
        if known != choice:
            raise ValueError(f"two different choices are called {choice.name}: {known} and {choice}")
        return choice

    def _keeping(self, kept: Kept, build: BlockBuilder) -> BlockBuilder:
        def recorded(layers: Layers, c_in: Size) -> Block:
            self._kept = kept
            block = build(layers, c_in)
            self._kept = None
            return block

        return recorded

    def _row(
        self,
        *,
        c_in: Size,
        c_out: Size,
        kernel: int = 1,
        stride: int = 1,
        norm: bool = False,
        bias: bool = False,
        depthwise: bool = False,
        projection: bool = False,
    ) -> Row:
        row = Row(
            c_in=c_in,
            c_out=c_out,
            kernel=kernel,
            stride=stride,
            norm=norm,
            bias=bias,
            depthwise=depthwise,
            projection=projection,
            kept=self._kept,
        )
        self.rows.append(row)
        return row


class _Recorded(nn.Module):
    def __init__(self, layer: nn.Module, row: Row) -> None:
        super().__init__()
        self.layer = layer
        self.row = row

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.row.positions = y[0, 0].numel()
        self.row.input_positions = x[0, 0].numel()
        return y


__all__ = ["CostTable", "Population", "RecordingLayers", "Row", "StageOutput", "counted_macs", "trace"]
