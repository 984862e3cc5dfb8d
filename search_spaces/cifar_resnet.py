"""ResNets for small images (He et al., CVPR 2016, section 4.2) with the shortcuts of TAS (NeurIPS 2019).

Basic blocks make depths 6n + 2, bottlenecks 9n + 2. `published=True` frees every convolution's width, as TAS
did; the default ties the residual widths of a stage, so that a derived network needs no extra projections.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.residual import Shortcuts, stage_blocks
from tas_ray.choices import Size
from tas_ray.layers import Layers, global_average
from tas_ray.space import SearchSpace

PLANES = (16, 32, 64)


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of 16, 32 and 64 planes, global average pooling, a linear classifier.

    Images `(batch, 3, height, width)` to logits `(batch, classes)`.
    """

    def __init__(self, layers: Layers, *, blocks: int, classes: int, bottleneck: bool, published: bool) -> None:
        super().__init__()
        # The first identity shortcut hands the stem's channels on: tied, they are the stage's.
        stem = "stem" if published or bottleneck else "stage1.out"
        # TAS puts no BatchNorm behind the stride-1 projections of its derived bottleneck networks.
        shortcuts = Shortcuts(downsample_norm=False, projection_norm=not (published and bottleneck))
        c: Size = layers.width(stem, PLANES[0])
        self.stem = layers.conv_bn(3, c, 3)
        self.stages = nn.ModuleList()
        for number, planes in enumerate(PLANES, start=1):
            name = f"stage{number}"
            builders = stage_blocks(
                layers,
                bottleneck=bottleneck,
                name=name,
                blocks=blocks,
                planes=planes,
                stride=1 if number == 1 else 2,
                shortcuts=shortcuts,
                published=published,
            )
            stage = layers.stage(layers.depth(f"{name}.depth", depth_options(blocks)), c, builders)
            self.stages.append(stage)  # type: ignore[arg-type]
            c = stage.c_out
        self.head = layers.linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(global_average(x))
        return logits


def depth_options(blocks: int) -> tuple[int, ...]:
    """How many of a stage's blocks may be kept: all counts up to 3 blocks, else the odd and all of them."""
    if blocks <= 3:
        return tuple(range(1, blocks + 1))
    return tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def _space(depth: int, *, bottleneck: bool, classes: int, image_size: int, published: bool) -> SearchSpace:
    blocks = (depth - 2) // (9 if bottleneck else 6)
    define = partial(CifarResNet, blocks=blocks, classes=classes, bottleneck=bottleneck, published=published)
    name = f"cifar_resnet{depth}" + ("-published" if published else "")
    return SearchSpace(name=name, define=define, image_size=image_size, classes=classes)


def resnet20(*, classes: int = 10, image_size: int = 32, published: bool = False) -> SearchSpace:
    """ResNet-20: 40.8 M MACs at 32 pixels."""
    return _space(20, bottleneck=False, classes=classes, image_size=image_size, published=published)


def resnet32(*, classes: int = 10, image_size: int = 32, published: bool = False) -> SearchSpace:
    """ResNet-32: 69.1 M MACs at 32 pixels."""
    return _space(32, bottleneck=False, classes=classes, image_size=image_size, published=published)


def resnet56(*, classes: int = 10, image_size: int = 32, published: bool = False) -> SearchSpace:
    """ResNet-56: 125.7 M MACs at 32 pixels."""
    return _space(56, bottleneck=False, classes=classes, image_size=image_size, published=published)


def resnet110(*, classes: int = 10, image_size: int = 32, published: bool = False) -> SearchSpace:
    """ResNet-110: 253.1 M MACs at 32 pixels."""
    return _space(110, bottleneck=False, classes=classes, image_size=image_size, published=published)


def resnet164(*, classes: int = 10, image_size: int = 32, published: bool = False) -> SearchSpace:
    """ResNet-164, of bottlenecks: 247.6 M MACs at 32 pixels."""
    return _space(164, bottleneck=True, classes=classes, image_size=image_size, published=published)
