"""MetaPruning (Liu et al., ICCV 2019): a PruningNet writes the weights of any pruned network, an evolution picks one.

The PruningNet is trained on one random structure per batch (section 3.1) and then answers for every budget: the
evolution (section 3.3) scores networks with generated weights and recomputed BatchNorm statistics. What it finds is
trained from scratch. Where the reference code and common sense differ, the choice is a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tas_ray.choices import Architecture
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution, Search
from tas_ray.limits import Limit
from tas_ray.methods.method import EvolvingMethod, SharedTask
from tas_ray.methods.pruningnet import PruningNet, RankOneSGD
from tas_ray.randomness import seed_of
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Group, Training

Sampler = Literal["uniform", "even"]


def published_training() -> Training:
    """As published for MobileNetV2's PruningNet (V1: weight decay 4e-5), without its dead last epoch."""
    return Training(
        epochs=64,
        warmup_epochs=0,
        batch_size=512,
        learning_rate=0.25,
        schedule="linear",
        nesterov=False,
        weight_decay=0.0,
        label_smoothing=0.1,
    )


@dataclass(frozen=True, kw_only=True)
class MetaPruning(EvolvingMethod):
    """The settings of PruningNet and search; the defaults are those behind the published MobileNetV2."""

    name: ClassVar[str] = "metapruning"

    supernet: Training = field(default_factory=published_training)
    """How the PruningNet is trained; published is a quarter of the epochs of a normal training."""

    hidden: int = 64
    """Hidden units of the generators inside blocks (published: 64 in MobileNetV2, 32 in MobileNetV1 and ResNet-50)."""

    hidden_alone: int = 32
    """Hidden units of generators that see a single width, as of a stem."""

    affine: bool = False
    """BatchNorms of the PruningNet have scales and shifts, one set per width (published for some of MobileNetV1's)."""

    sampler: Sampler = "uniform"
    """Which structures it is trained on: every gene `uniform` (published), so that costs gather around a third of the
    dense MACs; or `even`, one level for all genes of a structure and each scattered around it, so that small and large
    networks are trained as often, which tight budgets need. Each gene alone is uniform in both."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """How candidates are scored."""

    evolution: Evolution = field(default_factory=Evolution)
    """How candidates are found."""

    tolerance: float | None = None
    """Answers have at least the budget less this share of the dense MACs. Left out: they may have any less, as
    published for MobileNets (ResNet-50: 0.024)."""

    limits: tuple[Limit, ...] = ()
    """Further hard bounds that every candidate keeps: parameters, measured milliseconds, or a cost of one's own."""

    def __post_init__(self) -> None:
        if min(self.hidden, self.hidden_alone) < 1:
            raise ValueError(f"generators have at least 1 hidden unit, not {self.hidden} and {self.hidden_alone}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"the tolerance is a share of the dense MACs in [0, 1), not {self.tolerance}")

    @property
    def training(self) -> Training:
        """See `Method.training`."""
        return self.supernet

    @property
    def task_settings(self) -> tuple[object, ...]:
        """See `EvolvingMethod.task_settings`."""
        return (self.supernet, self.hidden, self.hidden_alone, self.affine, self.sampler)

    @property
    def window(self) -> float | None:
        """See `Method.window`."""
        return self.tolerance

    def task(self, space: SearchSpace, *, seed: int) -> SharedTask:
        """See `EvolvingMethod.task`: the PruningNet."""
        return PruningTask(self, space, seed=seed)

    def search(self, space: SearchSpace, budgets: Sequence[Budget], *, seed: int) -> Search:
        """See `EvolvingMethod.search`."""
        constraints = [limit.constraint(space) for limit in self.limits]
        return Search(space, budgets, self._evolution, seed=seed, constraints=constraints)

    @property
    def _evolution(self) -> Evolution:
        return self.evolution


@dataclass(frozen=True, kw_only=True)
class RandomSearch(MetaPruning):
    """As many random architectures, scored by the same PruningNet: what evolution has to beat."""

    name: ClassVar[str] = "random-search"

    @classmethod
    def beside(cls, method: MetaPruning) -> RandomSearch:
        """The random search with the PruningNet and the number of candidates of `method`."""
        return cls(**{setting.name: getattr(method, setting.name) for setting in fields(method)})

    @property
    def _evolution(self) -> Evolution:
        evaluations = self.evolution.population * self.evolution.generations
        return replace(self.evolution, population=evaluations, mutations=0, crossovers=0, generations=1)


class PruningTask(SharedTask):
    """The PruningNet and the loss of one random structure per batch."""

    def __init__(self, config: MetaPruning, space: SearchSpace, *, seed: int) -> None:
        super().__init__()
        if not space.choices:
            raise ValueError(f"nothing of {space.name} is searched: every width and depth is frozen")
        self.config, self.space, self.seed = config, space, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = PruningNet(
                space.define,
                space.candidates,
                hidden=config.hidden,
                hidden_alone=config.hidden_alone,
                affine=config.affine,
            )
        self.optimizer = RankOneSGD(self.net, config.supernet)
        self._groups = (
            Group(
                name="weights",
                split="train",
                parameters=list(self.net.parameters()),
                optimizer=self.optimizer,
                learning_rate_at=config.supernet.learning_rate_at,
            ),
        )
        self.right: Tensor
        self.seen: Tensor
        self.register_buffer("right", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    @property
    def groups(self) -> Sequence[Group]:
        """See `Task.groups`."""
        return self._groups

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """See `Task.start_epoch`."""
        self.right.zero_()
        self.seen.zero_()

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """See `Task.forward`; all workers compute the same structure."""
        logits = self.net(images, self.structure(step))
        with torch.no_grad():
            self.right += (logits.argmax(1) == labels).sum()
            self.seen += len(labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.config.supernet.label_smoothing)

    def structure(self, step: int) -> Architecture:
        """The structure that is trained in this step."""
        random = np.random.default_rng(seed_of("structure", self.seed, step))
        counts = np.array([len(choice.options) for choice in self.space.choices])
        if self.config.sampler == "uniform":
            genes = random.integers(counts)
        else:  # binomials around a level that is uniform itself are uniform
            genes = random.binomial(counts - 1, random.uniform())
        picked = zip(self.space.choices, genes.tolist(), strict=True)
        return Architecture({choice.name: choice.options[gene] for choice, gene in picked})

    def gradients(self, group: Group) -> Sequence[Tensor]:
        """See `Task.gradients`: those of the generated weights, which is all that workers need of the generators."""
        used = [generator.used for generator in self.net.generators if generator.used is not None]
        return [*(u.weight.grad for u in used if u.weight.grad is not None), *super().gradients(group)]

    def metrics(self) -> dict[str, float]:
        """See `Task.metrics`."""
        return {"training_accuracy": self.training_accuracy}

    @property
    def training_accuracy(self) -> float:
        """See `SharedTask.training_accuracy`."""
        return self.right.item() / max(1.0, self.seen.item())

    def finish(self) -> None:
        """See `SharedTask.finish`."""
        self.optimizer.catch_up()

    def weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """See `SharedTask.weights`."""
        return self.net.weights(architecture)
