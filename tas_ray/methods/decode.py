"""From the probabilities a search has learnt to the most likely architecture that the budget admits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tas_ray.choices import Architecture
from tas_ray.space import Budget, SearchSpace

PRICES = 60
SWEEPS = 50
EXCHANGES = 64
POLISHES = 200

Scores = Sequence[Float[np.ndarray, "_"]]
"""For every choice of a space, the log-probability of each of its options."""


def argmax(space: SearchSpace, scores: Scores) -> Architecture:
    """The most likely option of every choice, the first of equals; whatever it costs (as TAS published)."""
    return Architecture({c.name: c.options[int(np.argmax(s))] for c, s in zip(space.choices, scores, strict=True)})


def most_likely(space: SearchSpace, scores: Scores, budget: Budget) -> Architecture:
    """The architecture of the highest joint probability that the budget admits.

    The arg-max where it is admitted. Otherwise MACs are given a price, the best architecture at that price is
    found choice by choice, and the price is halved in on the budget (Lagrangian relaxation); what remains of the
    budget is then used by single changes and exchanges of two choices while they raise the probability. That is
    a heuristic: MACs couple neighbouring layers, so the exact problem is a knapsack with products.

    Raises:
        ValueError: nothing the budget admits was reached; names the nearest cost.
    """
    decoder = _Decoder(space, scores, budget)
    picks = decoder.at_price(decoder.best, 0.0)
    if not decoder.admits(picks):
        picks = decoder.repaired(decoder.priced(picks))
        picks = decoder.polished(picks)
    return Architecture({c.name: int(v) for c, v in zip(space.choices, decoder.values(picks), strict=True)})


class _Decoder:
    """Architectures as option indices, one per choice (`picks`); many at once as rows."""

    def __init__(self, space: SearchSpace, scores: Scores, budget: Budget) -> None:
        self.space, self.budget = space, budget
        self.counts = np.array([len(choice.options) for choice in space.choices])
        most = int(self.counts.max())
        self.options = np.stack(
            [np.pad(choice.options, (0, most - len(choice.options)), mode="edge") for choice in space.choices]
        )
        self.scores = np.stack(
            [np.pad(s, (0, most - len(s)), constant_values=-np.inf) for s in map(np.asarray, scores)]
        )
        self.best = self.scores.argmax(axis=1)
        self.dense = float(space.macs(space.dense))
        self.columns = np.arange(len(self.counts))

    def values(self, picks: np.ndarray) -> np.ndarray:
        return self.options[self.columns, picks]

    def macs(self, picks: np.ndarray) -> np.ndarray:
        return self.space.cost.macs(self.values(np.atleast_2d(picks)))

    def score(self, picks: np.ndarray) -> np.ndarray:
        return self.scores[self.columns, np.atleast_2d(picks)].sum(axis=1)

    def admits(self, picks: np.ndarray) -> bool:
        return self.budget.admits(int(self.macs(picks)[0]))

    def neighbours(self, picks: np.ndarray) -> np.ndarray:
        """Every architecture that differs in one choice."""
        changes = [
            (column, option)
            for column, count in enumerate(self.counts)
            for option in range(count)
            if option != picks[column]
        ]
        rows = np.repeat(picks[None], len(changes), axis=0)
        for row, (column, option) in zip(rows, changes, strict=True):
            row[column] = option
        return rows

    def at_price(self, picks: np.ndarray, price: float) -> np.ndarray:
        """The best architecture when all MACs of the dense network cost `price` in log-probability."""
        if price == 0.0:
            return self.best.copy()
        picks = picks.copy()
        for _ in range(SWEEPS):
            before = picks.copy()
            for column, count in enumerate(self.counts):
                rows = np.repeat(picks[None], count, axis=0)
                rows[:, column] = np.arange(count)
                picks = rows[np.argmax(self.score(rows) - price * self.macs(rows) / self.dense)]
            if (picks == before).all():
                break
        return picks

    def priced(self, picks: np.ndarray) -> np.ndarray:
        """The best admitted architecture seen while halving the price in on the budget, or the last one."""
        over = self.macs(picks)[0] > self.budget.most
        sign = 1.0 if over else -1.0  # too cheap: MACs are rewarded
        low, high = 0.0, 1.0
        for _ in range(PRICES):
            picks = self.at_price(picks, sign * high)
            macs = int(self.macs(picks)[0])
            if (macs <= self.budget.most) if over else (macs >= self.budget.least):
                break
            high *= 2
        for _ in range(PRICES):
            if self.admits(picks):
                return picks
            middle = (low + high) / 2
            trial = self.at_price(picks, sign * middle)
            macs = int(self.macs(trial)[0])
            reached = (macs <= self.budget.most) if over else (macs >= self.budget.least)
            low, high = (low, middle) if reached else (middle, high)
            if reached:
                picks = trial
        return picks

    def repaired(self, picks: np.ndarray) -> np.ndarray:
        """Moves into the budget by the single changes that lose least probability for the MACs they move."""
        for _ in range(int(self.counts.sum())):
            macs = int(self.macs(picks)[0])
            if self.budget.admits(macs):
                return picks
            rows = self.neighbours(picks)
            moved = self.macs(rows) - macs
            towards = moved < 0 if macs > self.budget.most else moved > 0
            rows, moved = rows[towards], moved[towards]
            if not len(rows):
                break
            admitted = np.array([self.budget.admits(macs + int(step)) for step in moved])
            if admitted.any():
                rows, moved = rows[admitted], moved[admitted]
                picks = rows[np.argmax(self.score(rows))]
            else:
                short = np.abs(moved) < abs(macs - self.budget.most)
                if short.any():
                    rows, moved = rows[short], moved[short]
                loss = self.score(picks) - self.score(rows)
                picks = rows[np.argmin(loss / np.abs(moved))]
        raise ValueError(
            f"no architecture of {self.space.name} was found between {self.budget.least} and "
            f"{self.budget.most} MACs; the nearest has {int(self.macs(picks)[0])}: widen the budget"
        )

    def polished(self, picks: np.ndarray) -> np.ndarray:
        """Raises the probability by single changes and exchanges while the budget admits them."""
        for _ in range(POLISHES):
            rows = self.neighbours(picks)
            gains = self.score(rows) - self.score(picks)
            # An exchange: one of the changes that gain most, together with any other change that pays for it.
            promising = rows[np.argsort(-gains, kind="stable")[:EXCHANGES]]
            pairs = np.concatenate([self.neighbours(row) for row in promising])
            rows = np.concatenate([rows, pairs])
            rows = rows[self.score(rows) > self.score(picks) + 1e-12]
            if not len(rows):
                break
            macs = self.macs(rows)
            rows = rows[(macs >= self.budget.least) & (macs <= self.budget.most)]
            if not len(rows):
                break
            picks = rows[np.argmax(self.score(rows))]
        return picks
