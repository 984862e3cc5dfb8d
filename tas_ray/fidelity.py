"""How far the scores of a search can be trusted: which candidates to retrain, and how well the scores rank them.

The measure is Kendall's tau-b (Kendall 1945): of all pairs of networks, the share that both put in the same order less
the share that they put in opposite orders, ties accounted for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau

from tas_ray.choices import Architecture
from tas_ray.randomness import seed_of
from tas_ray.space import Budget, SearchSpace

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class ScoredNetwork:
    """A candidate of a search."""

    architecture: Architecture
    macs: int
    score: float


def comparable(
    space: SearchSpace, scores: Mapping[Architecture, float], budget: Budget, *, below: float
) -> list[ScoredNetwork]:
    """The different networks that a budget admits and that nearly use it, in the order of `scores`.

    Networks of all costs would be ranked well by their cost alone, which a search at a budget has no use for.

    Args:
        below: they have at least the budget less this share of it.
    """
    architectures = list(scores)
    if not architectures:
        return []
    population = space.cost.population(architectures)
    macs = space.cost.macs(population)
    least = max(float(budget.least), (1 - below) * budget.most)
    _, firsts = np.unique(space.cost.signature(population), axis=0, return_index=True)
    return [
        ScoredNetwork(architectures[i], int(macs[i]), scores[architectures[i]])
        for i in sorted(firsts.tolist())
        if least <= macs[i] <= budget.most
    ]


def stratified(candidates: Sequence[ScoredNetwork], count: int, *, seed: int) -> list[ScoredNetwork]:
    """One candidate from each of `count` equally large strata of their scores, by rising score.

    Raises:
        ValueError: there are fewer candidates than that.
    """
    if len(candidates) < count:
        raise ValueError(
            f"{count} networks were asked for, but the search scored {len(candidates)} there: ask for fewer "
            "(`networks`), or let them lie further `below` the budget"
        )
    random = np.random.default_rng(seed_of("strata", seed))
    order = np.argsort([candidate.score for candidate in candidates], kind="stable")
    return [candidates[int(random.choice(stratum))] for stratum in np.array_split(order, count)]


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b of a sample."""

    tau: float

    low: float
    """Lower end of the 95 % interval."""

    high: float
    """Upper end of the 95 % interval."""

    p: float
    """Of the two-sided test against independence; exact where nothing is tied."""


def kendall(scores: Sequence[float], accuracies: Sequence[float], *, seed: int) -> Tau:
    """Kendall's tau-b between scores and accuracies, with a percentile bootstrap interval over networks.

    An order without a single inversion gives an interval of no width: no resample has an inversion either. Its `p` says
    how much that is worth.

    Raises:
        ValueError: all scores or all accuracies are the same, so that they have no order.
    """
    x, y = np.asarray(scores, dtype=float), np.asarray(accuracies, dtype=float)
    for name, values, way_out in (("score", x, "sample others"), ("accuracy", y, "retrain for more `epochs`")):
        if len(np.unique(values)) < 2:
            raise ValueError(f"all {len(values)} networks have the same {name}, {values[0]:.4g}: {way_out}")
    x_order, y_order = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    rows = np.random.default_rng(seed_of("bootstrap", seed)).integers(len(x), size=(RESAMPLES, len(x)))
    resampled = [_tau_b(x_order[np.ix_(row, row)], y_order[np.ix_(row, row)]) for row in rows]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])  # a resample may have no order
    return Tau(_tau_b(x_order, y_order), float(low), float(high), float(kendalltau(x, y).pvalue))


def _tau_b(x_order: Float[np.ndarray, "networks networks"], y_order: Float[np.ndarray, "networks networks"]) -> float:
    """Tau-b of two orders, given as the signs of all pairwise differences; NaN if one of them has only ties."""
    ordered = (x_order**2).sum() * (y_order**2).sum()
    return float((x_order * y_order).sum() / np.sqrt(ordered)) if ordered else math.nan
