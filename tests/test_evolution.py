"""The evolutionary search: what it breeds, that nothing but the scores decides it, and that it finds what is good."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.cifar_resnet import resnet20
from search_spaces.metapruning_resnet import resnet50
from search_spaces.mobilenet_v2 import mobilenet_v2
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates
from tas_ray.cost import Population
from tas_ray.evolution import Candidate, Constraint, Evolution, Scored, Search, crossings, mutants
from tas_ray.space import Budget, SearchSpace

TINY, RESNET = tiny(), resnet20()
SMALL = replace(TINY, candidates=Candidates(ratios=(0.5, 0.75, 1.0), freeze=("stage2.*.conv1", "stage2.block*")))
"""324 architectures, among them twins: a shortened stage 1 has no second block, whose widths then count nothing."""
SHORT = Evolution(population=8, parents=3, mutations=4, crossovers=3, generations=4, mutation_probability=0.3)
STEADY = replace(SHORT, barrier=False)
BUDGETS = (TINY.budget(0.3), TINY.budget(0.6), TINY.budget(0.8, window=0.2))

spaces = pytest.mark.parametrize("space", [TINY, tiny(published=True), RESNET], ids=lambda space: space.name)
both_modes = pytest.mark.parametrize("evolution", [SHORT, STEADY], ids=["barrier", "steady"])


def anything(architecture: Architecture) -> float:
    """Some score, where it does not matter which."""
    return zlib.crc32(architecture.to_json().encode()) / 2**32


class Table:
    """A score for every network of a small space, and with it the best one.

    It is concave in the widths, lower where neighbours do not fit, plus each network's own bit of noise.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.shape = [len(choice.options) for choice in space.choices]
        genes = np.indices(self.shape).reshape(len(self.shape), -1)
        values = [np.array(choice.options)[row] for choice, row in zip(space.choices, genes, strict=True)]
        self.population = np.stack(values, axis=1)
        self.macs = space.cost.macs(self.population)
        self.networks, self.network = np.unique(space.cost.signature(self.population), axis=0, return_inverse=True)

    def scores(self, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        shares = np.log1p(self.networks) - np.log1p(self.networks.max(axis=0))
        worth, fit = random.uniform(0.2, 1, shares.shape[1]), random.uniform(0, 0.3, shares.shape[1] - 1)
        score = shares.sum(axis=1) - shares**2 @ worth - np.diff(shares) ** 2 @ fit
        scores: np.ndarray = (score + random.normal(scale=0.05, size=len(score)))[self.network]
        return scores

    def score(self, seed: int) -> Callable[[Architecture], float]:
        scores = self.scores(seed).reshape(self.shape)
        places = [{n: i for i, n in enumerate(choice.options)} for choice in self.space.choices]

        def score(architecture: Architecture) -> float:
            return float(scores[tuple(place[n] for place, n in zip(places, architecture.values(), strict=True))])

        return score

    def best(self, budget: Budget, seed: int) -> float:
        return float(self.scores(seed)[(self.macs >= budget.least) & (self.macs <= budget.most)].max())

    def count(self, budget: Budget) -> int:
        """How many different networks it admits."""
        return len(np.unique(self.network[(self.macs >= budget.least) & (self.macs <= budget.most)]))


def told(search: Search, score: Callable[[Architecture], float], *, workers: int = 1, seed: int = 0) -> list[Candidate]:
    """Drive a search to its end with so many candidates under way at once, which end in random order."""
    random = np.random.default_rng(seed)
    waiting, running, asked = [], [], []
    while not search.finished:
        new = search.ask()
        asked += new
        waiting += new
        while waiting and len(running) < workers:
            running.append(waiting.pop(random.integers(len(waiting))))
        candidate = running.pop(random.integers(len(running)))
        search.tell(candidate.ticket, score(candidate.architecture))
    return asked


def signatures(space: SearchSpace, architectures: Sequence[Architecture]) -> set[bytes]:
    return {row.tobytes() for row in space.cost.signature(space.cost.population(architectures))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 0, "mutations": 0, "crossovers": 0}, "at least 1 of population, not 0"),
        ({"parents": 0}, "at least 1 of parents, not 0"),
        ({"generations": 0}, "at least 1 of generations, not 0"),
        ({"mutations": 26}, r"mutations \(26\) and crossovers \(25\) are parts of the population of 50"),
        ({"crossovers": -1}, "none may be negative"),
        ({"mutation_probability": 0.0}, r"probability in \(0, 1\], not 0"),
        ({"mutation_probability": float("nan")}, r"probability in \(0, 1\], not nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evolution(**changes)


@spaces
@settings(deadline=None, max_examples=5)
@given(share=st.floats(0, 1), window=st.sampled_from([None, 0.05, 0.2]), seed=st.integers(0, 2**63 - 1))
def test_candidates_are_admitted_networks_of_the_space_each_once(
    space: SearchSpace, share: float, window: float | None, seed: int
) -> None:
    least, dense = space.macs(space.smallest), space.macs(space.dense)
    budgets = [space.budget(least + int(share * (dense - least)), window=window), space.budget(0.5)]
    for evolution in (SHORT, STEADY):
        candidates = told(Search(space, budgets, evolution, seed=seed), anything, workers=3)
        assert [c.ticket for c in candidates] == list(range(len(candidates)))
        for candidate in candidates:
            assert candidate.macs == space.macs(candidate.architecture)
            assert budgets[candidate.budget].admits(candidate.macs)
            assert list(candidate.architecture) == [choice.name for choice in space.choices]
            assert all(candidate.architecture[choice.name] in choice.options for choice in space.choices)
        assert len(signatures(space, [c.architecture for c in candidates])) == len(candidates)


@both_modes
def test_every_budget_gets_as_many_evaluations(evolution: Evolution) -> None:
    search = Search(TINY, BUDGETS, evolution, seed=3)
    candidates = told(search, anything)
    assert np.bincount([c.budget for c in candidates]).tolist() == [8 * 4] * 3
    assert search.evaluated == 8 * 4 * 3
    assert search.finished
    assert search.ask() == []


def test_a_mutated_gene_never_keeps_its_value() -> None:
    random = np.random.default_rng(0)
    counts = np.array([2, 5, 31])
    parents = random.integers(counts, size=(4, 3))
    assert (mutants(parents[:1], counts, 1000, 1.0, random) != parents[0]).all()
    children = mutants(parents, counts, 20_000, 0.25, random)
    assert ((children >= 0) & (children < counts)).all()
    changed = (mutants(parents[:1], counts, 20_000, 0.25, random) != parents[0]).mean(axis=0)
    assert np.abs(changed - 0.25).max() < 0.02
    for column, count in enumerate(counts):
        other = mutants(parents[:1], counts, 1000, 1.0, random)[:, column]
        assert set(other) == set(range(count)) - {parents[0, column]}


def test_a_crossing_has_genes_of_two_different_parents() -> None:
    random = np.random.default_rng(0)
    parents = np.repeat(np.arange(3)[:, None], 20, axis=1)  # every gene says whose it is
    children = crossings(parents, 2000, random)
    heirs = [frozenset(child) for child in children.tolist()]
    assert set(heirs) == {frozenset(pair) for pair in [(0, 1), (0, 2), (1, 2)]}
    assert np.abs((children[[h == {0, 1} for h in heirs]] == 0).mean() - 0.5) < 0.02


@both_modes
def test_small_spaces_are_searched_to_the_last_network(evolution: Evolution) -> None:
    table, budget = Table(SMALL), SMALL.budget(0.6)
    assert table.count(budget) < (table.macs <= budget.most).sum() < SMALL.size  # there are twins
    search = Search(SMALL, [budget], replace(evolution, generations=100), seed=0)
    candidates = told(search, table.score(0), workers=2)
    assert len(candidates) == search.evaluated == table.count(budget) < 8 * 100
    assert search.finished
    assert search.best(0)[0].score == table.best(budget, 0)


@both_modes
def test_a_budget_of_one_network_ends_with_it(evolution: Evolution) -> None:
    search = Search(RESNET, [Budget(most=RESNET.macs(RESNET.smallest))], evolution, seed=0)
    (candidate,) = told(search, anything)
    assert candidate.architecture == RESNET.smallest


def test_what_single_changes_reach_in_a_large_space_is_found_to_the_last_network() -> None:
    least = RESNET.macs(RESNET.smallest)
    found = told(Search(RESNET, [Budget(most=least * 6 // 5)], SHORT, seed=0), anything)
    again = told(Search(RESNET, [Budget(most=least * 6 // 5)], SHORT, seed=1), anything)
    assert 1 < len(found) == len(again) < 8 * 4
    first, second = (signatures(RESNET, [c.architecture for c in candidates]) for candidates in (found, again))
    assert first == second


def test_equal_budgets_share_what_there_is() -> None:
    budget = Budget(most=TINY.macs(TINY.smallest))
    search = Search(TINY, [budget, budget], SHORT, seed=0)
    assert len(told(search, anything)) == 1
    assert search.best(0) == search.best(1) != []


def test_a_space_without_choices_has_one_candidate() -> None:
    space = replace(TINY, candidates=Candidates(freeze=("*",)))
    search = Search(space, [space.budget(1.0)], SHORT, seed=0)
    assert [c.architecture for c in told(search, lambda _: 0.5)] == [Architecture({})]
    with pytest.raises(ValueError, match="the nearest has 1 142 080 MACs"):
        Search(space, [Budget(most=1000)], SHORT, seed=0)


def test_one_generation_is_a_random_search() -> None:
    alone = replace(SHORT, population=30, generations=1)
    search = Search(TINY, BUDGETS[:1], alone, seed=5)
    candidates = search.ask()
    assert len(candidates) == 30
    for candidate in candidates:
        search.tell(candidate.ticket, 0.0)
    assert search.finished
    assert [c.architecture for c in told(Search(TINY, BUDGETS[:1], alone, seed=5), anything, workers=30)] == [
        c.architecture for c in candidates
    ]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(most=42_857), "with 0 to 42 857 MACs; the nearest has 42 858 MACs: widen"),
        (Budget(least=1_142_081, most=2**62), "the nearest has 1 142 080 MACs"),
        (Budget(least=1_027_644, most=1_027_872), "1 027 644 to 1 027 872 MACs; the nearest has 1 028 120 MACs"),
        (Budget(least=600_000, most=500_000), "600 000 to 500 000 MACs"),
    ],
)
def test_budgets_that_admit_nothing_are_refused_with_the_nearest_there_is(budget: Budget, message: str) -> None:
    with pytest.raises(ValueError, match=f"no architecture of tiny was found .*{message}"):
        Search(TINY, [TINY.budget(0.5), budget], SHORT, seed=0)


def test_no_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one budget"):
        Search(TINY, [], SHORT, seed=0)


@pytest.mark.parametrize("million", [291, 105, 43, 14])
def test_published_budgets_are_filled_and_used(million: int) -> None:
    space = mobilenet_v2()
    candidates = Search(space, [Budget(most=million * 10**6)], Evolution(), seed=0).ask()
    assert len(candidates) == 50
    assert np.mean([c.macs for c in candidates]) > 0.9 * million * 10**6
    genes = space.cost.population([c.architecture for c in candidates])
    different = [len(np.unique(column)) for column in genes.T]
    assert np.mean(different) > (3 if million == 14 else 10)


@pytest.mark.parametrize(
    ("space", "budget"),
    [
        (mobilenet_v2(), Budget(least=42_996_000, most=43_000_000)),
        (resnet50(), Budget(least=950 * 10**6, most=1050 * 10**6)),
        (resnet50(), Budget(least=2_999_900_000, most=3_000_000_000)),
        (TINY, TINY.budget(0.5, window=0.001)),
    ],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else "",
)
def test_narrow_windows_are_filled(space: SearchSpace, budget: Budget) -> None:
    candidates = Search(space, [budget], Evolution(), seed=0).ask()
    assert len(candidates) == 50
    assert all(budget.admits(space.macs(c.architecture)) for c in candidates)


def test_uniform_draws_are_kept_where_they_are_admitted() -> None:
    uniform = replace(SHORT, initial="rejected", population=200, generations=1)
    free = Search(TINY, [Budget(most=2**62)], uniform, seed=0).ask()
    for choice in TINY.choices:
        values = [c.architecture[choice.name] for c in free]
        assert set(values) == set(choice.options)
    half = TINY.budget(0.5)
    assert all(half.admits(c.macs) for c in Search(TINY, [half], uniform, seed=0).ask())


def test_uniform_draws_end_in_an_error_where_hardly_any_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tas_ray.evolution.DRAWS", 1000)
    with pytest.raises(ValueError, match=r"of 8000 uniform draws .* only 0 \(0\) .*initial=\"repaired\""):
        Search(RESNET, [RESNET.budget(0.03)], replace(SHORT, initial="rejected"), seed=0)


@both_modes
def test_uniform_draws_find_all_of_a_small_space(evolution: Evolution) -> None:
    uniform = replace(evolution, initial="rejected", population=60, generations=20)
    search = Search(SMALL, [SMALL.budget(0.5)], uniform, seed=0)
    told(search, anything)
    assert search.evaluated == Table(SMALL).count(SMALL.budget(0.5))


def test_scores_are_told_once_and_only_for_what_was_handed_out() -> None:
    search = Search(TINY, BUDGETS[:1], SHORT, seed=0)
    with pytest.raises(ValueError, match="no candidate 0 was handed out"):
        search.tell(0, 0.5)
    search.ask()
    for ticket in (-1, 8):
        with pytest.raises(ValueError, match=f"no candidate {ticket} was handed out: .* 8"):
            search.tell(ticket, 0.5)
    search.tell(3, 0.5)
    with pytest.raises(ValueError, match=r"candidate 3 has the score 0.5 already, 0.7 comes second"):
        search.tell(3, 0.7)
    for infinite in (float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=r"the score of candidate 4 is -?inf"):
            search.tell(4, infinite)
    assert search.evaluated == 1


def test_a_score_that_is_no_number_is_the_worst() -> None:
    search = Search(TINY, BUDGETS[:1], replace(SHORT, generations=1), seed=0)
    candidates = search.ask()
    for candidate in candidates:
        search.tell(candidate.ticket, float("nan") if candidate.ticket < 3 else -1000.0 - candidate.ticket)
    assert [s.ticket for s in search.best(0, 8)] == [3, 4, 5, 6, 7, 0, 1, 2]
    assert search.best(0, 8)[-1].score == -float("inf")


@both_modes
def test_a_search_of_nothing_but_failures_still_ends(evolution: Evolution) -> None:
    search = Search(TINY, BUDGETS, evolution, seed=0)
    assert len(told(search, lambda _: float("nan"))) == 8 * 4 * 3


def test_the_best_are_those_a_budget_admits_earlier_tickets_first_among_equals() -> None:
    search = Search(TINY, BUDGETS, replace(SHORT, generations=1), seed=0)
    candidates = search.ask()
    scores = {c.ticket: float(c.ticket % 3) for c in candidates}
    for candidate in reversed(candidates):
        search.tell(candidate.ticket, scores[candidate.ticket])
    for place, budget in enumerate(BUDGETS):
        ranked = sorted((c for c in candidates if budget.admits(c.macs)), key=lambda c: (-scores[c.ticket], c.ticket))
        expected = [Scored(c.ticket, c.architecture, c.macs, scores[c.ticket]) for c in ranked]
        assert search.best(place, 1000) == expected
        assert search.best(place) == expected[:1]
    assert {c.budget for c in candidates if BUDGETS[1].admits(c.macs)} == {0, 1}  # bred for the smaller one too


def test_parents_are_the_best_whichever_budget_they_were_bred_for() -> None:
    # Of many genes only few change: a child is nearest to its parent.
    space, careful = RESNET, replace(SHORT, parents=1, mutations=8, crossovers=0, mutation_probability=0.05)
    budgets = [space.budget(0.3), space.budget(0.9)]
    search = Search(space, budgets, careful, seed=0)
    first = search.ask()
    favourite = next(c for c in first if c.budget == 0)
    for candidate in first:
        search.tell(candidate.ticket, float(candidate == favourite))
    children = [c for c in search.ask() if c.budget == 1]
    same = [sum(c.architecture[name] == n for name, n in favourite.architecture.items()) for c in children]
    assert np.mean(same) > 0.8 * len(space.choices)


def test_a_generation_waits_for_all_scores_of_the_one_before() -> None:
    search = Search(TINY, BUDGETS[:2], SHORT, seed=0)
    *others, last = search.ask()
    assert len(others) == 15
    for candidate in others:
        search.tell(candidate.ticket, 0.0)
        assert search.ask() == []
        assert not search.finished
    search.tell(last.ticket, 0.0)
    assert [c.ticket for c in search.ask()] == list(range(16, 32))


def test_without_a_barrier_a_slow_candidate_holds_up_one_population_of_others() -> None:
    search = Search(TINY, BUDGETS[:1], replace(STEADY, generations=10), seed=0)
    slow, *running = search.ask()
    for _ in range(7):
        search.tell(running.pop().ticket, 0.0)
        assert search.ask() == []  # ticket 8 is bred from the score of ticket 0, for any number of workers
    search.tell(slow.ticket, 0.0)
    assert [c.ticket for c in search.ask()] == list(range(8, 16))
    for ticket in range(8, 12):
        search.tell(ticket, 0.0)
        assert [c.ticket for c in search.ask()] == [ticket + 8]  # nobody waits for 12 to 15


@both_modes
def test_neither_workers_nor_the_order_of_scores_change_the_search(evolution: Evolution) -> None:
    alone = sorted(told(Search(TINY, BUDGETS, evolution, seed=7), anything), key=lambda c: c.ticket)
    for workers in range(1, 6):
        search = Search(TINY, BUDGETS, evolution, seed=7)
        assert told(search, anything, workers=workers, seed=workers) == alone
    other = told(Search(TINY, BUDGETS, evolution, seed=8), anything)
    assert [c.architecture for c in other] != [c.architecture for c in alone]


@both_modes
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(evolution: Evolution) -> None:
    def score(architecture: Architecture) -> float:
        value = anything(architecture)
        return float("nan") if value < 0.2 else value

    budgets = BUDGETS[:2]
    constraint = Constraint(name="params", cost=TINY.cost.params, most=TINY.params(TINY.dense) // 2)
    undisturbed = Search(TINY, budgets, evolution, seed=1, constraints=[constraint])
    expected = told(undisturbed, score)
    assert not all(np.isfinite(score(c.architecture)) for c in expected)
    search = Search(TINY, budgets, evolution, seed=1, constraints=[constraint])
    waiting: list[Candidate] = []
    while not search.finished:
        waiting += search.ask()
        state = json.loads(json.dumps(search.state(), allow_nan=False))
        search = Search.restore(TINY, state, constraints=[constraint])
        assert search.state() == state
        assert sorted(search.ask(), key=lambda c: c.ticket) == sorted(waiting, key=lambda c: c.ticket)
        done = waiting.pop(len(waiting) // 2)
        search.tell(done.ticket, score(done.architecture))
    assert search.state() == undisturbed.state()
    assert search.best(1, 1000) == undisturbed.best(1, 1000)
    assert Search.restore(TINY, search.state(), constraints=[constraint]).finished


def test_an_exhausted_search_stays_finished_when_restored() -> None:
    search = Search(SMALL, [SMALL.budget(0.4)], replace(SHORT, generations=100), seed=0)
    told(search, anything)
    restored = Search.restore(SMALL, search.state())
    assert restored.finished
    assert restored.ask() == []
    assert restored.state() == search.state()


def test_a_state_of_another_search_is_refused() -> None:
    state = Search(TINY, BUDGETS, SHORT, seed=0).state()
    with pytest.raises(ValueError, match="of a search with other choices"):
        Search.restore(RESNET, state)
    params = Constraint(name="params", cost=TINY.cost.params, most=10**9)
    with pytest.raises(ValueError, match="of a search with other constraints"):
        Search.restore(TINY, state, constraints=[params])


@both_modes
def test_all_candidates_keep_the_constraints(evolution: Evolution) -> None:
    most = TINY.params(TINY.dense) // 4
    depth = [c.name for c in TINY.choices].index("stage1.depth")
    constraints = [
        Constraint(name="params", cost=TINY.cost.params, most=most),
        Constraint(name="blocks", cost=lambda population: population[:, depth], most=2, least=2),
    ]
    candidates = told(Search(TINY, BUDGETS[:2], evolution, seed=0, constraints=constraints), anything)
    assert len(candidates) == 8 * 4 * 2
    assert all(TINY.params(c.architecture) <= most for c in candidates)
    assert all(c.architecture["stage1.depth"] == 2 for c in candidates)


def test_constraints_that_nothing_keeps_are_refused_with_the_nearest_there_is() -> None:
    least = TINY.params(TINY.smallest)
    params = Constraint(name="params", cost=TINY.cost.params, most=least - 1)
    with pytest.raises(ValueError, match=r"MACs and 0 to .* params; the nearest has .* MACs and .* params: widen"):
        Search(TINY, BUDGETS, SHORT, seed=0, constraints=[params])
    nothing = Constraint(name="latency", cost=lambda population: np.full(len(population), np.nan), most=1.0)
    with pytest.raises(ValueError, match="nan latency"):
        Search(TINY, BUDGETS, SHORT, seed=0, constraints=[nothing])


def test_a_constraint_needs_a_cost_for_each_architecture() -> None:
    def mean(population: Population) -> np.ndarray:
        return population.mean()

    with pytest.raises(ValueError, match=r"the cost of latency has to be one number for each of .* not .* shape \(\)"):
        Search(TINY, BUDGETS, SHORT, seed=0, constraints=[Constraint(name="latency", cost=mean, most=1.0)])


@both_modes
def test_evolution_ends_at_the_best_network_of_a_small_space(evolution: Evolution) -> None:
    table, budget, found = Table(SMALL), SMALL.budget(0.6), 0
    for seed in range(5):
        search = Search(SMALL, [budget], replace(evolution, generations=12), seed=seed)
        told(search, table.score(seed))
        assert search.evaluated < table.count(budget)
        found += search.best(0)[0].score == table.best(budget, seed)
    assert found >= 4


@both_modes
def test_evolution_regrets_less_than_random_search_and_that_less_than_uniform_draws(evolution: Evolution) -> None:
    candidates = Candidates(ratios=(0.2, 0.4, 0.6, 0.8, 1.0), freeze=("*.depth",))
    table = Table(replace(TINY, candidates=candidates))
    budget = table.space.budget(0.4)
    published = replace(evolution, population=20, parents=5, mutations=10, crossovers=10, mutation_probability=0.1)
    ways = {
        "evolution": replace(published, generations=10),
        "random": replace(published, population=200, generations=1),
        "uniform": replace(published, population=200, generations=1, initial="rejected"),
    }
    regret = dict.fromkeys(ways, 0.0)
    for seed in range(10):
        for name, way in ways.items():
            search = Search(table.space, [budget], way, seed=seed)
            told(search, table.score(seed))
            assert search.evaluated == 200 < table.count(budget) / 10
            regret[name] += (table.best(budget, seed) - search.best(0)[0].score) / 10
    assert 2 * regret["evolution"] < regret["random"] < regret["uniform"] / 2
