"""A search space: one network definition with its choices, their costs, and every network built from it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from tas_ray.choices import Architecture, Candidates, Depth, Width
from tas_ray.cost import CostTable, trace
from tas_ray.layers import Layers, PlainLayers

REPAIR_STEPS = 10_000


@dataclass(frozen=True)
class Budget:
    """A hard bound on MACs: an architecture is admitted if `least <= MACs <= most`."""

    most: int
    least: int = 0

    def admits(self, macs: int) -> bool:
        """Whether a network of so many MACs may be the answer."""
        return self.least <= macs <= self.most


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A network written once against `Layers`, with its name, input size and candidates."""

    name: str
    define: Callable[[Layers], nn.Module]
    image_size: int
    classes: int
    channels: int = 3
    candidates: Candidates = field(default_factory=Candidates)

    @cached_property
    def cost(self) -> CostTable:
        """MACs and parameters of every architecture; ValueError if the images do not fit the network."""
        return trace(self.define, self.candidates, self.image_size, self.channels)

    @property
    def choices(self) -> tuple[Width | Depth, ...]:
        """What is searched, in the order of the network's layers."""
        return self.cost.choices

    @property
    def widths(self) -> tuple[Width, ...]:
        """The searched widths, in the order of the network's layers."""
        return tuple(choice for choice in self.choices if isinstance(choice, Width))

    @property
    def depths(self) -> tuple[Depth, ...]:
        """The searched depths, one per stage."""
        return tuple(choice for choice in self.choices if isinstance(choice, Depth))

    @property
    def dense(self) -> Architecture:
        """The unpruned network."""
        return Architecture({choice.name: choice.full for choice in self.choices})

    @property
    def smallest(self) -> Architecture:
        """Every choice at its smallest option."""
        return Architecture({choice.name: choice.options[0] for choice in self.choices})

    @property
    def size(self) -> int:
        """The number of architectures."""
        return int(np.prod([len(choice.options) for choice in self.choices], dtype=object))

    def macs(self, architecture: Architecture) -> int:
        """MACs of one image through the built network."""
        return int(self.cost.macs(self.cost.population([architecture]))[0])

    def params(self, architecture: Architecture) -> int:
        """Parameters of the built network."""
        return int(self.cost.params(self.cost.population([architecture]))[0])

    def build(self, architecture: Architecture, *, seed: int = 0) -> nn.Module:
        """The network with these widths and depths as plain PyTorch modules, initialized from `seed`.

        Widths need not be among the candidates: published networks and scaled ones are built the same way.

        Raises:
            ValueError: a name is missing or unknown, or a number is impossible (see `validate`).
        """
        self.validate(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.define(PlainLayers(self.candidates, architecture))

    def validate(self, architecture: Architecture) -> None:
        """ValueError if the architecture is not of this network: what is wrong and what would be right."""
        names = {choice.name for choice in self.choices}
        missing, unknown = sorted(names - set(architecture)), sorted(set(architecture) - names)
        if missing or unknown:
            raise ValueError(
                f"an architecture of {self.name} has a number for each of its {len(names)} choices; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        for choice in self.choices:
            value = architecture[choice.name]
            most = choice.full if isinstance(choice, Depth) else None
            if value < 1 or (most is not None and value > most):
                raise ValueError(
                    f"{choice.name}={value} is impossible in {self.name}: it has to be at least 1"
                    + (f" and at most {most}" if most else "")
                )

    def budget(self, amount: float | int, *, window: float | None = None) -> Budget:
        """The bound `amount` stands for: MACs if above 1, else a share of the dense network's MACs.

        Args:
            window: gives the budget a lower bound too, this share of the dense MACs below the upper one.

        Raises:
            ValueError: not positive and finite, above the dense network or below the smallest one; or the
                window is no share.
        """
        dense, least = self.macs(self.dense), self.macs(self.smallest)
        if not 0 < amount < float("inf"):
            raise ValueError(f"a budget is a positive number of MACs or a share of the dense MACs, not {amount}")
        if window is not None and not 0 <= window <= 1:
            raise ValueError(f"a budget's window is a share of the dense MACs from 0 to 1, not {window}")
        most = int(amount * dense) if amount <= 1 else int(amount)
        if most < least:
            raise ValueError(
                f"the smallest network of {self.name} has {_spaced(least)} MACs, more than the budget of "
                f"{_spaced(most)}; the dense network has {_spaced(dense)}"
            )
        if most > dense:
            raise ValueError(
                f"the budget of {_spaced(most)} MACs is above the dense network of {self.name}, which has "
                f"{_spaced(dense)}: there is nothing to prune; give MACs below it, or a share up to 1"
            )
        return Budget(most=most, least=0 if window is None else max(0, most - int(window * dense)))

    def sample(self, budget: Budget, *, seed: int) -> Architecture:
        """A random architecture the budget admits: choices drawn uniformly, then repaired step by step.

        A draw over the budget shrinks random choices by one option at a time, one below its lower bound grows
        them.

        Raises:
            ValueError: no admitted architecture was found within 10 000 steps; names the nearest cost seen.
        """
        random = np.random.default_rng(seed)
        picks = np.array([random.integers(len(choice.options)) for choice in self.choices])
        last = np.array([len(choice.options) - 1 for choice in self.choices])
        nearest = 0
        for _ in range(REPAIR_STEPS):
            architecture = self._picked(picks)
            macs = self.macs(architecture)
            if budget.admits(macs):
                return architecture
            nearest = min(nearest or macs, macs, key=lambda cost: abs(cost - budget.most))
            step = -1 if macs > budget.most else 1
            movable = np.flatnonzero(picks > 0 if step < 0 else picks < last)
            if not len(movable):
                break
            picks[random.choice(movable)] += step
        raise ValueError(
            f"no architecture of {self.name} was found between {_spaced(budget.least)} and "
            f"{_spaced(budget.most)} MACs; the nearest seen has {_spaced(nearest)}: widen the budget"
        )

    def _picked(self, picks: np.ndarray) -> Architecture:
        return Architecture({c.name: c.options[i] for c, i in zip(self.choices, picks, strict=True)})


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """Which search space, and how its candidates are changed."""

    name: str = "search_spaces.tiny:tiny"
    """Import path of the function that returns the space, `package.module:function`."""

    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Arguments of that function, such as `published=True`."""

    candidates: Candidates | None = None
    """Candidates in place of the space's own."""

    def load(self, *, classes: int, image_size: int) -> SearchSpace:
        """The space for images of this size and so many classes; see `load`."""
        space = load(self.name, classes=classes, image_size=image_size, **dict(self.options))
        if self.candidates is None:
            return space
        return SearchSpace(
            name=space.name,
            define=space.define,
            image_size=space.image_size,
            classes=space.classes,
            channels=space.channels,
            candidates=self.candidates,
        )


def load(name: str, /, **options: str | int | float | bool) -> SearchSpace:
    """The search space that the function at `package.module:function` returns for these options.

    Raises:
        ValueError: there is no such module or function, it has no such option, or it returns something else.
    """
    define = imported(name, "search space", "search_spaces.tiny:tiny")
    known = inspect.signature(define).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    space = define(**options)
    if not isinstance(space, SearchSpace):
        raise ValueError(f"{name} returned a {type(space).__name__}, not a SearchSpace")
    return space


def imported(name: str, what: str, such_as: str) -> Callable[..., Any]:
    """The function at `package.module:function`.

    Args:
        what: it is to be, for messages, with an example.

    Raises:
        ValueError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"a {what} is named `package.module:function`, such as {such_as}, not {name!r}")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no {what} {name}: {error}") from error
    if not callable(found):
        raise ValueError(f"{name} is a {type(found).__name__}, not a function that returns a {what}")
    return found


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
