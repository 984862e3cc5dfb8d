"""Reads and writes the network files of TAS (NeurIPS 2019): the JSON its reference code saves after a search.

Such a file is an object of fields `["type", value]`: the unpruned network, `xchannels` (3 input channels,
then every convolution's width at full depth, in order) and `xblocks` (how many blocks each stage keeps). It
has no place for the image size, which is that of the published network, 32 pixels or 224.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from search_spaces import cifar_resnet, imagenet_resnet
from tas_ray.choices import Architecture
from tas_ray.space import SearchSpace

Scalar = str | int | bool | Decimal | None
Value = Scalar | list[Scalar]
Fields = dict[str, Value]

# The super_type of a file says what was searched; the first files of the width search said "infer".
SEARCHED = {
    "infer-shape": ("xchannels", "xblocks"),
    "infer-width": ("xchannels",),
    "infer-depth": ("xblocks",),
    "infer": ("xchannels",),
}
MILLION = 10**6


@dataclass(frozen=True)
class Network:
    """An unpruned network: its published search space, and the fields that say so in a file."""

    define: Callable[..., SearchSpace]
    fields: Fields
    zero_scale: bool

    def space(self, classes: int) -> SearchSpace:
        """The space TAS searched."""
        return self.define(classes=classes, published=True)


def _cifar(define: Callable[..., SearchSpace], depth: int, module: str) -> Network:
    return Network(define, {"dataset": "cifar", "arch": "resnet", "depth": depth, "module": module}, zero_scale=False)


def _imagenet(define: Callable[..., SearchSpace], layers: list[Scalar], block: str) -> Network:
    fields: Fields = {"dataset": "imagenet", "arch": "resnet", "block_name": block, "layers": layers}
    return Network(define, {**fields, "deep_stem": False}, zero_scale=True)


NETWORKS = (
    _cifar(cifar_resnet.resnet20, 20, "ResNetBasicblock"),
    _cifar(cifar_resnet.resnet32, 32, "ResNetBasicblock"),
    _cifar(cifar_resnet.resnet56, 56, "ResNetBasicblock"),
    _cifar(cifar_resnet.resnet110, 110, "ResNetBasicblock"),
    _cifar(cifar_resnet.resnet164, 164, "ResNetBottleneck"),
    _imagenet(imagenet_resnet.resnet18, [2, 2, 2, 2], "BasicBlock"),
    _imagenet(imagenet_resnet.resnet50, [3, 4, 6, 3], "Bottleneck"),
)


def read(path: Path | str, *, check_cost: bool = True) -> tuple[SearchSpace, Architecture]:
    """The published space and the architecture that a file of TAS holds.

    A file of the width search keeps all blocks, one of the depth search all channels. How weights are
    initialized (`zero_init_residual`) is the space's affair and not read.

    Args:
        check_cost: compare `estimated_FLOP`, where the file has it, with our count. The released ResNet-50 of
            ImageNet, whose widths are no candidates of TAS, says 2291.3 M for lists that have 2281.6 M.

    Raises:
        ValueError: the file is not of this format, its network is none of `NETWORKS`, the lists do not fit
            the network, or its `estimated_FLOP` is not what we count, to the precision it is written with.
        OSError: the file cannot be read.
    """
    try:
        fields = _parsed(Path(path).read_text(encoding="utf-8"))
        space = _network(fields).space(_number(fields, "class_num"))
        super_type = fields.get("super_type")
        if super_type not in SEARCHED:
            raise ValueError(f"super_type has to be one of {', '.join(SEARCHED)}, not {super_type}")
        lists = {key: _numbers(fields, key) for key in SEARCHED[str(super_type)]}
        full = (space.channels, *(width.full for width in space.widths))
        architecture = from_channels(space, lists.get("xchannels", full), lists.get("xblocks"))
        if check_cost:
            _compare_cost(space, architecture, fields.get("estimated_FLOP"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return space, architecture


def write(space: SearchSpace, architecture: Architecture, path: Path | str) -> None:
    """Save an architecture of a published space as TAS's reference code would.

    Raises:
        ValueError: the space is not a published one, has another image size or frozen parts, or the
            architecture is not of this space.
        OSError: the file cannot be written.
    """
    space.validate(architecture)
    network = next((n for n in NETWORKS if n.space(space.classes).name == space.name), None)
    if network is None:
        known = ", ".join(n.space(space.classes).name for n in NETWORKS)
        raise ValueError(f"TAS's files hold networks of {known}; {space.name} is none of these")
    published = network.space(space.classes)
    if space.image_size != published.image_size:
        raise ValueError(
            f"TAS's files of {space.name} stand for images of {published.image_size} pixels, not {space.image_size}"
        )
    frozen = sorted({choice.name for choice in published.choices} - set(architecture))
    if frozen:
        raise ValueError(f"TAS's files have a number for every width and depth; frozen here: {', '.join(frozen)}")
    text = _written(
        {
            **network.fields,
            "super_type": "infer-shape",
            "zero_init_residual": network.zero_scale,
            "class_num": space.classes,
            "search_mode": "shape",
            "xchannels": [space.channels, *(architecture[width.name] for width in space.widths)],
            "xblocks": [architecture[depth.name] for depth in space.depths],
            "estimated_FLOP": _estimate(space, architecture),
        }
    )
    Path(path).write_text(text, encoding="utf-8")


def from_channels(space: SearchSpace, xchannels: Sequence[int], xblocks: Sequence[int] | None = None) -> Architecture:
    """The architecture of a published space with these widths and depths.

    Args:
        xchannels: the input's 3 channels, then the width of every convolution (shortcuts aside) of the
            full-depth network, in order. They need not be among the candidates.
        xblocks: how many blocks each stage keeps; all of them by default.

    Raises:
        ValueError: too many or too few of them, or a number that is impossible in this network.
    """
    channels, blocks = (
        list(xchannels),
        [depth.full for depth in space.depths] if xblocks is None else list(xblocks),
    )
    if channels[:1] != [space.channels] or len(channels) != 1 + len(space.widths):
        raise ValueError(
            f"the xchannels of {space.name} are {space.channels} and {len(space.widths)} widths, "
            f"not {len(channels)} numbers that start with {channels[0] if channels else 'nothing'}"
        )
    if len(blocks) != len(space.depths):
        raise ValueError(f"the xblocks of {space.name} are {len(space.depths)} numbers, not {len(blocks)}")
    values = {width.name: c for width, c in zip(space.widths, channels[1:], strict=True)}
    values |= {depth.name: d for depth, d in zip(space.depths, blocks, strict=True)}
    architecture = Architecture({choice.name: values[choice.name] for choice in space.choices})
    space.validate(architecture)
    return architecture


def _network(fields: Fields) -> Network:
    given = {key: fields.get(key) for key in ("dataset", "arch", "depth", "module")}
    if fields.get("dataset") == "imagenet":
        given = {key: fields.get(key) for key in ("dataset", "arch", "block_name", "layers", "deep_stem")}
    for network in NETWORKS:
        if network.fields == given:
            return network
    raise ValueError(
        f"there is no space for the network {given}; there are ResNet-20, -32, -56 and -110 "
        "(ResNetBasicblock) and -164 (ResNetBottleneck) for cifar, ResNet-18 and -50 (BasicBlock and "
        "Bottleneck, without deep stem) for imagenet"
    )


def _estimate(space: SearchSpace, architecture: Architecture) -> Decimal:
    macs = int(space.cost.published_macs(space.cost.population([architecture]))[0])
    return Decimal(macs) / MILLION


def _compare_cost(space: SearchSpace, architecture: Architecture, written: Value) -> None:
    if written is None:
        return
    if not isinstance(written, Decimal):
        raise ValueError(f"estimated_FLOP has to be a float, not {written!r}")
    exponent = written.as_tuple().exponent
    assert isinstance(exponent, int), "only finite numbers are parsed"
    tolerance = max(Decimal("1e-6"), Decimal(5).scaleb(exponent - 1))
    ours = _estimate(space, architecture)
    if abs(ours - written) > tolerance:
        raise ValueError(
            f"estimated_FLOP says {written} M, but this network of {space.name} has {ours} M: the lists or "
            "the figure were changed; check_cost=False takes the lists as they are"
        )


def _number(fields: Fields, key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} has to be a positive int, not {value!r}")
    return value


def _numbers(fields: Fields, key: str) -> tuple[int, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{key} has to be a list of ints, not {values!r}")
    return tuple(_number({key: value}, key) for value in values)


def _parsed(text: str) -> Fields:
    try:
        pairs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from error
    if not isinstance(pairs, dict):
        raise ValueError(f"a network file is a JSON object of fields, not a {type(pairs).__name__}")
    fields: Fields = {}
    for key, pair in pairs.items():
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f'the field {key} has to be ["type", value], not {json.dumps(pair)[:80]}')
        kind, value = pair
        is_list = isinstance(value, list)
        fields[key] = [_cast(key, kind, v) for v in value] if is_list else _cast(key, kind, value)
    return fields


def _cast(key: str, kind: str, value: object) -> Scalar:
    if kind not in CASTS:
        raise ValueError(f"the field {key} has the type {kind}; there are {', '.join(CASTS)}")
    try:
        return CASTS[kind](str(value))
    except (InvalidOperation, ValueError) as error:
        raise ValueError(f"the field {key} has to be of type {kind}, which {value!r} is not") from error


def _finite(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text} is not finite")
    return number


CASTS: dict[str, Callable[[str], Scalar]] = {
    "str": str,
    "int": int,
    "bool": lambda text: bool(int(text)),
    "float": _finite,
    "none": lambda _: None,
}


def _written(fields: Fields) -> str:
    lines = [f"  {json.dumps(key)}: {json.dumps(_typed(value))}" for key, value in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _typed(value: Value) -> list[object]:
    values = value if isinstance(value, list) else [value]
    kinds = {bool: "bool", int: "int", Decimal: "float", str: "str"}
    texts = [str(int(v)) if isinstance(v, bool) else str(v) for v in values]
    return [kinds[type(values[0])], texts if isinstance(value, list) else texts[0]]
