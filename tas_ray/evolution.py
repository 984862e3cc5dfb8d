"""The evolutionary search of MetaPruning (Liu et al., ICCV 2019, section 3.3) as an ask/tell state machine.

It scores nothing itself and knows neither PyTorch nor Ray: whoever drives it asks for candidates, has them scored
wherever it likes and tells the scores in any order. Genes are option indices of a space's choices, so tied widths
are one gene, and no two genes are the same number of channels (31 published ratios of 22 channels are 21 options).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from tas_ray.choices import Architecture
from tas_ray.cost import Population
from tas_ray.randomness import seed_of
from tas_ray.space import Budget, SearchSpace

TRIES = 10
"""Children bred per child wanted, at most; as published, 250 for 25."""

DRAWS = 10_000
"""Uniform draws per candidate wanted, at most, with `initial="rejected"`."""

SLACK = 0.1
"""A repaired draw aims at most this share of the affordable MACs below its budget."""

HALVINGS = 24
"""Steps of the bisection for each repaired draw."""

ROUNDS = 100
"""Rounds of repaired draws, at most; `BARREN` in a row without a new network end them earlier."""

BARREN = 5

FEWEST = 8
"""Draws of a round, at least."""

LANDINGS = 12
"""Changes, one at a time, to bring a draw into a narrow budget."""

NOISE = 100
"""A change is preferred to any that leaves a draw this many times as far from its budget; among others by chance."""

EXPANSIONS = 32
"""Blocks of single changes of known networks, when draws find no new one."""

BLOCK = 16_384
"""How many candidates are costed at once; spaces no larger are searched to the last network."""

Genes = Int[np.ndarray, "_ choices"]
Draws = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """How many candidates are bred, and from whom; the defaults are the published ones."""

    population: int = 50
    """Candidates of a generation, for each budget."""

    parents: int = 10
    """The best candidates so far, of which the next are bred."""

    mutations: int = 25
    """Candidates of a generation bred by mutation; what mutation and crossover leave open is drawn anew."""

    mutation_probability: float = 0.1
    """Of each gene; a gene that mutates never keeps its value."""

    crossovers: int = 25
    """Candidates of a generation bred by crossover of two different parents, each gene from either."""

    generations: int = 20
    """How many, the first included: 1 is a random search."""

    initial: Literal["repaired", "rejected"] = "repaired"
    """How candidates are drawn: brought under their budget, close to it; or uniformly until admitted (published)."""

    barrier: bool = True
    """Whether a generation waits for all scores of the one before. Without, a candidate is bred once all but the
    latest `population` candidates of each budget are scored, from the best of exactly those: no worker waits for the
    slowest, and the answer still does not depend on how many there are."""

    def __post_init__(self) -> None:
        for name in ("population", "parents", "generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"an evolution has at least 1 of {name}, not {getattr(self, name)}")
        if min(self.mutations, self.crossovers) < 0 or self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"mutations ({self.mutations}) and crossovers ({self.crossovers}) are parts of the population of "
                f"{self.population}: none may be negative, and together they may not exceed it"
            )
        if not 0 < self.mutation_probability <= 1:
            raise ValueError(f"a gene mutates with a probability in (0, 1], not {self.mutation_probability}")


@dataclass(frozen=True)
class Candidate:
    """An architecture to be scored."""

    ticket: int
    """What its score is told under: 0, 1, ... in the order of breeding."""

    budget: int
    """The place, among the search's budgets, of the one it was bred for."""

    architecture: Architecture
    macs: int


