"""ResNet-50 (He et al., CVPR 2016) with the shortcuts and the widths MetaPruning searches (ICCV 2019, section 4).

Unlike TAS's (`search_spaces.imagenet_resnet`) its shortcuts do not average but project with the block's stride, a
block's first two convolutions share one width, and no block can be left out.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tas_ray.choices import METAPRUNING_RATIOS, Candidates, Size
from tas_ray.layers import Layers, add, global_average
from tas_ray.space import SearchSpace

STEM = 64
STAGES = ((256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2))
"""Output channels, number of blocks and stride of each stage."""
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride sits on the 3x3.

    Args:
        downsample: the shortcut is a 1x1 convolution with the block's stride, also where the chosen widths
            are equal. Otherwise the input is added, and `c_in` and `c_out` are one choice.
    """

    def __init__(
        self, layers: Layers, c_in: Size, *, c_hidden: Size, c_out: Size, stride: int, downsample: bool
    ) -> None:
        super().__init__()
        context = (c_hidden, c_in, c_out)
        self.conv1 = layers.conv_bn(c_in, c_hidden, 1, context=context)
        self.conv2 = layers.conv_bn(c_hidden, c_hidden, 3, stride=stride, context=context)
        self.conv3 = layers.conv_bn(c_hidden, c_out, 1, context=context)
        self.shortcut: nn.Module = (
            layers.conv_bn(c_in, c_out, 1, stride=stride, context=context) if downsample else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        return F.relu(add(self.conv3(y), self.shortcut(x)), inplace=True)


class ResNet50(nn.Module):
    """A 7x7 stride-2 stem with max pooling, four stages, global average pooling, a linear classifier.

    The last stage's output is no choice. Images `(batch, 3, height, width)` to logits `(batch, classes)`.
    """

    def __init__(self, layers: Layers, *, classes: int) -> None:
        super().__init__()
        c = layers.width("stem", STEM)
        self.stem = layers.conv_bn(3, c, 7, stride=2, context=(c,))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.Sequential()
        for number, (base, blocks, stride) in enumerate(STAGES, start=1):
            c_out = layers.width(f"stage{number}.out", base) if number < len(STAGES) else base
            for index in range(blocks):
                block = Bottleneck(
                    layers,
                    c,
                    c_hidden=layers.width(f"stage{number}.block{index}.hidden", base // EXPANSION),
                    c_out=c_out,
                    stride=stride if index == 0 else 1,
                    downsample=index == 0,
                )
                self.stages.append(block)
                c = c_out
        self.head = layers.linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x), inplace=True))
        logits: Tensor = self.head(global_average(self.stages(x)))
        return logits


def resnet50(*, classes: int = 1000, image_size: int = 224) -> SearchSpace:
    """ResNet-50 of MetaPruning: 4089 M MACs at 224 pixels."""
    return SearchSpace(
        name="metapruning_resnet50",
        define=partial(ResNet50, classes=classes),
        image_size=image_size,
        classes=classes,
        candidates=Candidates(ratios=METAPRUNING_RATIOS),
    )
