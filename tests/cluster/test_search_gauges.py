import math
from typing import Any

import pytest

from tas_ray.cluster import search_gauges
from tas_ray.cluster.search_gauges import SearchGauges


class Shown:
    """In place of Ray's gauges: what was set, by name and budget."""

    values: dict[tuple[str, str | None], float]

    def __init__(self, name: str, **about: Any) -> None:
        self._name, self._tags = name, set(about["tag_keys"])

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._tags
        assert (tags["run"], tags["method"], tags["seed"]) == ("many", "metapruning", "3")
        self.values[self._name, tags.get("budget")] = value


def test_a_search_shows_how_many_it_scored_and_the_best_of_each_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    Shown.values = {}
    monkeypatch.setattr(search_gauges, "Gauge", Shown)
    gauges = SearchGauges(run="many", method="metapruning", seed=3, budgets=(0.25, 0.5))
    gauges(3, 100, [math.nan, 0.75], 1.5)
    assert Shown.values == {("tas_evaluated", None): 3, ("tas_best_score", "0.5"): 0.75}
    gauges(5, 100, [0.5, 0.875], 2.5)
    assert Shown.values[("tas_evaluated", None)] == 5
    assert (Shown.values["tas_best_score", "0.25"], Shown.values["tas_best_score", "0.5"]) == (0.5, 0.875)
