"""Hard bounds on what a network may cost beside its MACs: parameters, measured milliseconds, or a cost of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tas_ray.cost import Population
from tas_ray.evolution import Constraint
from tas_ray.latency import LatencyTable
from tas_ray.space import SearchSpace, imported

PARAMS = "params"
TABLE_SUFFIX = ".csv"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A hard bound that every candidate of an evolutionary search keeps, beside its budget of MACs."""

    cost: str = PARAMS
    """What is bounded: `params` of the built network; the milliseconds that a table of `tas-ray latency`, a `.csv` file
    on every node, predicts; or the numbers that a function `package.module:function` returns for a space and a
    population, such as search_spaces.metapruning:flops."""

    most: float | int = math.inf
    """The upper bound."""

    least: float | int = 0
    """The lower bound."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or (self.least, self.most) == (0, math.inf):
            raise ValueError(
                f"a limit on {self.cost} has an upper bound, a lower one from 0, or both, the upper no less than the "
                f"lower; not {self.least:g} to {self.most:g}"
            )
        if self.cost.endswith(TABLE_SUFFIX):
            object.__setattr__(self, "cost", str(Path(self.cost).absolute()))  # workers have other current folders
        elif self.cost != PARAMS and ":" not in self.cost:
            raise ValueError(
                f"a limit is on {PARAMS}, on a table of latencies (a {TABLE_SUFFIX} file that `tas-ray latency` wrote) "
                f"or on a function `package.module:function`, not on {self.cost!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Limit:
        """The limit that COST=MOST or COST=LEAST..MOST says, such as `params=1e6` or `latency.csv=2..3.5`.

        Raises:
            ValueError: it is no such text, or no limit.
        """
        cost, equals, bounds = text.rpartition("=")
        least, between, most = bounds.rpartition("..")
        try:
            if not cost or not equals:
                raise ValueError
            numbers = float(least) if between else 0.0, float(most)
        except ValueError as error:
            raise ValueError(
                "a limit is COST=MOST or COST=LEAST..MOST, such as params=1e6, latency.csv=2..3.5 or "
                f"search_spaces.metapruning:flops=60e6, not {text!r}"
            ) from error
        return cls(cost=cost, least=numbers[0], most=numbers[1])

    @property
    def name(self) -> str:
        """What is bounded, in a few words."""
        if self.cost.endswith(TABLE_SUFFIX):
            return f"ms ({Path(self.cost).name})"
        return self.cost.rpartition(":")[2]

    def constraint(self, space: SearchSpace) -> Constraint:
        """The limit as a search wants it.

        Raises:
            ValueError: there is no such table or function, or it does not fit the space.
        """
        return Constraint(name=self.name, cost=self._counted(space), most=self.most, least=self.least)

    def _counted(self, space: SearchSpace) -> Callable[[Population], np.ndarray]:
        if self.cost == PARAMS:
            return space.cost.params
        if self.cost.endswith(TABLE_SUFFIX):
            return LatencyTable.read(Path(self.cost)).cost(space)
        function = imported(self.cost, "cost", "search_spaces.metapruning:flops")
        return partial(function, space)
