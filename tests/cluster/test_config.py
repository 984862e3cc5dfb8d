from pathlib import Path
from typing import Any

import pytest

from tas_ray.cluster.config import Asha, Optuna, Range, Resources
from tas_ray.methods.baselines import Dense, Random, Uniform
from tests.cluster.settings import settings

RATES = {"retrain.learning_rate": Range(low=0.01, high=0.1, log=True)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"workers": 2, "min_workers": 3}, "min_workers 3"),
        ({"cpus_per_worker": 0.0}, "cpus_per_worker is 0.0"),
        ({"gpus_per_worker": -1.0}, "gpus_per_worker is -1.0"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5"),
        ({"gpus_per_worker": 0.5, "workers": 2}, "NCCL"),
        ({"concurrent_trials": 0}, "concurrent_trials is 0"),
        ({"max_failures": -1}, "max_failures is -1"),
    ],
)
def test_impossible_resources_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Resources(**changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": "../elsewhere"}, "plain name"),
        ({"run": ""}, "plain name"),
        ({"methods": ()}, "at least one method"),
        ({"seeds": ()}, "one seed"),
        ({"methods": (Uniform(), Uniform())}, "no two may be the same"),
        ({"seeds": (1, 1)}, "no two may be the same"),
        ({"budgets": ()}, "name `budgets`"),
        ({"budgets": (-0.5,)}, "budgets are positive"),
        ({"budgets": (float("nan"),)}, "budgets are positive"),
        ({"grid": {"retrain.learning_rate": ()}}, "one or more different values"),
        ({"optuna": Optuna(parameters=RATES)}, "set `holdout`"),
        ({"asha": Asha()}, "set `holdout`"),
        ({"asha": Asha(), "holdout": True}, "none is swept"),
        (
            {"optuna": Optuna(parameters=RATES), "holdout": True, "grid": {"retrain.learning_rate": (0.1,)}},
            "leave it out of one",
        ),
        (
            {"optuna": Optuna(parameters=RATES, against_macs=True), "holdout": True, "asha": Asha()},
            "small network",
        ),
    ],
)
def test_impossible_sweeps_are_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings(tmp_path, **changes)


def test_a_sweep_of_the_dense_network_alone_needs_no_budget(tmp_path: Path) -> None:
    assert settings(tmp_path, methods=(Dense(),), budgets=()).budgets == ()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"parameters": {}}, "nothing to search"),
        ({"parameters": {"method.samples": (1,)}}, "at least two"),
        ({"parameters": RATES, "trials": 0}, "trials is 0"),
        ({"parameters": {"budget": Range(low=0.2, high=0.8)}}, "largest budget would always win"),
    ],
)
def test_impossible_studies_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Optuna(**changes)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (2.0, 1.0, False), (0.0, 1.0, True)])
def test_empty_ranges_are_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="range"):
        Range(low=low, high=high, log=log)


def test_asha_needs_an_epoch_and_a_reduction() -> None:
    with pytest.raises(ValueError, match="reduction_factor 1"):
        Asha(reduction_factor=1.0)


def test_budgets_are_named_or_searched_not_both(tmp_path: Path) -> None:
    searched = Optuna(parameters={"budget": Range(low=0.2, high=0.8)}, against_macs=True)
    settings(tmp_path, methods=(Random(),), budgets=(), optuna=searched, holdout=True)
    with pytest.raises(ValueError, match="one of the two"):
        settings(tmp_path, methods=(Random(),), budgets=(0.5,), optuna=searched, holdout=True)
