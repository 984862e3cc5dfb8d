"""The networks released with TAS: the channel and block lists of its configurations, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from search_spaces.published import from_channels
from tas_ray.choices import Architecture
from tas_ray.space import SearchSpace, load


@dataclass(frozen=True, kw_only=True)
class Released:
    """A configuration file of `D-X-Y/AutoDL-Projects/configs`, and figures measured on its reference code."""

    file: str
    function: str
    """The published space it belongs to, `package.module:function`."""
    classes: int
    estimated_flop: str
    """As the file writes it: millions of MACs, counted as `CostTable.published_macs` does."""
    published_macs: int | None
    """None where the file's figure is not what its lists have: those are no candidates of the search."""
    macs: int
    """Multiply-accumulates of the built network, without the classifier's biases."""
    params: int
    xblocks: tuple[int, ...] | None
    """None in a file of the width search: all blocks are kept."""
    xchannels: tuple[int, ...]

    def space(self) -> SearchSpace:
        return _space(self.function, self.classes)

    def architecture(self) -> Architecture:
        return from_channels(self.space(), self.xchannels, self.xblocks)


@cache
def _space(function: str, classes: int) -> SearchSpace:
    return load(function, classes=classes, published=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


RELEASED = (
    Released(
        file="NeurIPS-2019/C010-ResNet20.config",
        function="search_spaces.cifar_resnet:resnet20",
        classes=10,
        estimated_flop="22.444472",
        published_macs=22_444_472,
        macs=22_444_472,
        params=228_130,
        xblocks=(3, 3, 3),
        xchannels=_numbers(
            """
            3 16 6 4 4 4 4 4 32 32 12 19 32 28 64 64 64 64 64 44
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C010-ResNet32.config",
        function="search_spaces.cifar_resnet:resnet32",
        classes=10,
        estimated_flop="34.945344",
        published_macs=34_945_344,
        macs=34_945_344,
        params=320_539,
        xblocks=(5, 5, 5),
        xchannels=_numbers(
            """
            3 16 6 4 12 4 4 16 9 9 6 14 32 32 9 19 28 9 32 19 32 9 64 64 64 64 64 64 64 32 38 32
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C010-ResNet56.config",
        function="search_spaces.cifar_resnet:resnet56",
        classes=10,
        estimated_flop="57.933050",
        published_macs=57_933_050,
        macs=59_858_430,
        params=449_307,
        xblocks=(5, 5, 5),
        xchannels=_numbers(
            """
            3 16 16 16 14 11 9 16 12 16 6 16 4 8 4 14 6 4 4 4 32 32 32 32 32 32 22 28 32 32 19 9 19 16 9
            25 16 9 64 64 64 64 64 64 64 64 64 51 19 19 32 19 19 32 19 25
            """
        ),
    ),
    Released(
        file="compares/CIFAR010-TAS-R56.config",
        function="search_spaces.cifar_resnet:resnet56",
        classes=10,
        estimated_flop="57.52595",
        published_macs=57_525_950,
        macs=59_451_390,
        params=441_494,
        xblocks=(5, 5, 5),
        xchannels=_numbers(
            """
            3 16 16 16 14 14 14 16 12 16 6 16 4 4 4 14 4 4 6 4 32 32 32 32 32 32 22 25 16 32 19 9 9 16
            25 12 16 9 64 64 64 64 64 64 64 64 64 51 19 19 32 51 25 32 19 19
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C010-ResNet164.config",
        function="search_spaces.cifar_resnet:resnet164",
        classes=10,
        estimated_flop="173.023672",
        published_macs=173_023_672,
        macs=178_071_224,
        params=1_277_931,
        xblocks=(13, 15, 13),
        xchannels=_numbers(
            """
            3 16 8 16 64 6 16 64 14 16 64 8 16 64 4 16 64 6 16 64 6 16 64 11 11 64 4 14 64 4 4 57 4 16
            64 9 12 57 4 16 64 4 8 57 6 6 51 6 4 44 6 4 57 6 6 19 32 32 128 32 32 128 32 32 128 9 32 128
            32 32 128 25 28 115 12 32 128 32 32 128 32 32 128 32 32 102 28 32 128 16 32 128 28 19 128 32
            9 51 16 12 102 12 22 115 9 12 51 12 16 38 64 64 256 64 64 256 64 64 256 64 64 256 64 64 256
            64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 57 204 64 25 179 19 25 204 44 19 153 38
            25 76 19 32 128 19 51 76 57 32 76
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C100-ResNet20.config",
        function="search_spaces.cifar_resnet:resnet20",
        classes=100,
        estimated_flop="22.433792",
        published_macs=22_433_792,
        macs=22_433_792,
        params=241_237,
        xblocks=(3, 3, 3),
        xchannels=_numbers(
            """
            3 16 4 4 4 4 6 4 32 32 9 19 32 28 64 64 64 64 64 64
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C100-ResNet32.config",
        function="search_spaces.cifar_resnet:resnet32",
        classes=100,
        estimated_flop="42.47",
        published_macs=42_468_608,
        macs=42_468_608,
        params=427_330,
        xblocks=(5, 5, 5),
        xchannels=_numbers(
            """
            3 16 4 4 6 11 6 4 8 4 4 4 32 32 9 28 28 28 28 28 32 32 64 64 64 64 64 64 64 64 64 64
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/C100-ResNet110.config",
        function="search_spaces.cifar_resnet:resnet110",
        classes=100,
        estimated_flop="117.653164",
        published_macs=117_653_164,
        macs=119_578_284,
        params=843_653,
        xblocks=(13, 9, 11),
        xchannels=_numbers(
            """
            3 16 14 16 11 14 16 16 11 16 9 14 12 16 16 16 8 16 14 16 12 4 11 16 4 4 4 16 12 4 8 4 9 4 6
            14 4 4 32 32 32 32 28 28 32 32 32 32 32 28 32 28 25 32 32 32 9 9 32 32 9 25 28 32 28 9 9 32
            12 12 9 22 12 9 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 44 64 57 19 19 19 19 25 19 25
            19 25 19 19 25 19 19 19 25 25 19
            """
        ),
    ),
    Released(
        file="compares/CIFAR100-FIX-R32.config",
        function="search_spaces.cifar_resnet:resnet32",
        classes=100,
        estimated_flop="41.095816",
        published_macs=41_095_816,
        macs=41_095_816,
        params=288_773,
        xblocks=None,
        xchannels=_numbers(
            """
            3 12 12 12 12 12 12 12 12 12 12 12 25 25 25 25 25 25 25 25 25 25 50 50 50 50 50 50 50 50 50
            50
            """
        ),
    ),
    Released(
        file="compares/CIFAR100-RAND-R32.config",
        function="search_spaces.cifar_resnet:resnet32",
        classes=100,
        estimated_flop="42.908996",
        published_macs=42_908_996,
        macs=42_908_996,
        params=336_406,
        xblocks=None,
        xchannels=_numbers(
            """
            3 4 11 11 11 12 14 16 8 9 6 12 28 32 28 32 12 25 28 22 28 25 57 19 38 64 64 51 57 64 64 57
            """
        ),
    ),
    Released(
        file="compares/CIFAR100-TAS-R32.config",
        function="search_spaces.cifar_resnet:resnet32",
        classes=100,
        estimated_flop="42.493184",
        published_macs=42_493_184,
        macs=42_493_184,
        params=427_362,
        xblocks=None,
        xchannels=_numbers(
            """
            3 16 4 4 4 14 6 4 8 4 4 4 32 32 9 28 28 28 28 28 32 32 64 64 64 64 64 64 64 64 64 64
            """
        ),
    ),
    Released(
        file="NeurIPS-2019/ImageNet-ResNet50V1.config",
        function="search_spaces.imagenet_resnet:resnet50",
        classes=1000,
        estimated_flop="2291.316289",
        published_macs=None,
        macs=2_309_248_169,
        params=18_624_362,
        xblocks=(3, 4, 5, 3),
        xchannels=_numbers(
            """
            3 45 45 30 102 33 60 154 68 70 180 38 38 307 38 38 410 64 128 358 38 51 256 76 76 512 76 76
            512 179 256 614 100 102 307 179 230 614 204 102 307 153 153 1228 512 512 1434 512 512 1844
            """
        ),
    ),
)
