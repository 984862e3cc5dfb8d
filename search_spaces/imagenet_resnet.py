"""ResNet-18 and -50 for 224-pixel images in the variant TAS searched (NeurIPS 2019): averaged shortcuts.

`published=True` frees every convolution's width, as TAS did; the default ties the residual widths of a stage.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.residual import Shortcuts, stage_blocks
from tas_ray.choices import Size
from tas_ray.layers import Layers, global_average
from tas_ray.space import SearchSpace

PLANES = (64, 128, 256, 512)
SHORTCUTS = Shortcuts(downsample_norm=True, projection_norm=True, zero_scale=True)


class ImageNetResNet(nn.Module):
    """A 7x7 stride-2 stem with max pooling, four stages, global average pooling, a linear classifier.

    Images `(batch, 3, height, width)` to logits `(batch, classes)`.
    """

    def __init__(
        self,
        layers: Layers,
        *,
        blocks: tuple[int, int, int, int],
        classes: int,
        bottleneck: bool,
        published: bool,
    ) -> None:
        super().__init__()
        stem = "stem" if published or bottleneck else "stage1.out"
        c: Size = layers.width(stem, 64)
        self.stem = layers.conv_bn(3, c, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for number, (planes, count) in enumerate(zip(PLANES, blocks, strict=True), start=1):
            name = f"stage{number}"
            builders = stage_blocks(
                layers,
                bottleneck=bottleneck,
                name=name,
                blocks=count,
                planes=planes,
                stride=1 if number == 1 else 2,
                shortcuts=SHORTCUTS,
                published=published,
            )
            stage = layers.stage(layers.depth(f"{name}.depth", depth_options(count, min(blocks))), c, builders)
            self.stages.append(stage)  # type: ignore[arg-type]
            c = stage.c_out
        self.head = layers.linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x), inplace=True))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(global_average(x))
        return logits


def depth_options(blocks: int, steps: int) -> tuple[int, ...]:
    """How many of a stage's blocks may be kept: `steps` equal shares of them, truncated."""
    return tuple(blocks * step // steps for step in range(1, steps + 1))


def resnet18(*, classes: int = 1000, image_size: int = 224, published: bool = False) -> SearchSpace:
    """ResNet-18: 1814 M MACs at 224 pixels."""
    define = partial(ImageNetResNet, blocks=(2, 2, 2, 2), classes=classes, bottleneck=False, published=published)
    return _space("resnet18", define, classes, image_size, published)


def resnet50(*, classes: int = 1000, image_size: int = 224, published: bool = False) -> SearchSpace:
    """ResNet-50: 4089 M MACs at 224 pixels."""
    define = partial(ImageNetResNet, blocks=(3, 4, 6, 3), classes=classes, bottleneck=True, published=published)
    return _space("resnet50", define, classes, image_size, published)


def _space(name: str, define: partial[ImageNetResNet], classes: int, image_size: int, published: bool) -> SearchSpace:
    name = name + ("-published" if published else "")
    return SearchSpace(name=name, define=define, image_size=image_size, classes=classes)