@dataclass(frozen=True)
class Scored:
    """An architecture with its score; minus infinity where it was told NaN."""

    ticket: int
    architecture: Architecture
    macs: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A hard bound beside MACs that every candidate keeps, such as parameters or a latency."""

    name: str

    cost: Callable[[Population], np.ndarray]
    """One number per architecture of a population (columns as `space.choices`)."""

    most: float | int
    least: float | int = 0


class Search:
    """One evolution for several budgets: it hands out candidates and takes their scores.

    All budgets share what was scored: the parents of a budget are the best of all candidates that it admits,
    whichever they were bred for, earlier tickets first among equals. No network is handed out twice (networks are
    compared by `CostTable.signature`). Everything follows from the arguments and the scores; the order of telling
    and asking changes nothing.

    Args:
        budgets: bounds on MACs, one or two-sided.
        constraints: what all candidates keep besides.

    Raises:
        ValueError: no budget is given; or one admits no architecture that was found, or (`initial="rejected"`)
            hardly any uniform draw.
    """

    def __init__(
        self,
        space: SearchSpace,
        budgets: Sequence[Budget],
        settings: Evolution,
        *,
        seed: int,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self._prepare(space, budgets, settings, seed, constraints)
        self._advance()

    def _prepare(
        self,
        space: SearchSpace,
        budgets: Sequence[Budget],
        settings: Evolution,
        seed: int,
        constraints: Sequence[Constraint],
    ) -> None:
        if not budgets:
            raise ValueError("a search needs at least one budget")
        self._space, self._budgets, self._settings, self._seed = space, tuple(budgets), settings, seed
        self._constraints = tuple(constraints)
        counts = [len(choice.options) for choice in space.choices]
        self._counts = np.array(counts, dtype=np.int64)
        self._columns = np.arange(len(counts))
        longest = max(counts, default=1)
        self._options = np.array(
            [np.pad(c.options, (0, longest - len(c.options)), mode="edge") for c in space.choices], dtype=np.int64
        ).reshape(len(counts), longest)
        self._changed = np.repeat(self._columns, counts)  # every single change of a gene: which, and to what
        self._to = np.concatenate([np.arange(count) for count in counts] or [self._columns])
        capacity = len(budgets) * settings.population * settings.generations
        self._genes = np.zeros((capacity, len(counts)), dtype=np.int64)
        self._macs = np.zeros(capacity, dtype=np.int64)
        self._slots = np.zeros(capacity, dtype=np.int64)
        self._scores = np.full(capacity, np.nan)
        self._told = np.zeros(capacity, dtype=bool)
        self._seen: set[bytes] = set()
        self._count = self._asked = self._position = 0
        self._exhausted = np.zeros(len(budgets), dtype=bool)
        self._least_miss = np.full(len(budgets), np.inf)  # of all that was looked at, for the error
        self._nearest = np.zeros((len(budgets), len(counts)), dtype=np.int64)

    def ask(self) -> list[Candidate]:
        """All candidates bred and not handed out yet; none while it waits for scores, or at the end."""
        first = self._asked
        self._asked = self._count
        return [self._candidate(ticket) for ticket in range(first, self._count) if not self._told[ticket]]

    def tell(self, ticket: int, score: float) -> None:
        """Take a candidate's score; higher is better, NaN counts as the worst there is.

        Raises:
            ValueError: no such ticket was handed out, its score is known already, or the score is infinite.
        """
        if not 0 <= ticket < self._asked:
            raise ValueError(
                f"no candidate {ticket} was handed out: the tickets asked for so far are {self._asked}, from 0"
            )
        if self._told[ticket]:
            raise ValueError(
                f"candidate {ticket} has the score {self._scores[ticket]:g} already, {score:g} comes second: "
                "tell each ticket once"
            )
        if math.isinf(score):
            raise ValueError(f"the score of candidate {ticket} is {score}: give a number, or NaN for the worst")
        self._scores[ticket] = -math.inf if math.isnan(score) else score
        self._told[ticket] = True
        self._advance()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to score: all generations are done, or all admitted networks known."""
        return self.evaluated == self._count

    @property
    def evaluated(self) -> int:
        """How many candidates have been scored."""
        return int(self._told[: self._count].sum())

    @property
    def most(self) -> int:
        """How many candidates it scores at most."""
        return len(self._budgets) * self._settings.population * self._settings.generations

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What it searches for, in the order of their places."""
        return self._budgets

    def best(self, budget: int, count: int = 1) -> list[Scored]:
        """Up to `count` of all scored candidates that a budget (its place among them) admits, the best first."""
        return [
            Scored(t, self._architecture(t), int(self._macs[t]), float(self._scores[t]))
            for t in self._ranked(budget, self._count)[:count].tolist()
        ]

    def state(self) -> dict[str, Any]:
        """All there is to know, as JSON can hold it; `restore` goes on from it."""
        told = np.flatnonzero(self._told)
        scores = [score if score > -math.inf else None for score in self._scores[told].tolist()]
        return {
            **self._identity(),
            "genes": self._genes[: self._count].tolist(),
            "slots": self._slots[: self._count].tolist(),
            "told": [list(pair) for pair in zip(told.tolist(), scores, strict=True)],
            "position": self._position,
            "exhausted": self._exhausted.tolist(),
        }

    @classmethod
    def restore(cls, space: SearchSpace, state: Mapping[str, Any], *, constraints: Sequence[Constraint] = ()) -> Search:
        """The search whose `state` this is; what it had handed out without a score it hands out again.

        Raises:
            ValueError: the state is of a space with other choices, or had other constraints.
        """
        search = cls.__new__(cls)
        budgets = [Budget(least=least, most=most) for least, most in state["budgets"]]
        search._prepare(space, budgets, Evolution(**state["settings"]), state["seed"], constraints)
        for part, ours in search._identity().items():
            if state[part] != ours:
                raise ValueError(
                    f"the state is of a search with other {part}: it had {state[part]}, here they are {ours}"
                )
        genes = np.array(state["genes"], dtype=np.int64).reshape(len(state["slots"]), len(search._counts))
        search._add(genes, state["slots"])
        for ticket, score in state["told"]:
            search._scores[ticket] = -math.inf if score is None else score
            search._told[ticket] = True
        search._seen = {row.tobytes() for row in space.cost.signature(search._values(search._genes[: search._count]))}
        search._position = state["position"]
        search._exhausted = np.array(state["exhausted"], dtype=bool)
        return search

    def _identity(self) -> dict[str, Any]:
        return {
            "choices": [[choice.name, list(choice.options)] for choice in self._space.choices],
            "constraints": [f"{c.least} to {c.most} {c.name}" for c in self._constraints],
            "budgets": [[budget.least, budget.most] for budget in self._budgets],
            "settings": asdict(self._settings),
            "seed": self._seed,
        }

    # -- candidates by ticket ------------------------------------------------------------------------------------

    def _candidate(self, ticket: int) -> Candidate:
        budget = int(self._slots[ticket]) % len(self._budgets)
        return Candidate(ticket, budget, self._architecture(ticket), int(self._macs[ticket]))

    def _architecture(self, ticket: int) -> Architecture:
        genes = self._genes[ticket].tolist()
        return Architecture({c.name: c.options[gene] for c, gene in zip(self._space.choices, genes, strict=True)})

    def _add(self, genes: Genes, slots: Sequence[int]) -> None:
        new = slice(self._count, self._count + len(slots))
        self._genes[new] = genes
        self._macs[new] = self._space.cost.macs(self._values(genes))
        self._slots[new] = slots
        self._count += len(slots)

    def _admitted(self, budget: int, until: int) -> Int[np.ndarray, " tickets"]:
        """The tickets before `until` of networks that a budget admits."""
        macs = self._macs[:until]
        return np.flatnonzero((macs >= self._budgets[budget].least) & (macs <= self._budgets[budget].most))

    def _ranked(self, budget: int, until: int) -> Int[np.ndarray, " tickets"]:
        """Those of them that are scored, the best first."""
        tickets = self._admitted(budget, until)
        tickets = tickets[self._told[tickets]]
        return tickets[np.argsort(-self._scores[tickets], kind="stable")]

    # -- when: slots are the places of candidates, dealt to the budgets in turn --------------------------------------

    def _advance(self) -> None:
        """Breed all that the scores told so far allow."""
        lag = len(self._budgets) * self._settings.population
        while self._position < lag * self._settings.generations and not self._exhausted.all():
            if self._position == 0 or self._settings.barrier:
                if not self._told[: self._count].all():
                    return
                self._breed_generation()
                self._position += lag
            else:
                until = int(np.searchsorted(self._slots[: self._count], self._position - lag, side="right"))
                if not self._told[:until].all():
                    return
                self._breed_one(until)
                self._position += 1

    def _breed_generation(self) -> None:
        settings, count = self._settings, self._count
        slots: dict[int, np.ndarray] = {}
        for budget in np.flatnonzero(~self._exhausted).tolist():
            random = self._random("generation", self._position, budget)
            parents = self._genes[self._ranked(budget, count)[: settings.parents]]
            brood = self._brood(budget, parents, settings.mutations, settings.crossovers, settings.population, random)
            if not brood and count == 0 and not any(self._miss(row[None], budget)[0] == 0 for row in slots.values()):
                raise ValueError(self._unreachable(budget))
            slots |= {self._position + i * len(self._budgets) + budget: genes for i, genes in enumerate(brood)}
        genes = np.array([slots[slot] for slot in sorted(slots)], dtype=np.int64)
        self._add(genes.reshape(len(slots), len(self._counts)), sorted(slots))

    def _breed_one(self, until: int) -> None:
        settings = self._settings
        budget = self._position % len(self._budgets)
        if self._exhausted[budget]:
            return
        random = self._random("slot", self._position)
        kind = random.random() * settings.population  # the published shares of a generation as probabilities
        mutation = kind < settings.mutations
        crossover = not mutation and kind < settings.mutations + settings.crossovers
        parents = self._genes[self._ranked(budget, until)[: settings.parents]]
        brood = self._brood(budget, parents, int(mutation), int(crossover), 1, random)
        if brood:
            self._add(brood[0][None], [self._position])

    def _random(self, *parts: int | str) -> Draws:
        return np.random.default_rng(seed_of(self._seed, "evolution", *parts))

    # -- what: candidates a budget admits that are new -------------------------------------------------------------

    def _brood(
        self, budget: int, parents: Genes, mutations: int, crossovers: int, count: int, random: Draws
    ) -> list[np.ndarray]:
        """Up to `count` of them: mutants, then crossings, then draws. None at all: the budget is exhausted."""
        brood: list[np.ndarray] = []
        if mutations and len(parents):
            children = mutants(parents, self._counts, TRIES * mutations, self._settings.mutation_probability, random)
            brood += self._kept_or_moved(children, budget, mutations, random)
        if crossovers and len(parents) > 1:
            children = crossings(parents, TRIES * crossovers, random)
            brood += self._kept_or_moved(children, budget, crossovers, random)
        draw = self._repaired if self._settings.initial == "repaired" else self._rejected
        brood += draw(budget, count - len(brood), random)
        brood += self._remaining(budget, brood, count - len(brood), random)
        self._exhausted[budget] = not brood
        return brood

    def _keep(self, rows: Genes, budget: int, count: int) -> tuple[list[np.ndarray], Genes]:
        """The first `count` of the rows that are admitted and new, now known; and the rows not admitted."""
        admitted = self._miss(rows, budget) == 0
        kept: list[np.ndarray] = []
        if count > 0:
            inside = rows[admitted]
            for row, signature in zip(inside, self._space.cost.signature(self._values(inside)), strict=True):
                key = signature.tobytes()
                if key not in self._seen:
                    self._seen.add(key)
                    kept.append(row)
                    if len(kept) == count:
                        break
        return kept, rows[~admitted]

    def _kept_or_moved(self, rows: Genes, budget: int, count: int, random: Draws) -> list[np.ndarray]:
        """As `_keep`; where too few are left, of those beside the budget what one more change brings inside."""
        kept, missed = self._keep(rows, budget, count)
        if len(kept) < count and len(missed):
            kept += self._keep(self._moved(missed, budget, random), budget, count - len(kept))[0]
        return kept

    def _rejected(self, budget: int, count: int, random: Draws) -> list[np.ndarray]:
        """Uniform draws, as published but bounded; ValueError if the first generation finds too few."""
        kept: list[np.ndarray] = []
        drawn = inside = 0
        while len(kept) < count and drawn < DRAWS * count:
            rows = random.integers(self._counts, size=(min(BLOCK, DRAWS * count - drawn), len(self._counts)))
            found, missed = self._keep(rows, budget, count - len(kept))
            kept += found
            drawn += len(rows)
            inside += len(rows) - len(missed)
        if self._position == 0 and inside < count:
            raise ValueError(
                f"of {drawn} uniform draws from {self._space.name} only {inside} ({inside / drawn:.2g}) kept to "
                f'{self._bounds(budget)}, too few for a population of {count}: initial="repaired" draws within '
                "any budget that can be reached"
            )
        return kept

    def _repaired(self, budget: int, count: int, random: Draws) -> list[np.ndarray]:
        """Draws from small to large of which each is the largest its target allows, then changed into the budget."""
        kept: list[np.ndarray] = []
        barren = 0
        for _ in range(ROUNDS):
            if barren == BARREN or len(kept) == count:
                break
            before = len(kept)
            rows = self._scaled(budget, max(count - len(kept), FEWEST), random)
            for _ in range(LANDINGS):
                found, missed = self._keep(rows, budget, count - len(kept))
                kept += found
                if not len(missed) or len(kept) == count:
                    break
                rows = self._moved(missed, budget, random)
            barren = barren + 1 if len(kept) == before else 0
        return kept

    def _scaled(self, budget: int, count: int, random: Draws) -> Genes:
        """Draws v in (0, 1), taken to the least power at which n * v**power, rounded down, is affordable.

        That goes through all networks between the smallest and the dense one that the draws allow, a gene at a time.
        The draws spread by different amounts around 1/2: from close to uniform scaling to anything.
        """
        bound = self._budgets[budget]
        smallest, dense = self._space.macs(self._space.smallest), self._space.macs(self._space.dense)
        most = min(bound.most, dense)
        least = min(most, max(bound.least, most - SLACK * (most - smallest)))
        targets = random.uniform(least, most, size=count)
        spread = random.uniform(0.25, 1, size=(count, 1))
        draws = np.log(0.5 + spread * (random.random((count, len(self._counts))) - 0.5))
        low, high = np.full((count, 1), -12.0), np.full((count, 1), 12.0)  # of the power's logarithm
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            large = self._exceeds(self._powered(draws, middle), targets)[:, None]
            low, high = np.where(large, middle, low), np.where(large, high, middle)
        return self._powered(draws, high)

    def _powered(
        self, draws: Float[np.ndarray, "candidates choices"], power: Float[np.ndarray, "candidates 1"]
    ) -> Genes:
        return np.minimum(self._counts * np.exp(np.exp(power) * draws), self._counts - 1).astype(np.int64)

    def _exceeds(self, rows: Genes, macs: Float[np.ndarray, " candidates"]) -> np.ndarray:
        population = self._values(rows)
        large = self._space.cost.macs(population) > macs
        for constraint in self._constraints:
            large |= self._cost(constraint, population) > constraint.most
        return large

    def _remaining(self, budget: int, brood: list[np.ndarray], count: int, random: Draws) -> list[np.ndarray]:
        """All networks of a small space; of a large one, what single changes of known networks lead to."""
        kept: list[np.ndarray] = []
        if count == 0:
            return kept
        if self._space.size <= BLOCK:
            everything = np.indices(tuple(self._counts.tolist())).reshape(len(self._counts), self._space.size).T
            return self._keep(random.permutation(everything), budget, count)[0]
        sources = [*random.permutation(self._genes[self._admitted(budget, self._count)]), *brood]
        for _ in range(EXPANSIONS):
            if not sources or len(kept) == count:
                break
            chunk, sources = sources[: self._chunk], sources[self._chunk :]
            around = self._around(np.array(chunk))
            rows = random.permutation(around.reshape(-1, around.shape[2]))
            found, _ = self._keep(rows, budget, count - len(kept))
            kept += found
            sources += found
        return kept

    @property
    def _chunk(self) -> int:
        """Of how many candidates all single changes are costed at once."""
        return max(1, BLOCK // max(1, len(self._to)))

    def _around(self, rows: Genes) -> Int[np.ndarray, "candidates changes choices"]:
        """Every row with each of its genes set to each of its options."""
        around = np.repeat(rows[:, None], len(self._to), axis=1)
        around[:, np.arange(len(self._to)), self._changed] = self._to
        return around

    def _moved(self, rows: Genes, budget: int, random: Draws) -> Genes:
        """The first rows after one change: a random one of those that bring them inside, else likely a near one."""
        rows = rows[: self._chunk if len(self._to) else 0]
        around = self._around(rows)
        count, changes, choices = around.shape
        miss = self._miss(around.reshape(count * changes, choices), budget).reshape(count, changes)
        miss[rows[:, self._changed] == self._to] = np.inf  # no change
        noise = random.random(miss.shape)
        pick = np.where(miss == 0, noise - 1, miss * (1 + NOISE * noise)).argmin(axis=1) if len(rows) else []
        return around[np.arange(len(rows)), pick]

    # -- costs ---------------------------------------------------------------------------------------------------------

    def _values(self, rows: Genes) -> Population:
        return self._options[self._columns, rows]

    def _miss(self, rows: Genes, budget: int) -> Float[np.ndarray, " candidates"]:
        """By how much each row misses the bounds, relative to them and added up; 0 where it is admitted."""
        population, bound = self._values(rows), self._budgets[budget]
        miss = distance(self._space.cost.macs(population), bound.least, bound.most)
        for constraint in self._constraints:
            miss += distance(self._cost(constraint, population), constraint.least, constraint.most)
        if len(miss) and miss.min() < self._least_miss[budget]:
            self._least_miss[budget] = miss.min()
            self._nearest[budget] = rows[miss.argmin()]
        return miss

    def _cost(self, constraint: Constraint, population: Population) -> np.ndarray:
        cost = np.asarray(constraint.cost(population), dtype=np.float64)
        if cost.shape != (len(population),):
            raise ValueError(
                f"the cost of {constraint.name} has to be one number for each of {len(population)} architectures, "
                f"not an array of shape {cost.shape}"
            )
        return cost

    def _bounds(self, budget: int) -> str:
        bounds = [("MACs", self._budgets[budget].least, self._budgets[budget].most)]
        return " and ".join(
            f"{_spaced(least)} to {_spaced(most)} {name}"
            for name, least, most in bounds + [(c.name, c.least, c.most) for c in self._constraints]
        )

    def _unreachable(self, budget: int) -> str:
        """What to say of a budget that admits nothing that was found."""
        nearest = self._values(self._nearest[budget][None])
        costs = [f"{_spaced(int(self._space.cost.macs(nearest)[0]))} MACs"]
        costs += [f"{_spaced(float(self._cost(c, nearest)[0]))} {c.name}" for c in self._constraints]
        return (
            f"no architecture of {self._space.name} was found with {self._bounds(budget)}; the nearest has "
            f"{' and '.join(costs)}: widen the bounds"
        )


def mutants(
    parents: Genes, counts: Int[np.ndarray, " choices"], count: int, probability: float, random: Draws
) -> Genes:
    """Children of parents drawn with replacement, each gene changed with a probability, to any other value.

    Args:
        counts: how many options each choice has, two or more.
    """
    children = parents[random.integers(len(parents), size=count)]
    shifts = random.integers(1, counts, size=children.shape)
    return np.where(random.random(children.shape) < probability, (children + shifts) % counts, children)


def crossings(parents: Genes, count: int, random: Draws) -> Genes:
    """Children of two different parents (rows) each, every gene from either with probability 1/2."""
    mothers = random.integers(len(parents), size=count)
    fathers = (mothers + random.integers(1, len(parents), size=count)) % len(parents)
    return np.where(random.random((count, parents.shape[1])) < 0.5, parents[mothers], parents[fathers])


def distance(costs: np.ndarray, least: float | int, most: float | int) -> Float[np.ndarray, " candidates"]:
    """By how much costs lie outside of bounds, relative to these; 0 inside."""
    return np.maximum(costs - most, 0) / max(most, 1) + np.maximum(least - costs, 0) / max(least, 1)


def _spaced(number: float | int) -> str:
    return f"{number:,.0f}".replace(",", " ") if float(number).is_integer() else f"{number:.6g}"
