"""What a search may choose: widths and depths by name, the candidates of each, and one complete choice."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

TAS_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidate widths over the full width (TAS, section 4.1)."""

METAPRUNING_RATIOS = tuple((10 + 3 * i) / 100 for i in range(31))
"""Candidate widths over the full width (MetaPruning, ICCV 2019): 0.10, 0.13 ... 1.00."""


@dataclass(frozen=True)
class Choice:
    """A number to be chosen out of `options`, which ascend; the largest is the unpruned network's."""

    name: str
    options: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.options or self.options[0] < 1 or list(self.options) != sorted(set(self.options)):
            raise ValueError(
                f"the options of {self.name} have to be distinct positive numbers in ascending order, "
                f"not {self.options}"
            )

    @property
    def full(self) -> int:
        """The largest option: what the unpruned network has."""
        return self.options[-1]


@dataclass(frozen=True)
class Width(Choice):
    """The number of channels of a tensor; layers that share a `Width` are tied."""


@dataclass(frozen=True)
class Depth(Choice):
    """How many of a stage's blocks are kept, counted from its head."""


@dataclass(frozen=True)
class StageOutput:
    """The channels a stage hands on: those of its last kept block, `widths[depth - 1]`."""

    depth: Depth
    widths: tuple[Width | int, ...]

    @property
    def full(self) -> int:
        """The widest output any depth can have."""
        return max(full(width) for width in self.widths)


Size = int | Width | StageOutput
"""A number of channels: fixed, chosen, or chosen by a stage's depth."""


def full(size: Size) -> int:
    """The largest number of channels `size` can take."""
    return size if isinstance(size, int) else size.full


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The rule that turns a network's named widths and depths into choices; the default is the one of TAS."""

    ratios: tuple[float, ...] = TAS_RATIOS
    """Candidate widths as shares of the full width, truncated to whole channels."""

    multiple: int = 1
    """Candidate widths are rounded to multiples of this (8 or 16 suit tensor cores); the full width stays."""

    options: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Candidates given outright: a width's or depth's name (or pattern, `stage1.*`) to ascending options."""

    freeze: tuple[str, ...] = ()
    """Names (or patterns) of widths and depths that are not searched but stay as in the unpruned network."""

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"width ratios have to lie in (0, 1], not {self.ratios}")
        if self.multiple < 1:
            raise ValueError(f"widths can be rounded to a multiple of 1 or more, not {self.multiple}")
        for name, options in self.options.items():
            Choice(name, options)

    def width(self, name: str, base: int) -> Width | int:
        """The choice of a width called `name` that is `base` in the unpruned network; an int if frozen."""
        if self.frozen(name):
            return base
        options = self._given(name, base) or self._scaled(base)
        return Width(name, options) if len(options) > 1 else base

    def depth(self, name: str, options: tuple[int, ...]) -> Depth:
        """The choice among `options` numbers of blocks; a single option if frozen."""
        if self.frozen(name):
            return Depth(name, options[-1:])
        return Depth(name, self._given(name, options[-1]) or options)

    def frozen(self, name: str) -> bool:
        """Whether the width or depth called `name` is kept out of the search."""
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)

    def unmatched(self, names: Collection[str]) -> tuple[str, ...]:
        """The patterns of `options` and `freeze` that fit none of these names: typing errors."""
        patterns = (*self.options, *self.freeze)
        return tuple(p for p in patterns if not any(fnmatchcase(name, p) for name in names))

    def _given(self, name: str, base: int) -> tuple[int, ...] | None:
        for pattern, options in self.options.items():
            if fnmatchcase(name, pattern):
                if options[-1] != base:
                    raise ValueError(
                        f"the options of {name} have to end with {base}, as in the unpruned network, "
                        f"not with {options[-1]}"
                    )
                return options
        return None

    def _scaled(self, base: int) -> tuple[int, ...]:
        widths = {int(base * ratio) for ratio in self.ratios}
        if self.multiple > 1:
            widths = {self.multiple * max(1, round(width / self.multiple)) for width in widths}
        return tuple(sorted({min(max(1, width), base) for width in widths} | {base}))


class Architecture(Mapping[str, int]):
    """One network of a search space: the channels of every width and the blocks of every depth, by name.

    Immutable; two with the same names and numbers are equal and hash alike, in whatever order.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = {name: int(number) for name, number in numbers.items()}

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __hash__(self) -> int:
        return hash(frozenset(self._numbers.items()))

    def __repr__(self) -> str:
        return f"Architecture({self._numbers})"

    def __str__(self) -> str:
        """Readable in a table: `stem=12 stage0=9 stage0.depth=2`."""
        return " ".join(f"{name}={number}" for name, number in self._numbers.items())

    def to_json(self) -> str:
        """A JSON object of names and numbers."""
        return json.dumps(self._numbers)

    @staticmethod
    def from_json(text: str) -> Architecture:
        """The architecture `to_json` wrote; ValueError for anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"an architecture is a JSON object of names and whole numbers: {error}") from error
        if not isinstance(values, dict) or not all(type(value) is int for value in values.values()):
            raise ValueError(f"an architecture is a JSON object of names and whole numbers, not {text[:80]!r}")
        return Architecture(values)
