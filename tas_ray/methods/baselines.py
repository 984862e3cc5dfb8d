"""Architectures without a search: uniform scaling, a random one, a given one, and the dense network itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tas_ray.choices import Architecture, Depth
from tas_ray.methods.method import ProposingMethod, SearchTask
from tas_ray.space import Budget, SearchSpace

BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Dense(ProposingMethod):
    """The unpruned network: the teacher of all others, and the row they are compared with."""

    name: ClassVar[str] = "dense"

    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """See `Method.propose`."""
        return space.dense


@dataclass(frozen=True, kw_only=True)
class Uniform(ProposingMethod):
    """Every width times one ratio, all blocks kept: the largest such network within the budget.

    TAS calls it pre-defined (section 4.4). Its widths need not be candidates of the search.
    """

    name: ClassVar[str] = "uniform"

    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """See `Method.propose`."""
        low, high = 0.0, 1.0
        if budget.admits(space.macs(scaled(space, high))):
            return scaled(space, high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if space.macs(scaled(space, middle)) > budget.most:
                high = middle
            else:
                low = middle
        architecture = scaled(space, low)
        macs = space.macs(architecture)
        if macs > budget.most:
            raise ValueError(
                f"the narrowest {space.name} of full depth has {macs} MACs, more than the budget of "
                f"{budget.most}: uniform scaling cannot reach it"
            )
        return architecture


def scaled(space: SearchSpace, ratio: float) -> Architecture:
    """Every width times `ratio`, truncated to the space's multiple, at least one of it; all blocks kept."""
    multiple = space.candidates.multiple
    return Architecture(
        {
            choice.name: choice.full
            if isinstance(choice, Depth)
            else min(choice.full, max(multiple, int(choice.full * ratio) // multiple * multiple))
            for choice in space.choices
        }
    )


@dataclass(frozen=True, kw_only=True)
class Random(ProposingMethod):
    """One random architecture of the space that uses the budget up to a tolerance (TAS, section 4.4)."""

    name: ClassVar[str] = "random"

    tolerance: float = 0.05
    """It has at least the budget less this share of the dense MACs, as the searched networks it is compared with."""

    @property
    def window(self) -> float:
        """See `Method.window`."""
        return self.tolerance

    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """See `Method.propose`."""
        return space.sample(budget, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Given(ProposingMethod):
    """One architecture from outside: found earlier, published, or drawn up by hand."""

    name: ClassVar[str] = "given"

    architecture: Architecture
    """Its widths need not be candidates of the search."""

    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """See `Method.propose`; ValueError if the architecture is not of this space or over the budget."""
        space.validate(self.architecture)
        macs = space.macs(self.architecture)
        if not budget.admits(macs):
            raise ValueError(
                f"the architecture given has {macs} MACs, more than the budget of {budget.most}: "
                "give a higher budget, or leave it out"
            )
        return self.architecture
