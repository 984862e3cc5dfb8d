"""MobileNetV1 (Howard et al., 2017) with the widths MetaPruning searches (ICCV 2019, section 4)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tas_ray.choices import METAPRUNING_RATIOS, Candidates, Size
from tas_ray.layers import Layers, global_average
from tas_ray.space import SearchSpace

STEM = 32
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
"""Output channels and stride of each block."""


class SeparableBlock(nn.Module):
    """A 3x3 depthwise and a 1x1 convolution."""

    def __init__(self, layers: Layers, c_in: Size, *, c_out: Size, stride: int) -> None:
        super().__init__()
        context = (c_in, c_out)
        self.depthwise = layers.depthwise_bn(c_in, 3, stride=stride, context=context)
        self.pointwise = layers.conv_bn(c_in, c_out, 1, context=context)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(x), inplace=True)
        return F.relu(self.pointwise(x), inplace=True)


class MobileNetV1(nn.Module):
    """A 3x3 stride-2 stem, thirteen separable blocks, global average pooling, a linear classifier.

    The last block's output is no choice. Images `(batch, 3, height, width)` to logits `(batch, classes)`.
    """

    def __init__(self, layers: Layers, *, classes: int) -> None:
        super().__init__()
        c = layers.width("stem", STEM)
        self.stem = layers.conv_bn(3, c, 3, stride=2, context=(c,))
        self.blocks = nn.Sequential()
        for number, (base, stride) in enumerate(BLOCKS, start=1):
            c_out = layers.width(f"block{number}.out", base) if number < len(BLOCKS) else base
            self.blocks.append(SeparableBlock(layers, c, c_out=c_out, stride=stride))
            c = c_out
        self.head = layers.linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x), inplace=True))
        logits: Tensor = self.head(global_average(x))
        return logits


def mobilenet_v1(*, classes: int = 1000, image_size: int = 224) -> SearchSpace:
    """MobileNetV1: 569 M MACs at 224 pixels."""
    return SearchSpace(
        name="mobilenet_v1",
        define=partial(MobileNetV1, classes=classes),
        image_size=image_size,
        classes=classes,
        candidates=Candidates(ratios=METAPRUNING_RATIOS),
    )
