"""How fast candidates are drawn for every published budget, and what the evolution finds per evaluation.

    OMP_NUM_THREADS=1 python -m benchmarks.evolution --out benchmarks/results/evolution.json

Times are CPU seconds of this process. Regret is the score that was missed: the best a budget admits less the best
that was found, the mean over seeds. Where nobody can know the best (a space of 1e37 networks), the best that any of
the compared searches found for that seed and budget stands in for it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from search_spaces.metapruning_resnet import resnet50
from search_spaces.mobilenet_v1 import mobilenet_v1
from search_spaces.mobilenet_v2 import mobilenet_v2
from tas_ray.choices import Architecture, Candidates, Width
from tas_ray.evolution import Evolution, Search
from tas_ray.provenance import commit, versions
from tas_ray.space import Budget, SearchSpace, SpaceConfig

MILLION = 10**6
SHARES = (0.25, 0.5, 0.75)
TABLE = Path("benchmarks/results/digits_table.csv")

Score = Callable[[Sequence[Architecture]], np.ndarray]
Row = dict[str, float | int | str | None]


def main() -> None:
    """Prints three tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", type=Path, default=TABLE, help="CSV with a column per choice, macs and score")
    parser.add_argument("--space", default="search_spaces.tiny:tiny", help="the space whose networks the table scores")
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--population", type=int, default=20, help="of the searches in the table")
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    record: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        **versions(),
        "commit": commit(),
    }
    record["first_population"] = shown("first population of 50", first_populations())
    record["shared_archive"] = shown("one search for all budgets", shared_archive(options.seeds))
    if options.table.exists():
        space = SpaceConfig(name=options.space)
        table = read(options.table, space.load(classes=options.classes, image_size=options.image_size))
        settings = scaled_settings(options.population, options.generations)
        record["table"] = shown(f"regret in {options.table}", regrets(table, settings, options.seeds))
    else:
        print(
            f"\n{options.table} is missing. It holds the score of every network of a small space: a row per network, "
            "a column per choice (channels or blocks, named as the choice), and the columns macs and score."
        )
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


def shown(title: str, rows: list[Row]) -> list[Row]:
    """The rows, which it prints."""
    print(f"\n{title}\n{pd.DataFrame(rows).to_string(index=False, float_format='%.4g')}", flush=True)
    return rows


def first_populations() -> list[Row]:
    """What it takes to draw the first population, for the budgets of the paper's tables."""
    v1, v2, resnet = mobilenet_v1(), mobilenet_v2(), resnet50()
    asked = [(v2, Budget(most=m * MILLION)) for m in (291, 140, 124, 105, 84, 43)]
    asked += [(v1, Budget(most=m * MILLION)) for m in (324, 149, 41)]
    asked += [(resnet, Budget(most=m * MILLION)) for m in (3000, 2000, 1000)]
    asked += [(resnet, Budget(least=950 * MILLION, most=1050 * MILLION))]
    asked += [(v2, Budget(least=43 * MILLION - 4000, most=43 * MILLION))]
    return [first_population(space, budget) for space, budget in asked]


def first_population(space: SearchSpace, budget: Budget) -> Row:
    """Of one budget: seconds, how many it drew, the share of the budget they use and how they differ."""
    space.macs(space.dense)  # the cost table is traced
    began = time.process_time()
    candidates = Search(space, [budget], Evolution(), seed=0).ask()
    seconds = time.process_time() - began
    values = space.cost.population([c.architecture for c in candidates])
    macs = np.array([c.macs for c in candidates])
    return {
        "space": space.name,
        "least": budget.least / MILLION,
        "most": budget.most / MILLION,
        "seconds": seconds,
        "candidates": len(candidates),
        "mean_use": float(macs.mean() / budget.most),
        "least_use": float(macs.min() / budget.most),
        "options_per_choice": float(np.mean([len(np.unique(column)) for column in values.T])),
    }


def shared_archive(seeds: int) -> list[Row]:
    """One search for three budgets against a search for each, at the published settings and equal evaluations."""
    space = mobilenet_v2()
    budgets = [space.budget(share) for share in SHARES]
    found: dict[str, list[list[float]]] = {"shared": [], "independent": [], "shared, no barrier": [], "random": []}
    for seed in range(seeds):
        score = synthetic(space, seed)
        published, drawn = Evolution(), Evolution(population=1000, generations=1)
        found["shared"].append(best_of(Search(space, budgets, published, seed=seed), score, len(budgets)))
        steady = Search(space, budgets, replace(published, barrier=False), seed=seed)
        found["shared, no barrier"].append(best_of(steady, score, len(budgets)))
        found["random"].append(best_of(Search(space, budgets, drawn, seed=seed), score, len(budgets)))
        alone = [Search(space, [budget], published, seed=seed) for budget in budgets]
        found["independent"].append([best_of(search, score, 1)[0] for search in alone])
    scores = {way: np.array(best) for way, best in found.items()}
    top = np.max(list(scores.values()), axis=0)
    gain = scores["shared"] - scores["independent"]
    return [
        {
            "budget": share,
            **{f"{way} regret": float((top - best)[:, place].mean()) for way, best in scores.items()},
            "shared gains": float(gain[:, place].mean()),
            "standard error": float(gain[:, place].std() / np.sqrt(seeds)),
        }
        for place, share in enumerate(SHARES)
    ]


