"""Gauges of evolutionary searches on Ray's metrics endpoint, from where the dashboard and Prometheus read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ray.util.metrics import Gauge


class SearchGauges:
    """`tas_evaluated` and, for each budget, `tas_best_score`; shown for as long as a search tells its progress.

    It is called as a search calls its `on_progress`, which is often enough for Ray not to forget the gauges.
    """

    def __init__(self, *, run: str, method: str, seed: int, budgets: Sequence[float]) -> None:
        self._tags = {"run": run, "method": method, "seed": str(seed)}
        self._budgets = [f"{budget:g}" for budget in budgets]
        self._evaluated = Gauge(
            "tas_evaluated", description="networks a search has scored", tag_keys=("run", "method", "seed")
        )
        self._best = Gauge(
            "tas_best_score",
            description="the best score a search has found within a budget",
            tag_keys=("run", "method", "seed", "budget"),
        )

    def __call__(self, done: int, total: int, best: Sequence[float], seconds: float) -> None:
        self._evaluated.set(done, tags=self._tags)
        for budget, score in zip(self._budgets, best, strict=True):
            if not math.isnan(score):
                self._best.set(score, tags=self._tags | {"budget": budget})
