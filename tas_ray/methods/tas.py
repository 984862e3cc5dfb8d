"""Transformable Architecture Search (Dong & Yang, NeurIPS 2019): widths and depths learnt by gradients in a supernet.

Weights and architecture take turns: one SGD step on the supernet's weights with one half of the training data, one
Adam step on the logits of widths and depths with the other half, whose loss has a penalty for missing the budget
(section 3.2, equations 1 to 8). The reference code and the paper differ in places; each such place is a field of
`Tas`, whose default is the code's unless its comment says why not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tas_ray.choices import Architecture, Choice, Depth, Size, StageOutput, Width, full
from tas_ray.methods.decode import Scores, argmax, most_likely
from tas_ray.methods.method import ProposingMethod, SearchTask
from tas_ray.methods.supernet import DrawnDepth, DrawnWidth, FixedSupernet, Supernet
from tas_ray.randomness import generator
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Group, Training, weights_of

INITIAL_DEVIATION = 0.01
UNDRAWN = 1e-7
MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Tas(ProposingMethod):
    """The search's settings; the defaults are those behind the published CIFAR results."""

    name: ClassVar[str] = "tas"

    search: Training = field(default_factory=lambda: Training(epochs=600, warmup_epochs=0))
    """How the supernet's weights are trained. The architecture takes a step after each of theirs."""

    samples: int | None = 2
    """Widths drawn per layer and step, the |I| of the paper; None mixes all of them."""

    learning_rate: float = 1e-3
    """Adam's learning rate for the logits. Searches much shorter than 60 000 steps need a higher one."""

    weight_decay: float = 1e-3
    """L2 penalty on the logits."""

    temperature: Literal["cosine", "linear"] = "cosine"
    """How the Gumbel-softmax temperature falls over the epochs: `cosine` in the code, `linear` in the paper."""

    temperature_max: float = 5.0
    """The temperature of the first epoch: 5 in the code, 10 in the paper; 0 draws without Gumbel noise."""

    temperature_min: float = 0.1
    """The temperature the epochs approach."""

    penalty: Literal["code", "paper"] = "code"
    """When the expected cost is pushed: above the budget or further below it than the tolerance (`code`), or
    outside the tolerance on both sides (`paper`). The code's never rests above the budget, which is a hard one."""

    penalty_weight: float = 2.0
    """Weight of the penalty beside the cross-entropy."""

    tolerance: float = 0.05
    """How far from the budget the penalty rests, and a decoded network may stay below it: a share of the dense
    network's MACs; in the paper's penalty, of the budget."""

    counted: Literal["built", "published"] = "built"
    """The MACs that decide the penalty's sign: those of the network that would be built, or the published
    count, which charges removed blocks' widths to the layer behind them and so misses the budget by up to 24 %."""

    decode: Literal["budget", "argmax"] = "budget"
    """The answer: the most likely architecture within the budget, or the arg-max as published, which is an error
    where it exceeds the budget."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"at least 1 width is drawn per layer (None: all), not {self.samples}")
        if not self.learning_rate > 0:
            raise ValueError(f"the logits' learning rate has to be positive, not {self.learning_rate}")
        if not 0 <= self.temperature_min <= self.temperature_max:
            raise ValueError(
                f"temperatures fall from max to min >= 0, not from {self.temperature_max} to {self.temperature_min}"
            )
        if self.penalty_weight < 0 or not 0 <= self.tolerance < 1:
            raise ValueError(
                f"the penalty's weight is at least 0 and its tolerance in [0, 1), not {self.penalty_weight} "
                f"and {self.tolerance}"
            )

    @property
    def training(self) -> Training:
        """See `Method.training`."""
        return self.search

    @property
    def window(self) -> float:
        """See `Method.window`."""
        return self.tolerance

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """The Gumbel-softmax temperature of an epoch counted from 0."""
        passed = epoch / epochs
        fallen = passed if self.temperature == "linear" else (1 - math.cos(math.pi * passed)) / 2
        return self.temperature_max - (self.temperature_max - self.temperature_min) * fallen

    def task(self, space: SearchSpace, budget: Budget, *, seed: int) -> SearchTask:
        """See `Method.task`: the supernet and its logits."""
        return TasTask(self, space, budget, seed=seed)

    def propose(self, space: SearchSpace, budget: Budget, task: SearchTask | None, *, seed: int) -> Architecture:
        """See `Method.propose`."""
        assert isinstance(task, TasTask)
        if self.decode == "budget":
            return most_likely(space, task.scores(), budget)
        architecture = argmax(space, task.scores())
        macs = space.macs(architecture)
        if macs > budget.most:
            raise ValueError(
                f"the arg-max architecture has {macs} MACs, more than the budget of {budget.most}; "
                "decode='budget' finds the most likely one within it"
            )
        return architecture


class TasTask(SearchTask):
    """The supernet, the logits of its choices, and the two losses that train them in turn."""

    def __init__(self, config: Tas, space: SearchSpace, budget: Budget, *, seed: int) -> None:
        super().__init__()
        self.config, self.space, self.budget, self.seed = config, space, budget, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = Supernet(space.define, space.candidates)
            self.width_logits = _logits(space.widths)
            self.depth_logits = _logits(space.depths)
        self.width_options = _OptionTable(space.widths)
        self.depth_options = _OptionTable(space.depths)
        self.expected_macs = ExpectedMacs(space)
        self.temperature = config.temperature_max
        self.dense = space.macs(space.dense)
        logits = [p for p in (self.width_logits, self.depth_logits) if p.numel()]
        if not logits:
            raise ValueError(f"nothing of {space.name} is searched: every width and depth is frozen")
        adam = torch.optim.Adam(logits, lr=config.learning_rate, betas=(0.5, 0.999), weight_decay=config.weight_decay)
        self._groups = (
            weights_of(self.supernet, config.search, "train"),
            Group(name="architecture", split="search", parameters=logits, optimizer=adam),
        )

    @property
    def groups(self) -> Sequence[Group]:
        """See `Task.groups`."""
        return self._groups

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """See `Task.start_epoch`."""
        self.temperature = self.config.temperature_at(epoch, epochs)

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """See `Task.forward`; all workers draw the same widths and depths."""
        widths, depths = self.draw(generator("cpu", "draw", group, self.seed, step))
        loss = F.cross_entropy(self.supernet(images, widths, depths), labels)
        if group == "architecture":
            loss = loss + self.config.penalty_weight * self.penalty()
        return loss

    def draw(self, random: torch.Generator) -> tuple[Mapping[str, DrawnWidth], Mapping[str, DrawnDepth]]:
        """Widths and depths for one forward pass (equations 3 to 5)."""
        widths: dict[str, DrawnWidth] = {}
        if self.space.widths:
            noisy = self._noisy(self.width_options.mask(self.width_logits), random)
            count = min(self.config.samples or noisy.shape[1], noisy.shape[1])
            indices, weights = draw_subset(noisy, count, random)
            for choice, row, mixed in zip(self.space.widths, indices, weights.unbind(), strict=True):
                picked = tuple(i for i in row if i < len(choice.options))
                widths[choice.name] = DrawnWidth(picked, mixed[: len(picked)] if len(picked) > 1 else None)
        depths: dict[str, DrawnDepth] = {}
        if self.space.depths:
            mixed = F.softmax(self._noisy(self.depth_options.mask(self.depth_logits), random), 1)
            for depth, weights in zip(self.space.depths, mixed.unbind(), strict=True):
                depths[depth.name] = DrawnDepth(weights[: len(depth.options)])
        return widths, depths

    def _noisy(self, logits: Tensor, random: torch.Generator) -> Tensor:
        if self.temperature <= 0:
            return logits
        noise = torch.empty(logits.shape).exponential_(generator=random)
        gumbel = -noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        return (F.log_softmax(logits, 1) + gumbel.to(logits.device)) / self.temperature

    def penalty(self) -> Float[Tensor, ""]:
        """`+-log` of the expected cost in millions of MACs where the arg-max network misses the budget (equation 8)."""
        macs = self._argmax_macs()
        expected = self.expected_macs(self.width_probabilities(), self.depth_probabilities())
        sign = penalty_sign(macs, self.budget.most, self.dense, self.config)
        return sign * torch.log(expected / MILLION)

    def _argmax_macs(self) -> int:
        population = self.space.cost.population([argmax(self.space, self.scores())])
        count = self.space.cost.macs if self.config.counted == "built" else self.space.cost.published_macs
        return int(count(population)[0])

    def width_probabilities(self) -> Float[Tensor, "widths options"]:
        """The softmax of the width logits; 0 where a choice has fewer options."""
        return F.softmax(self.width_options.mask(self.width_logits), 1)

    def depth_probabilities(self) -> Float[Tensor, "depths depth_options"]:
        """The softmax of the depth logits; 0 where a choice has fewer options."""
        return F.softmax(self.depth_options.mask(self.depth_logits), 1)

    def scores(self) -> Scores:
        """The log-probabilities learnt, for every choice of the space in its order."""
        widths = iter(F.log_softmax(self.width_options.mask(self.width_logits.detach()), 1).cpu().numpy())
        depths = iter(F.log_softmax(self.depth_options.mask(self.depth_logits.detach()), 1).cpu().numpy())
        rows: Iterator[tuple[Choice, np.ndarray]] = (
            (choice, next(widths) if isinstance(choice, Width) else next(depths)) for choice in self.space.choices
        )
        return [row[: len(choice.options)] for choice, row in rows]

    def network(self, architecture: Architecture) -> nn.Module:
        """See `SearchTask.network`; ValueError if a width is not one of its candidates."""
        return FixedSupernet(self.supernet, self.space.choices, architecture)

    def metrics(self) -> dict[str, float]:
        """See `Task.metrics`: what the most likely network and the expected one cost, the temperature."""
        with torch.no_grad():
            expected = self.expected_macs(self.width_probabilities(), self.depth_probabilities())
        return {
            "macs": float(self._argmax_macs()),
            "expected_macs": float(expected),
            "temperature": self.temperature,
        }


def penalty_sign(macs: int, budget: int, dense: int, config: Tas) -> int:
    """Whether the expected cost is to fall (1), to rise (-1) or may stay (0); see `Tas.penalty`."""
    if config.penalty == "code":
        above, below = float(budget), budget - config.tolerance * dense
    else:
        above, below = (1 + config.tolerance) * budget, (1 - config.tolerance) * budget
    return 1 if macs > above else -1 if macs < below else 0


def draw_subset(
    noisy: Float[Tensor, "choices options"], count: int, random: torch.Generator
) -> tuple[list[list[int]], Float[Tensor, "choices count"]]:
    """Draws `count` options of each row without replacement, and the weights that mix them (equation 5).

    Returns each row's option indices, ascending, and the softmax of `noisy` over just these, which carries the
    gradient: it reaches the drawn options only.

    Raises:
        ValueError: `noisy` holds something that is no number.
    """
    probabilities = F.softmax(noisy.detach(), 1).cpu()
    if probabilities.isnan().any():
        raise ValueError(
            "the logits are no numbers any more: the search diverged; lower the learning rate or use float32"
        )
    absent = torch.isinf(noisy.detach()).cpu()
    likelihood = (probabilities + UNDRAWN).masked_fill(absent, torch.finfo(probabilities.dtype).tiny)
    drawn = torch.multinomial(likelihood, count, generator=random).sort(dim=1).values
    weights = F.softmax(noisy.gather(1, drawn.to(noisy.device)), 1)
    return drawn.tolist(), weights


def _logits(choices: Sequence[Choice]) -> nn.Parameter:
    most = max((len(choice.options) for choice in choices), default=0)
    return nn.Parameter(INITIAL_DEVIATION * torch.randn(len(choices), most))


class _OptionTable(nn.Module):
    """Which entries of a table of logits stand for options; choices may have different numbers of them."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__()
        most = max((len(choice.options) for choice in choices), default=0)
        absent = [[i >= len(choice.options) for i in range(most)] for choice in choices]
        self.absent: Tensor
        self.register_buffer(
            "absent", torch.tensor(absent, dtype=torch.bool).reshape(len(choices), most), persistent=False
        )

    def mask(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self.absent, -math.inf)


