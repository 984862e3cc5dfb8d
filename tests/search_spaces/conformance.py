"""What holds in every search space: its costs are those of the networks it builds."""

import torch
from torch import nn

from tas_ray.choices import Architecture, Size, full
from tas_ray.cost import counted_macs
from tas_ray.layers import PlainLayers
from tas_ray.space import Budget, SearchSpace

UNBOUNDED = Budget(most=2**62)


def network_of(space: SearchSpace, architecture: Architecture) -> nn.Module:
    """The built network, without memory for its weights."""
    with torch.device("meta"):
        return space.build(architecture)


def params_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def published_macs(space: SearchSpace, architecture: Architecture) -> int:
    return int(space.cost.published_macs(space.cost.population([architecture]))[0])


def uniform_widths(space: SearchSpace, share: float) -> Architecture:
    """TAS's fixed baseline: every width the same share, truncated; all blocks."""
    widths = {width.name: int(width.full * share) for width in space.widths}
    return Architecture({**space.dense, **widths})


class _NotingLayers(PlainLayers):
    """Plain layers that note the widths a generator of their weights is told."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        super().__init__(space.candidates, architecture)
        self.contexts: list[tuple[int, ...]] = []

    def conv_bn(  # type: ignore[no-untyped-def]
        self, c_in: Size, c_out: Size, kernel: int, *, context: tuple[Size, ...] = (), **further
    ) -> nn.Module:
        self.contexts.append(tuple(full(size) for size in context or (c_in, c_out)))
        return super().conv_bn(c_in, c_out, kernel, **further)

    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        self.contexts.append(tuple(full(size) for size in context or (c,)))
        return super().depthwise_bn(c, kernel, stride=stride)


def contexts_of(space: SearchSpace, architecture: Architecture) -> list[tuple[int, ...]]:
    """The widths that tell a generator of weights about each convolution, in the order they are built."""
    layers = _NotingLayers(space, architecture)
    with torch.device("meta"):
        space.define(layers)
    return layers.contexts


def assert_costs_are_those_of_the_built_network(space: SearchSpace, architecture: Architecture) -> None:
    network = network_of(space, architecture)
    assert space.macs(architecture) == counted_macs(network, space.image_size, space.channels)
    assert space.params(architecture) == params_of(network)


def assert_sound(space: SearchSpace, *, samples: int) -> None:
    """Dense, smallest and random architectures cost what their networks cost; smallest costs least."""
    drawn = [space.sample(UNBOUNDED, seed=seed) for seed in range(samples)]
    assert len(set(drawn)) == samples
    for architecture in (space.dense, space.smallest, *drawn):
        assert_costs_are_those_of_the_built_network(space, architecture)
        assert space.macs(architecture) >= space.macs(space.smallest)
