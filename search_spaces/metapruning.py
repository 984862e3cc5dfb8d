"""What MetaPruning (ICCV 2019) published about its networks: vectors of width ids, and a count of FLOPs.

An id k from 0 to 30 stands for the width `B (10 + 3k) // 100` of `B` channels; -1 stands for 30 (where a width is
fixed). A network's ids come in the order of its search code:

- MobileNetV1, 13 ids: the stem's, then the outputs' of blocks 1 to 12. (The code that retrains a network gives each
  layer the id of the layer before it, and the stem the last: another network.)
- MobileNetV2, 35 ids: the outputs of the stem and the 17 blocks, one and the same within a stage, then the 17 hidden
  widths.
- ResNet-50, 20 ids: the stem's, the outputs of stages 1 to 3, then the 16 hidden widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces import metapruning_resnet, mobilenet_v1, mobilenet_v2
from tas_ray.choices import Architecture
from tas_ray.cost import CostTable, Population, Values
from tas_ray.space import SearchSpace

MOST = 30
POOL_WINDOW = 3 * 3


@dataclass(frozen=True)
class Network:
    """One of MetaPruning's networks."""

    ids: tuple[str, ...]
    """The width each id of a vector sets, in order; tied layers repeat it."""

    operations: Callable[[CostTable, Population], Values]
    """What its code counts as FLOPs beside MACs, BatchNorms and biases."""


def from_ids(space: SearchSpace, ids: Sequence[int]) -> Architecture:
    """The architecture that a vector of width ids stands for.

    Raises:
        ValueError: the space is none of MetaPruning's or has frozen widths; there are too many or too few ids; one
            is not among -1 ... 30; or tied layers have different ones.
    """
    names = _network(space).ids
    if len(ids) != len(names):
        raise ValueError(f"a vector of {space.name} has {len(names)} ids, not {len(ids)}")
    picked: dict[str, int] = {}
    for place, (name, given) in enumerate(zip(names, ids, strict=True)):
        if not -1 <= given <= MOST:
            raise ValueError(f"an id is a number from 0 to {MOST}, or -1 for {MOST}; the one at {place} is {given}")
        index = MOST if given == -1 else given
        if picked.setdefault(name, index) != index:
            raise ValueError(
                f"the ids of layers that share {name} have to be equal; "
                f"at {place} there is {given} after {picked[name]}"
            )
    full = {width.name: width.full for width in space.widths}
    if missing := sorted(set(picked) - set(full)):
        raise ValueError(f"a vector sets every width of {space.name}; frozen here: {', '.join(missing)}")
    return Architecture({name: base * (10 + 3 * picked[name]) // 100 for name, base in full.items()})


def flops(space: SearchSpace, population: Population) -> Values:
    """FLOPs of each network as MetaPruning's search bounds them: its MACs and one per element of what else it counts.

    That is every BatchNorm, the biases, the windows of pooling (but not ResNet-50's last one), and in ResNet-50 the
    activations, which its MobileNets leave out. The README's and the paper's own tables give MACs without these.
    `population` is of `space.cost.population`.

    Raises:
        ValueError: the space is none of MetaPruning's.
    """
    cost = space.cost
    further = _network(space).operations(cost, population)
    return cost.macs(population) + cost.normalized(population) + space.classes + further


def _network(space: SearchSpace) -> Network:
    if space.name not in NETWORKS:
        raise ValueError(f"MetaPruning's networks are {', '.join(NETWORKS)}; {space.name} is none of these")
    return NETWORKS[space.name]


def _averaged(cost: CostTable, population: Population) -> Values:
    """The elements global average pooling reads: all of the last convolution's output."""
    *_, last, _ = cost.rows
    return CostTable(cost.choices, (last,)).normalized(population)


def _activated(cost: CostTable, population: Population) -> Values:
    """What ResNet-50's activations and max pooling read: every convolution's output but the shortcuts'."""
    shortcuts, row = [], 1
    for _, blocks, _ in metapruning_resnet.STAGES:
        shortcuts.append(cost.rows[row + 3])  # behind the three convolutions of its block
        row += 3 * blocks + 1
    stem, first = cost.rows[:2]
    stem_elements = CostTable(cost.choices, (stem,)).normalized(population)
    pooled = stem_elements // stem.positions * first.positions
    activated = cost.normalized(population) - CostTable(cost.choices, tuple(shortcuts)).normalized(population)
    return activated + POOL_WINDOW * pooled


def _hidden(stages: Sequence[tuple[int, int, int]]) -> tuple[str, ...]:
    return tuple(
        f"stage{number}.block{index}.hidden"
        for number, (_, blocks, _) in enumerate(stages, start=1)
        for index in range(blocks)
    )


V1_IDS = ("stem", *(f"block{number}.out" for number in range(1, len(mobilenet_v1.BLOCKS))))
V2_OUTPUTS = (
    f"stage{number}.out" for number, (_, blocks, _) in enumerate(mobilenet_v2.STAGES, start=1) for _ in range(blocks)
)
V2_IDS = ("stem", *V2_OUTPUTS, *_hidden(mobilenet_v2.STAGES))
RESNET_IDS = ("stem", "stage1.out", "stage2.out", "stage3.out", *_hidden(metapruning_resnet.STAGES))

NETWORKS = {
    "mobilenet_v1": Network(V1_IDS, _averaged),
    "mobilenet_v2": Network(V2_IDS, _averaged),
    "mobilenet_v2-small_images": Network(V2_IDS, _averaged),
    "metapruning_resnet50": Network(RESNET_IDS, _activated),
}
"""By the names of their spaces."""
