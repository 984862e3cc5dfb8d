"""Residual blocks and stages that the CIFAR and ImageNet ResNets share (He et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tas_ray.choices import Size
from tas_ray.layers import Block, BlockBuilder, Layers, add

EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """How a family of ResNets treats its shortcuts and the ends of its branches."""

    downsample_norm: bool
    """BatchNorm behind the 1x1 convolution of a stride-2 shortcut."""

    projection_norm: bool
    """BatchNorm behind a 1x1 convolution at stride 1."""

    zero_scale: bool = False
    """The last BatchNorm of a branch starts with scale 0."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `c_in` to `c_out` channels over `c_mid`."""

    def __init__(
        self,
        layers: Layers,
        c_in: Size,
        *,
        c_mid: tuple[Size],
        c_out: Size,
        stride: int,
        shortcuts: Shortcuts,
    ) -> None:
        super().__init__()
        (c,) = c_mid
        context = (c, c_in, c_out)
        self.conv1 = layers.conv_bn(c_in, c, 3, stride=stride, context=context)
        self.conv2 = layers.conv_bn(c, c_out, 3, zero_scale=shortcuts.zero_scale, context=context)
        self.shortcut = layers.shortcut(
            c_in,
            c_out,
            stride=stride,
            downsample_norm=shortcuts.downsample_norm,
            projection_norm=shortcuts.projection_norm,
            context=context,
        )
        self.c_out = c_out

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(x), inplace=True))
        return F.relu(add(branch, self.shortcut(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride sits on the 3x3."""

    def __init__(
        self,
        layers: Layers,
        c_in: Size,
        *,
        c_mid: tuple[Size, Size],
        c_out: Size,
        stride: int,
        shortcuts: Shortcuts,
    ) -> None:
        super().__init__()
        c_reduced, c_spatial = c_mid
        context = (c_reduced, c_spatial, c_in, c_out)
        self.conv1 = layers.conv_bn(c_in, c_reduced, 1, context=context)
        self.conv2 = layers.conv_bn(c_reduced, c_spatial, 3, stride=stride, context=context)
        self.conv3 = layers.conv_bn(c_spatial, c_out, 1, zero_scale=shortcuts.zero_scale, context=context)
        self.shortcut = layers.shortcut(
            c_in,
            c_out,
            stride=stride,
            downsample_norm=shortcuts.downsample_norm,
            projection_norm=shortcuts.projection_norm,
            context=context,
        )
        self.c_out = c_out

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.conv1(x), inplace=True)
        branch = F.relu(self.conv2(branch), inplace=True)
        return F.relu(add(self.conv3(branch), self.shortcut(x)), inplace=True)


def stage_blocks(
    layers: Layers,
    *,
    bottleneck: bool,
    name: str,
    blocks: int,
    planes: int,
    stride: int,
    shortcuts: Shortcuts,
    published: bool,
) -> list[BlockBuilder]:
    """A stage's blocks, with the names of their widths.

    Args:
        published: every convolution has its own width; otherwise all blocks hand on one width, `NAME.out`,
            and only the widths inside the blocks are free.
    """
    inner = 2 if bottleneck else 1
    c_last = planes * EXPANSION if bottleneck else planes
    builders: list[BlockBuilder] = []
    for index in range(blocks):
        block = f"{name}.block{index}"
        c_mid = tuple(layers.width(f"{block}.conv{i}", planes) for i in range(1, inner + 1))
        c_out = layers.width(f"{block}.conv{inner + 1}" if published else f"{name}.out", c_last)
        make: Callable[..., Block] = Bottleneck if bottleneck else BasicBlock
        builders.append(
            partial(make, c_mid=c_mid, c_out=c_out, stride=stride if index == 0 else 1, shortcuts=shortcuts)
        )
    return builders
