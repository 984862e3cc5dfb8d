"""Evaluators that score by a formula, note what they do and misbehave on demand, and the small search they score."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tas_ray.choices import Architecture
from tas_ray.evolution import Evolution, Search
from tas_ray.randomness import seed_of
from tas_ray.scores import Journal, search_here
from tas_ray.space import load

CONTEXT = "0123456789abcdef" * 2


def search(barrier: bool = True) -> Search:
    """A search of 96 candidates for two budgets."""
    space = load("search_spaces.tiny:tiny", classes=10, image_size=8)
    settings = Evolution(population=12, parents=4, mutations=6, crossovers=6, generations=4, barrier=barrier)
    return Search(space, [space.budget(0.5), space.budget(0.7, window=0.2)], settings, seed=3)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Scores by a formula: between 0 and 1, or for one in eight networks NaN."""

    notes: Path
    seconds: float = 0.0

    def setup(self) -> None:
        self.notes.mkdir(parents=True, exist_ok=True)
        (self.notes / f"slot-{os.getpid()}").touch()

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        return [self.score(architecture) for architecture in architectures]

    def score(self, architecture: Architecture) -> float:
        with (self.notes / "evaluated").open("a") as file:
            file.write(json.dumps(dict(architecture)) + "\n")
        time.sleep(self.seconds)
        random = seed_of("score", json.dumps(dict(architecture), sort_keys=True))
        return math.nan if random % 8 == 0 else random % 1000 / 1000

    def once(self, what: Architecture) -> bool:
        """Whether this is asked for the first time, by whatever process."""
        try:
            (self.notes / f"once-{seed_of(json.dumps(dict(what)))}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class Deadly(Formula):
    """Some networks kill the process that evaluates them, the first time."""

    deadly: Sequence[Architecture]

    def score(self, architecture: Architecture) -> float:
        if architecture in self.deadly and self.once(architecture):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(architecture)


@dataclass(frozen=True, kw_only=True)
class Stuck(Formula):
    """One network is never finished, the first time."""

    where: Architecture

    def score(self, architecture: Architecture) -> float:
        if architecture == self.where and self.once(architecture):
            time.sleep(3600)
        return super().score(architecture)


@dataclass(frozen=True, kw_only=True)
class Faulty(Formula):
    """Raises an error at one network, or already in `setup`."""

    error: Exception
    where: Architecture | None = None

    def setup(self) -> None:
        super().setup()
        if self.where is None:
            raise self.error

    def score(self, architecture: Architecture) -> float:
        if architecture == self.where:
            raise self.error
        return super().score(architecture)


@dataclass
class Said:
    """Remembers what was told about the progress."""

    lines: list[tuple[int, int, list[float], float]] = field(default_factory=list)

    def __call__(self, done: int, total: int, best: Sequence[float], seconds: float) -> None:
        self.lines.append((done, total, list(best), seconds))


def asked(notes: Path) -> list[Architecture]:
    """What was evaluated, in order, where these notes are kept."""
    file = notes / "evaluated"
    lines = file.read_text().splitlines() if file.exists() else []
    return [Architecture(json.loads(line)) for line in lines]


def scores(folder: Path) -> dict[Architecture, float | None]:
    """What the journal in a folder says; a test fails if a network is there twice."""
    text = Journal(folder, CONTEXT).path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    found = {Architecture(line["architecture"]): line["score"] for line in lines}
    assert len(found) == len(lines)
    return found


def answers(search: Search) -> list[list[tuple[Architecture, float]]]:
    """All the best of each budget, in order."""
    return [[(one.architecture, one.score) for one in search.best(budget, 1000)] for budget in (0, 1)]


def quiet_search(folder: Path, barrier: bool = True) -> Search:
    """The search driven to its end in this process, without Ray; its journal lies in the folder."""
    mine = search(barrier)
    search_here(mine, Formula(notes=folder / "notes"), Journal(folder, CONTEXT), Said())
    return mine