def best_of(search: Search, score: Score, budgets: int) -> list[float]:
    """Drive a search to its end; the best score of each budget."""
    while not search.finished:
        candidates = search.ask()
        scores = score([c.architecture for c in candidates])
        for candidate, value in zip(candidates, scores.tolist(), strict=True):
            search.tell(candidate.ticket, value)
    return [search.best(budget)[0].score for budget in range(budgets)]


def synthetic(space: SearchSpace, seed: int) -> Score:
    """Scores concave in the logarithms of a network's widths, lower where neighbours do not fit, with fixed noise."""
    random = np.random.default_rng(seed)
    columns = 2 * len(space.cost.rows)
    worth, fit = random.uniform(0.2, 1, columns), random.uniform(0, 0.3, columns - 1)
    places = random.integers(1, 2**31, columns)
    dense = np.log1p(space.cost.signature(space.cost.population([space.dense])))

    def score(architectures: Sequence[Architecture]) -> np.ndarray:
        signature = space.cost.signature(space.cost.population(architectures))
        shares = np.log1p(signature) - dense
        noise = (signature @ places) % 997 / 997 * 0.1
        return shares.sum(axis=1) - shares**2 @ worth - np.diff(shares) ** 2 @ fit + noise

    return score


@dataclass(frozen=True)
class Table:
    """The scores of all networks of a small space."""

    space: SearchSpace
    macs: np.ndarray
    scores: np.ndarray
    by_network: dict[bytes, float]

    def score(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Of each; KeyError for a network that the table lacks."""
        rows = self.space.cost.signature(self.space.cost.population(architectures))
        return np.array([self.by_network[row.tobytes()] for row in rows])

    def best(self, budget: Budget) -> float:
        """The highest score that a budget admits."""
        return float(self.scores[(self.macs >= budget.least) & (self.macs <= budget.most)].max())


def read(path: Path, space: SearchSpace) -> Table:
    """A CSV with a column per searched choice, `macs` and `score`; the space's other choices are frozen.

    Raises:
        ValueError: the table is of another space: its choices are none of the space, or cost something else.
    """
    frame = pd.read_csv(path)
    names = [name for name in frame.columns if name not in ("macs", "score")]
    candidates = Candidates(
        options={name: tuple(sorted(frame[name].unique().tolist())) for name in names},
        freeze=tuple(choice.name for choice in space.choices if choice.name not in names),
    )
    space = replace(space, candidates=candidates)
    population = frame[[choice.name for choice in space.choices]].to_numpy()
    macs, scores = space.cost.macs(population), frame["score"].to_numpy()
    if (macs != frame["macs"]).any():
        raise ValueError(f"the MACs in {path} are not those of {space.name} at {space.image_size} pixels")
    networks = (row.tobytes() for row in space.cost.signature(population))
    return Table(space, macs, scores, dict(zip(networks, scores.tolist(), strict=True)))


def scaled_settings(population: int, generations: int) -> Evolution:
    """The published settings for another population: a fifth are parents, half mutants, half crossings."""
    half = population // 2
    parents = max(2, population // 5)
    return Evolution(
        population=population, parents=parents, mutations=half, crossovers=population - half, generations=generations
    )


def regrets(table: Table, settings: Evolution, seeds: int) -> list[Row]:
    """Mean regret of every way to choose, at equal evaluations, for each budget."""
    count = settings.population * settings.generations
    draws = replace(settings, population=count, generations=1)
    ways = {
        "evolution": settings,
        "evolution, no barrier": replace(settings, barrier=False),
        "random search": draws,
        "random search, uniform draws": replace(draws, initial="rejected"),
    }
    rows = []
    for share in SHARES:
        budget = table.space.budget(share)
        best = table.best(budget)
        row: Row = {"budget": share, "networks": int((table.macs <= budget.most).sum()), "evaluations": count}
        for name, way in ways.items():
            row[name] = mean_regret(table, budget, way, seeds)
        scaled = uniform(table.space, budget)
        row["uniform scaling"] = None if scaled is None else best - float(table.score([scaled])[0])
        rows.append(row)
    return rows


def mean_regret(table: Table, budget: Budget, settings: Evolution, seeds: int) -> float | None:
    """Over the seeds; None where uniform draws hardly ever meet the budget."""
    try:
        searches = [Search(table.space, [budget], settings, seed=seed) for seed in range(seeds)]
    except ValueError:
        return None
    return table.best(budget) - float(np.mean([best_of(search, table.score, 1)[0] for search in searches]))


def uniform(space: SearchSpace, budget: Budget) -> Architecture | None:
    """The largest admitted network with all blocks whose widths are all the same share of the options."""
    steps = max(len(width.options) for width in space.widths)
    for step in reversed(range(steps)):
        sizes = {
            choice.name: choice.options[round(step / max(1, steps - 1) * (len(choice.options) - 1))]
            if isinstance(choice, Width)
            else choice.full
            for choice in space.choices
        }
        architecture = Architecture(sizes)
        if budget.admits(space.macs(architecture)):
            return architecture
    return None


if __name__ == "__main__":
    main()
