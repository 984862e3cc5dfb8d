from pathlib import Path

import pytest
import torch

from tas_ray.cluster.config import Optuna, Range
from tas_ray.cluster.plan import Study, plan_sweep
from tas_ray.cluster.studies import search
from tas_ray.data import DataConfig, load
from tas_ray.methods.baselines import Random
from tests.cluster.settings import settings

ACCURACY = Optuna(parameters={"retrain.learning_rate": Range(low=0.01, high=1.0, log=True)}, trials=5)
FRONT = Optuna(parameters={"budget": Range(low=0.2, high=0.9)}, trials=20, against_macs=True, population=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def study(folder: Path, config: Optuna) -> Study:
    budgets = () if "budget" in config.parameters else (0.5,)
    made = settings(folder, methods=(Random(),), budgets=budgets, optuna=config, holdout=True)
    (only,) = plan_sweep(made, load(DataConfig(), torch.device("cpu"))).studies
    return only


def test_a_killed_study_counts_what_is_finished_and_begins_with_what_was_not(folder: Path) -> None:
    one = study(folder, ACCURACY)
    searcher, missing = search(one, ACCURACY, folder)
    assert missing == 5
    values = {name: searcher.suggest(name) for name in "abcd"}
    searcher.on_trial_complete("a", {"validation_accuracy": 0.7})
    searcher.on_trial_complete("b", {"validation_accuracy": 0.0, "error": "diverged"})

    again, missing = search(one, ACCURACY, folder)  # c and d were under way when the driver was killed
    assert missing == 4
    resumed = [again.suggest(name) for name in "xyz"]
    assert resumed == [values["b"], values["c"], values["d"]]
    assert again.suggest("new") not in values.values()


def test_being_killed_twice_lines_nothing_up_twice(folder: Path) -> None:
    one = study(folder, ACCURACY)
    first = search(one, ACCURACY, folder)[0].suggest("a")
    search(one, ACCURACY, folder)
    searcher, missing = search(one, ACCURACY, folder)
    assert missing == 5
    assert searcher.suggest("b") == first
    assert searcher.suggest("c") != first


def test_a_resumed_study_does_not_repeat_the_draws_of_its_beginning(folder: Path) -> None:
    one = study(folder, ACCURACY)
    searcher, _ = search(one, ACCURACY, folder)
    seen = []
    for name in "abc":
        seen.append(searcher.suggest(name))
        searcher.on_trial_complete(name, {"validation_accuracy": 0.5})
    again, missing = search(one, ACCURACY, folder)
    assert missing == 2
    assert again.suggest("d") not in seen


def test_whole_ranges_choices_and_ranges_become_what_they_say(folder: Path) -> None:
    config = Optuna(
        parameters={
            "retrain.batch_size": Range(low=2, high=4),
            "retrain.schedule": ("cosine", "linear"),
            "retrain.momentum": Range(low=0.5, high=0.6),
        }
    )
    searcher, _ = search(study(folder, config), config, folder)
    for number in range(10):
        values = searcher.suggest(str(number))
        assert values["retrain.batch_size"] in (2, 3, 4)
        assert values["retrain.schedule"] in ("cosine", "linear")
        assert 0.5 <= values["retrain.momentum"] <= 0.6


def test_the_front_moves_to_where_small_networks_are_as_accurate(folder: Path) -> None:
    """Above a budget of 0.4 nothing is gained, below it accuracy is lost: later generations crowd at and below it."""
    one = study(folder, FRONT)
    budgets = []
    for driver in range(5):  # killed and started again after every generation
        searcher, missing = search(one, FRONT, folder)
        assert missing == 20 - 4 * driver
        for number in range(4):
            budget = searcher.suggest(str(number))["budget"]
            budgets.append(budget)
            result = {"validation_accuracy": min(budget, 0.4), "macs": budget * 1e6}
            searcher.on_trial_complete(str(number), result)
    assert sum(budgets[-8:]) / 8 < sum(budgets[:8]) / 8
    assert search(one, FRONT, folder)[1] == 0
