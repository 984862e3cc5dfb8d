"""The decoder finds the most likely architecture a budget admits, compared with looking at all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pytest

from search_spaces import cifar_resnet
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates
from tas_ray.methods.decode import argmax, most_likely
from tas_ray.space import Budget, SearchSpace

TABLES = 40


@dataclass(frozen=True)
class Enumerated:
    """A small space, and every architecture in it."""

    space: SearchSpace

    @cached_property
    def picks(self) -> np.ndarray:
        """Option indices, one row per architecture."""
        return np.array(list(product(*(range(len(choice.options)) for choice in self.space.choices))))

    @cached_property
    def macs(self) -> np.ndarray:
        columns = [np.array(c.options)[self.picks[:, i]] for i, c in enumerate(self.space.choices)]
        return self.space.cost.macs(np.stack(columns, axis=1))

    def best(self, scores: list[np.ndarray], budget: Budget) -> float:
        """The highest joint log-probability the budget admits."""
        joint = sum(row[self.picks[:, i]] for i, row in enumerate(scores))
        admitted = (self.macs >= budget.least) & (self.macs <= budget.most)
        return float(np.max(joint, where=admitted, initial=-np.inf))


def a_space(*, published: bool, candidates: Candidates) -> SearchSpace:
    define = tiny(published=published).define
    return SearchSpace(name="small", define=define, image_size=8, classes=10, candidates=candidates)


QUARTERS = Candidates(ratios=(0.25, 0.5, 0.75, 1.0))
SPACES = {
    "tied": Enumerated(a_space(published=False, candidates=QUARTERS)),
    "tied, few widths": Enumerated(
        a_space(published=False, candidates=Candidates(freeze=("stage1.block0.conv1", "stage2.block1.conv1")))
    ),
    "published, 3 options": Enumerated(a_space(published=True, candidates=Candidates(ratios=(0.4, 0.7, 1.0)))),
    "published, 2 options": Enumerated(a_space(published=True, candidates=Candidates(ratios=(0.5, 1.0)))),
}


def random_scores(space: SearchSpace, random: np.random.Generator, deviation: float) -> list[np.ndarray]:
    rows = [deviation * random.standard_normal(len(choice.options)) for choice in space.choices]
    return [row - np.logaddexp.reduce(row) for row in rows]


def joint(space: SearchSpace, scores: list[np.ndarray], architecture: Architecture) -> float:
    return sum(
        float(row[choice.options.index(architecture[choice.name])])
        for choice, row in zip(space.choices, scores, strict=True)
    )


def losses(all_of: Enumerated, *, window: float | None, deviation: float) -> np.ndarray:
    """By how much log-probability the decoded architecture misses the best, for random scores and budgets."""
    space, found = all_of.space, []
    for seed in range(TABLES):
        random = np.random.default_rng(seed)
        scores = random_scores(space, random, deviation)
        budget = space.budget(random.uniform(0.2, 0.9), window=window)
        best = all_of.best(scores, budget)
        if best == -np.inf:
            continue
        architecture = most_likely(space, scores, budget)
        assert budget.admits(space.macs(architecture))
        found.append(best - joint(space, scores, architecture))
    assert min(found) > -1e-9
    return np.array(found)


@pytest.mark.parametrize("deviation", [0.01, 1.0])  # as after a short search, and a long one
@pytest.mark.parametrize("window", [None, 0.05, 0.01])
@pytest.mark.parametrize("name", SPACES)
def test_the_decoded_architecture_is_the_most_likely_one_admitted(
    name: str, window: float | None, deviation: float
) -> None:
    missed = losses(SPACES[name], window=window, deviation=deviation)
    assert (missed < 1e-9).mean() >= 0.95
    assert window == 0.01 or missed.max() < 0.01


@pytest.mark.parametrize("name", SPACES)
def test_the_arg_max_is_returned_where_it_is_admitted(name: str) -> None:
    space = SPACES[name].space
    for seed in range(10):
        scores = random_scores(space, np.random.default_rng(seed), 1.0)
        first = argmax(space, scores)
        assert joint(space, scores, first) == pytest.approx(sum(row.max() for row in scores))
        macs = space.macs(first)
        assert most_likely(space, scores, Budget(most=macs, least=macs)) == first


def test_equals_are_decided_for_the_first_option() -> None:
    space = SPACES["tied"].space
    scores = [np.zeros(len(choice.options)) for choice in space.choices]
    assert argmax(space, scores) == space.smallest


def test_a_budget_nothing_fits_is_refused_with_the_nearest_cost() -> None:
    space = SPACES["tied"].space
    least, dense = space.macs(space.smallest), space.macs(space.dense)
    scores = random_scores(space, np.random.default_rng(0), 1.0)
    with pytest.raises(ValueError, match=rf"between 0 and {least - 1} MACs; the nearest has {least}: widen"):
        most_likely(space, scores, Budget(most=least - 1))
    with pytest.raises(ValueError, match=rf"between {dense + 1} and {dense + 9} MACs.*nearest has {dense}"):
        most_likely(space, scores, Budget(most=dense + 9, least=dense + 1))


def test_the_extremes_are_found() -> None:
    space = SPACES["tied"].space
    least, dense = space.macs(space.smallest), space.macs(space.dense)
    for seed in range(5):
        scores = random_scores(space, np.random.default_rng(seed), 1.0)
        assert space.macs(most_likely(space, scores, Budget(most=least))) == least
        assert most_likely(space, scores, Budget(most=dense, least=dense)) == space.dense


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.47, 0.7])
def test_resnet_20_is_decoded_into_the_published_tolerance(published: bool, share: float) -> None:
    space = cifar_resnet.resnet20(published=published)
    scores = random_scores(space, np.random.default_rng(0), 0.1)
    budget = space.budget(share, window=0.05)
    architecture = most_likely(space, scores, budget)
    assert budget.admits(space.macs(architecture))
    assert joint(space, scores, architecture) > joint(space, scores, space.sample(budget, seed=0))
