"""MobileNetV2 (Sandler et al., CVPR 2018) with the widths MetaPruning searches (ICCV 2019, section 4).

Its base widths are 1.4 times the standard ones, truncated; the last convolution keeps its standard 1280 channels.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tas_ray.choices import METAPRUNING_RATIOS, Candidates, Size
from tas_ray.layers import Layers, add, global_average
from tas_ray.space import SearchSpace

STEM = 44
STAGES = ((22, 1, 1), (33, 2, 2), (44, 3, 2), (88, 4, 2), (132, 3, 1), (224, 3, 2), (448, 1, 1))
"""Output channels, number of blocks and stride of each stage."""
EXPANSION = 6
LAST = 1280


class InvertedResidual(nn.Module):
    """A 1x1, a 3x3 depthwise and a linear 1x1 convolution; inside a stage the input is added.

    Args:
        residual: whether the unpruned network's input is as wide as its output. Both are one choice then; widths
            that merely come to be equal make no shortcut, which the trained PruningNet would not have had either.
    """

    def __init__(self, layers: Layers, c_in: Size, *, c_hidden: Size, c_out: Size, stride: int, residual: bool) -> None:
        super().__init__()
        context = (c_hidden, c_in, c_out)
        self.expand = layers.conv_bn(c_in, c_hidden, 1, context=context)
        self.depthwise = layers.depthwise_bn(c_hidden, 3, stride=stride, context=context)
        self.project = layers.conv_bn(c_hidden, c_out, 1, context=context)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return add(y, x) if self.residual else y


class MobileNetV2(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 convolution, global average pooling, a linear classifier.

    Images `(batch, 3, height, width)` to logits `(batch, classes)`.

    Args:
        small_images: the stem and the second stage keep the size, which falls to an eighth instead of a 32nd.
    """

    def __init__(self, layers: Layers, *, classes: int, small_images: bool) -> None:
        super().__init__()
        c, base = layers.width("stem", STEM), STEM
        self.stem = layers.conv_bn(3, c, 3, stride=1 if small_images else 2, context=(c,))
        self.stages = nn.Sequential()
        for number, (base_out, blocks, stride) in enumerate(STAGES, start=1):
            c_out = layers.width(f"stage{number}.out", base_out)
            for index in range(blocks):
                base_hidden = base if number == 1 else EXPANSION * base
                strides = index == 0 and not (small_images and number == 2)
                block = InvertedResidual(
                    layers,
                    c,
                    c_hidden=layers.width(f"stage{number}.block{index}.hidden", base_hidden),
                    c_out=c_out,
                    stride=stride if strides else 1,
                    residual=base == base_out,
                )
                self.stages.append(block)
                c, base = c_out, base_out
        self.last = layers.conv_bn(c, LAST, 1, context=(c,))
        self.head = layers.linear(LAST, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu6(self.stem(x), inplace=True))
        x = F.relu6(self.last(x), inplace=True)
        logits: Tensor = self.head(global_average(x))
        return logits


def mobilenet_v2(*, classes: int = 1000, image_size: int = 224, small_images: bool = False) -> SearchSpace:
    """MobileNetV2, 1.4 times as wide: 570 M MACs at 224 pixels.

    Args:
        small_images: as usual for 32-pixel images, the first two of the five strides of 2 are left out.
    """
    return SearchSpace(
        name="mobilenet_v2" + ("-small_images" if small_images else ""),
        define=partial(MobileNetV2, classes=classes, small_images=small_images),
        image_size=image_size,
        classes=classes,
        candidates=Candidates(ratios=METAPRUNING_RATIOS),
    )
