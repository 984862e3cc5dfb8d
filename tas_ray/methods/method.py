"""What a pruning method is: something to train before the search, if anything, and an architecture for a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tas_ray.choices import Architecture
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Task, Training


class SearchTask(Task):
    """A task whose training is the search of a method."""

    @abstractmethod
    def network(self, architecture: Architecture) -> nn.Module:
        """The network of this architecture with the weights learnt so far, to be evaluated only."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method and its settings, without state: what it learns lives in its `SearchTask`."""

    name: ClassVar[str]
    """What the leaderboard calls it."""

    @property
    def training(self) -> Training | None:
        """How the task of `task` is trained; None for methods that train nothing before they propose."""
        return None

    @property
    def window(self) -> float | None:
        """Proposals have at least the budget less this share of the dense MACs; None: they may have any less."""
        return None

    def task(self, space: SearchSpace, budget: Budget, *, seed: int) -> SearchTask | None:
        """What is trained before `propose`, freshly initialized from `seed`; None if nothing is."""
        return None

    @abstractmethod
    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """The method's answer: an architecture that `budget` admits.

        Raises:
            ValueError: there is none, or none could be found; says what the nearest costs.
        """
