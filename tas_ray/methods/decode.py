"""From the probabilities a search has learnt to the most likely architecture that the budget admits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tas_ray.choices import Architecture
from tas_ray.space import Budget, SearchSpace

BEAM = 64
ROUNDS = 200
PATIENCE = 3

Scores = Sequence[Float[np.ndarray, "_"]]
"""For every choice of a space, the log-probability of each of its options."""


def argmax(space: SearchSpace, scores: Scores) -> Architecture:
    """The most likely option of every choice, the first of equals; whatever it costs (as TAS published)."""
    return Architecture({c.name: c.options[int(np.argmax(s))] for c, s in zip(space.choices, scores, strict=True)})


def most_likely(space: SearchSpace, scores: Scores, budget: Budget) -> Architecture:
    """The architecture of the highest joint probability that the budget admits.

    The arg-max where it is admitted. Otherwise it is moved into the budget by the single changes that lose least
    probability for the MACs they move, which gives MACs a price; then a beam of the best architectures inside and
    outside of the budget, those outside charged that price for what they miss, is widened by all single changes
    until the best inside stays the same. That is a heuristic: MACs couple neighbouring layers, so the exact
    problem is a knapsack with products.

    Raises:
        ValueError: nothing the budget admits was reached; names the nearest cost.
    """
    decoder = _Decoder(space, scores, budget)
    picks = decoder.best if decoder.missed(decoder.best)[0] == 0 else decoder.searched()
    return Architecture({c.name: c.options[i] for c, i in zip(space.choices, picks, strict=True)})


class _Decoder:
    """Architectures as option indices, one row each and one column per choice."""

    def __init__(self, space: SearchSpace, scores: Scores, budget: Budget) -> None:
        self.space, self.budget = space, budget
        counts = [len(choice.options) for choice in space.choices]
        most = max(counts)
        self.options = np.stack([np.pad(c.options, (0, most - len(c.options)), mode="edge") for c in space.choices])
        self.scores = np.stack([np.pad(s, (0, most - len(s)), constant_values=-np.inf) for s in scores])
        self.best = self.scores.argmax(axis=1)
        self.columns = np.arange(len(counts))
        self.changed = np.repeat(self.columns, counts)
        self.to = np.concatenate([np.arange(count) for count in counts])

    def macs(self, rows: np.ndarray) -> np.ndarray:
        return self.space.cost.macs(self.options[self.columns, np.atleast_2d(rows)])

    def score(self, rows: np.ndarray) -> np.ndarray:
        return self.scores[self.columns, np.atleast_2d(rows)].sum(axis=1)

    def missed(self, rows: np.ndarray) -> np.ndarray:
        """MACs above the budget or, negative, below it; 0 where it admits."""
        macs = self.macs(rows)
        return np.maximum(macs - self.budget.most, 0) + np.minimum(macs - self.budget.least, 0)

    def around(self, rows: np.ndarray) -> np.ndarray:
        """These rows and all that differ from one of them in one choice, once each."""
        rows = np.repeat(np.atleast_2d(rows)[:, None], len(self.to), axis=1)
        rows[:, np.arange(len(self.to)), self.changed] = self.to
        return np.unique(rows.reshape(-1, len(self.columns)), axis=0)

    def path(self) -> tuple[np.ndarray, float]:
        """Architectures from the most likely one towards the budget and across it, and the highest price paid.

        A price is the log-probability lost per MAC moved.
        """
        picks, price = self.best, 0.0
        path = [picks]
        side = np.sign(self.missed(picks)[0])
        for _ in range(len(self.to)):
            rows = self.around(picks)
            moved = side * (self.macs(picks) - self.macs(rows))
            rows, moved = rows[moved > 0], moved[moved > 0]
            if not len(rows):
                break
            prices = (self.score(picks) - self.score(rows)) / moved
            cheapest = int(np.argmin(prices))
            picks, price = rows[cheapest], max(price, float(prices[cheapest]))
            path.append(picks)
            if np.sign(self.missed(picks)[0]) != side:
                break
        return np.stack(path), price

    def searched(self) -> np.ndarray:
        """The best architecture inside the budget that the beam comes across."""
        beam, price = self.path()
        best, highest, unchanged = None, -np.inf, 0
        for _ in range(ROUNDS):
            rows = self.around(beam)
            missed, score = np.abs(self.missed(rows)), self.score(rows)
            # As long as nothing inside is known, what counts is to get there.
            worth = -missed if best is None and missed.all() else score - price * missed
            order = np.argsort(-worth, kind="stable")
            inside, outside = order[missed[order] == 0], order[missed[order] > 0]
            unchanged += 1
            if len(inside) and score[inside[0]] > highest:
                best, highest, unchanged = rows[inside[0]], score[inside[0]], 0
            widened = rows[np.concatenate([inside[:BEAM], outside[:BEAM]])]
            if (best is not None and unchanged == PATIENCE) or np.array_equal(widened, beam):
                break
            beam = widened
        if best is None:
            macs = self.macs(beam)
            nearest = int(macs[np.argmin(np.abs(self.missed(beam)))])
            raise ValueError(
                f"no architecture of {self.space.name} was found between {self.budget.least} and "
                f"{self.budget.most} MACs; the nearest has {nearest}: widen the budget"
            )
        return best
