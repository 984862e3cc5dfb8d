"""What the population scheduler adds to each candidate, against a plain pool of actors doing the same evaluations.

    python -m benchmarks.population --out benchmarks/results/population.json

Both score the same candidates of the same search in two processes; an evaluation sleeps. Measured is the time from the
first score to the last, medians of runs taken in turn. Start-up is told apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util import ActorPool

from tas_ray.choices import Architecture
from tas_ray.cluster.population import search_population
from tas_ray.cluster.tuner import connect
from tas_ray.evolution import Candidate, Evolution, Search
from tas_ray.provenance import commit, versions
from tas_ray.space import load

SLOTS = 2
CONTEXT = "benchmark" * 4
CASES = {0.0: (50, 20), 0.05: (50, 8), 1.0: (20, 5)}
"""Seconds of an evaluation: candidates of a generation, and generations."""


@dataclass(frozen=True)
class Sleeping:
    """Sleeps, and scores by the sum of the widths."""

    seconds: float

    def setup(self) -> None:
        """Nothing to prepare."""

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        scores = []
        for architecture in architectures:
            if self.seconds:
                time.sleep(self.seconds)
            scores.append(sum(architecture.values()) % 101 / 101)
        return scores


class Timed(Search):
    """A search that knows when it was told its first and its latest score."""

    first = latest = 0.0

    def tell(self, ticket: int, score: float) -> None:
        """See `Search.tell`."""
        self.latest = time.perf_counter()
        self.first = self.first or self.latest
        super().tell(ticket, score)


def main() -> None:
    """Prints seconds per candidate of both, and what one adds to the other, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    connect()
    record = {
        "machine": platform.processor() or platform.machine(),
        **versions(),
        "commit": commit(),
        "slots": SLOTS,
        "repeats": options.repeats,
        "seconds of an evaluation": {f"{seconds:g}": _case(seconds, options.repeats) for seconds in CASES},
    }
    print(json.dumps(record, indent=2))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


def _case(seconds: float, repeats: int) -> dict[str, float | int]:
    population, generations = CASES[seconds]
    runs = [(_measured(_pool, seconds), _measured(_population, seconds)) for _ in range(repeats)]
    pool, ours = (statistics.median(run[i][0] for run in runs) for i in (0, 1))
    pool_start, start = (statistics.median(run[i][1] for run in runs) for i in (0, 1))
    return {
        "candidates": population * generations,
        "generations": generations,
        "pool: seconds per candidate": pool,
        "population: seconds per candidate": ours,
        "added milliseconds per candidate": 1000 * (ours - pool),
        "added percent": 100 * (ours / pool - 1),
        "pool: seconds to the first score and after the last": pool_start,
        "population: seconds to the first score and after the last": start,
    }


def _measured(drive: Callable[[Timed, Sleeping], None], seconds: float) -> tuple[float, float]:
    """Seconds of a candidate between the first score and the last, and all other seconds."""
    population, generations = CASES[seconds]
    space = load("search_spaces.tiny:tiny", classes=10, image_size=8)
    half = population // 2
    evolution = Evolution(population=population, generations=generations, mutations=half, crossovers=half)
    search = Timed(space, [space.budget(0.5)], evolution, seed=0)
    began = time.perf_counter()
    drive(search, Sleeping(seconds))
    ended = time.perf_counter()
    assert search.evaluated == population * generations
    between = search.latest - search.first
    return between / (search.evaluated - SLOTS), ended - began - between


def _pool(search: Timed, evaluate: Sleeping) -> None:
    """A plain loop: two actors, and the next candidate for whichever is free."""
    pool = ActorPool([ray.remote(_Actor).remote(evaluate) for _ in range(SLOTS)])
    while candidates := search.ask():
        for ticket, score in pool.map_unordered(lambda actor, one: actor.evaluate.remote(one), candidates):
            search.tell(ticket, score)


class _Actor:
    """Evaluates one candidate at a time."""

    def __init__(self, evaluate: Sleeping) -> None:
        self._evaluate = evaluate
        evaluate.setup()

    def evaluate(self, candidate: Candidate) -> tuple[int, float]:
        """The candidate's ticket and score."""
        (score,) = self._evaluate([candidate.architecture])
        return candidate.ticket, score


def _population(search: Timed, evaluate: Sleeping) -> None:
    """The population scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        search_population(
            search,
            evaluate,
            context=CONTEXT,
            folder=Path(folder),
            slots=SLOTS,
            resources={"CPU": 1.0},
            on_progress=lambda *_: None,
        )


if __name__ == "__main__":
    main()