class ExpectedMacs(nn.Module):
    """The MACs of a network drawn from independent choices, in expectation and differentiable (TAS, equation 7).

    As in the reference: a product of expectations per layer; a layer behind a stage sees its last block's width at
    full depth; the projections a derived network may need are not counted.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        rows = [row for row in space.cost.rows if not row.projection or full(row.c_in) != full(row.c_out)]
        constants: list[int] = []
        names = {choice.name: i for i, choice in enumerate(space.widths)}

        def index(size: Size) -> int:
            if isinstance(size, StageOutput):
                return index(size.widths[-1])
            if isinstance(size, Width):
                return names[size.name]
            constants.append(size)
            return len(names) + len(constants) - 1

        inputs = [index(1 if row.depthwise else row.c_in) for row in rows]
        outputs = [index(row.c_out) for row in rows]
        self.inputs: Int[Tensor, " rows"]
        self.outputs: Int[Tensor, " rows"]
        self.kept: Int[Tensor, " rows"]
        self.weights: Float[Tensor, " rows"]
        self.constants: Float[Tensor, " constants"]
        self.options: Float[Tensor, "widths options"]
        self.survives: Float[Tensor, "depths blocks depth_options"]
        blocks = max((depth.full for depth in space.depths), default=1)
        depths = {depth.name: i for i, depth in enumerate(space.depths)}
        kept = [
            1 + depths[row.kept.depth.name] * blocks + row.kept.block
            if row.kept and row.kept.depth.name in depths
            else 0
            for row in rows
        ]
        tables = {
            "inputs": torch.tensor(inputs),
            "outputs": torch.tensor(outputs),
            "kept": torch.tensor(kept),
            "weights": torch.tensor([float(row.positions * row.kernel**2) for row in rows]),
            "constants": torch.tensor([float(constant) for constant in constants]),
            "options": _padded([choice.options for choice in space.widths]),
            "survives": _survival(space.depths, blocks),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self,
        width_probabilities: Float[Tensor, "widths options"],
        depth_probabilities: Float[Tensor, "depths depth_options"],
    ) -> Float[Tensor, ""]:
        """Expected MACs."""
        widths = (width_probabilities * self.options).sum(1)
        sizes = torch.cat([widths, self.constants])
        alive = torch.einsum("dbo,do->db", self.survives, depth_probabilities).flatten()
        kept = torch.cat([alive.new_ones(1), alive])
        return (self.weights * sizes[self.inputs] * sizes[self.outputs] * kept[self.kept]).sum()


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    most = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[0] * (most - len(row))] for row in rows], dtype=torch.float32).reshape(
        len(rows), most
    )


def _survival(depths: Sequence[Depth], blocks: int) -> Tensor:
    """1 where a block is kept at a depth option, `(depths, blocks, options)`."""
    options = _padded([depth.options for depth in depths])
    return (options.unsqueeze(1) > torch.arange(blocks).view(1, -1, 1)).float()
