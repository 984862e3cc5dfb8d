"""A small residual network for 8-pixel digits: every kind of choice, trained in seconds on a CPU."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.residual import Shortcuts, stage_blocks
from tas_ray.choices import Size
from tas_ray.layers import Layers, global_average
from tas_ray.space import SearchSpace

PLANES = (16, 32)
BLOCKS = 2
SHORTCUTS = Shortcuts(downsample_norm=False, projection_norm=True)


class TinyResNet(nn.Module):
    """A 3x3 stem and two stages of two basic blocks; images `(batch, 3, 8, 8)` to logits."""

    def __init__(self, layers: Layers, *, classes: int, published: bool) -> None:
        super().__init__()
        c: Size = layers.width("stem" if published else "stage1.out", PLANES[0])
        self.stem = layers.conv_bn(3, c, 3)
        self.stages = nn.ModuleList()
        for number, planes in enumerate(PLANES, start=1):
            builders = stage_blocks(
                layers,
                bottleneck=False,
                name=f"stage{number}",
                blocks=BLOCKS,
                planes=planes,
                stride=number,
                shortcuts=SHORTCUTS,
                published=published,
            )
            stage = layers.stage(layers.depth(f"stage{number}.depth", (1, 2)), c, builders)
            self.stages.append(stage)  # type: ignore[arg-type]
            c = stage.c_out
        self.head = layers.linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(global_average(x))
        return logits


def tiny(*, classes: int = 10, image_size: int = 8, published: bool = False) -> SearchSpace:
    """The tiny residual network, 1.1 M MACs at 8 pixels."""
    define = partial(TinyResNet, classes=classes, published=published)
    return SearchSpace(
        name="tiny" + ("-published" if published else ""),
        define=define,
        image_size=image_size,
        classes=classes,
    )
