"""What a pruning method is: something to train before the search, if anything, and an architecture for a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tas_ray.choices import Architecture
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Search
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Task, Training


class SearchTask(Task):
    """A task whose training is the search of a method."""

    @abstractmethod
    def network(self, architecture: Architecture) -> nn.Module:
        """The network of this architecture with the weights learnt so far, to be evaluated only."""


class SharedTask(Task):
    """A task that trains weights for every architecture of a space, whatever the budget."""

    @abstractmethod
    def finish(self) -> None:
        """Called once the training is over, before its parameters are read by anything else."""

    @abstractmethod
    def weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """The state an architecture's plain network is to load, with fresh running statistics of BatchNorm.

        To the bit the same for an architecture, whatever others were asked for.
        """

    @property
    @abstractmethod
    def training_accuracy(self) -> float:
        """The accuracy on its training batches of the last epoch, over the architectures they had, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method and its settings, without state: what it learns lives in its task.

    Either a `ProposingMethod` or an `EvolvingMethod`.
    """

    name: ClassVar[str]
    """What the leaderboard calls it."""

    @property
    def training(self) -> Training | None:
        """How its task is trained; None for methods that train nothing before they answer."""
        return None

    @property
    def window(self) -> float | None:
        """Answers have at least the budget less this share of the dense MACs; None: they may have any less."""
        return None


@dataclass(frozen=True, kw_only=True)
class ProposingMethod(Method):
    """A method that answers for one budget, from what its task has learnt for that budget."""

    def task(self, space: SearchSpace, budget: Budget, *, seed: int) -> SearchTask | None:
        """What is trained before `propose`, freshly initialized from `seed`; None if nothing is."""
        return None

    @abstractmethod
    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """The method's answer: an architecture that `budget` admits.

        Raises:
            ValueError: there is none, or none could be found; says what the nearest costs.
        """


@dataclass(frozen=True, kw_only=True)
class EvolvingMethod(Method):
    """A method that trains shared weights once and then compares many architectures, for all budgets."""

    evaluation: Evaluation
    """How candidates are scored."""

    @property
    @abstractmethod
    def training(self) -> Training:
        """See `Method.training`."""

    @property
    @abstractmethod
    def task_settings(self) -> tuple[object, ...]:
        """All settings its task depends on: methods that have the same ones share a supernet."""

    @abstractmethod
    def task(self, space: SearchSpace, *, seed: int) -> SharedTask:
        """What is trained before the search, freshly initialized from `seed`.

        Raises:
            ValueError: the method cannot search this space; says why.
        """

    @abstractmethod
    def search(self, space: SearchSpace, budgets: Sequence[Budget], *, seed: int) -> Search:
        """The search that asks for scores and ends with the best architecture for every budget.

        Raises:
            ValueError: a budget admits no architecture; names the nearest cost.
        """
