"""A driver of a population search to be killed: given a folder, and a place for notes."""

from __future__ import annotations

import sys
from pathlib import Path

from tas_ray.cluster.population import search_population
from tests.cluster.evaluators import CONTEXT, Formula, Said, search

if __name__ == "__main__":
    search_population(
        search(),
        Formula(notes=Path(sys.argv[2]), seconds=0.1),
        context=CONTEXT,
        folder=Path(sys.argv[1]),
        slots=2,
        resources={"CPU": 1.0},
        on_progress=Said(),
    )
