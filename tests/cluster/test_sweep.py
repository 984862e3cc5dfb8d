import json
import re
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import ray

from tas_ray import load_network
from tas_ray.cluster.config import Asha, Optuna, Range, Resources, Sweep
from tas_ray.cluster.sweep import sweep
from tas_ray.distill import Distillation
from tas_ray.methods.baselines import Dense, Random, Uniform
from tas_ray.results import read_result
from tests.cluster.settings import settings, tas, training

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def compared(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, pd.DataFrame]:
    """A finished sweep of all methods, with distillation."""
    config = settings(
        tmp_path_factory.mktemp("compared"),
        methods=(Dense(), tas(), Uniform(), Random()),
        distillation=Distillation(),
        teacher=training(2),
    )
    return config, sweep(config)


def test_a_sweep_ends_with_a_row_a_trial_and_the_files(compared: tuple[Sweep, pd.DataFrame]) -> None:
    config, table = compared
    assert sorted(table["method"]) == ["dense", "random", "tas", "uniform"]
    pruned = table[table["method"] != "dense"]
    assert (pruned["macs"] <= pruned["budget_macs"]).all()
    assert pruned["dense_accuracy"].nunique() == 1
    assert {path.name for path in config.folder.iterdir()} == {
        ".lock", "config.json", "leaderboard.csv", "leaderboard.png", "trials",
    }  # fmt: skip
    written = pd.read_csv(config.folder / "leaderboard.csv")
    assert list(written["trial"]) == list(table["trial"])
    for folder in (config.folder / "trials").iterdir():
        assert {path.name for path in folder.iterdir()} == {
            "result.json", "network.safetensors", "architecture.json",
        }  # fmt: skip
        assert load_network(folder) is not None


def test_the_same_call_again_repeats_nothing(compared: tuple[Sweep, pd.DataFrame]) -> None:
    config, table = compared
    files = {path: path.stat().st_mtime_ns for path in config.folder.glob("trials/*/*")}
    again = sweep(config)
    pd.testing.assert_frame_equal(again, table)
    assert {path: path.stat().st_mtime_ns for path in config.folder.glob("trials/*/*")} == files


def test_finished_trials_stay_visible_on_the_metrics_endpoint(compared: tuple[Sweep, pd.DataFrame]) -> None:
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    table = compared[1].set_index("trial")
    shown: dict[str, tuple[dict[str, str], float]] = {}
    deadline = time.monotonic() + 240
    while len(shown) < len(table) and time.monotonic() < deadline:
        shown = {tags["trial"]: (tags, value) for tags, value in accuracies(address) if tags["trial"] in table.index}
        time.sleep(0.5)
    assert set(shown) == set(table.index)
    for trial, (tags, value) in shown.items():
        assert value == pytest.approx(table.loc[trial, "test_accuracy"])
        assert (tags["run"], tags["phase"], tags["seed"]) == ("test", "finished", "0")
        assert tags["budget"] == ("dense" if tags["method"] == "dense" else "0.5")


def accuracies(address: str) -> list[tuple[dict[str, str], float]]:
    """Tags and value of every gauge of a test accuracy, those of earlier sweeps of this process among them."""
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_tas_test_accuracy")]
    return [(dict(re.findall(r'(\w+)="([^"]*)"', line)), float(line.split()[-1])) for line in lines]


def test_a_failed_trial_is_told_and_stops_no_other(tmp_path: Path) -> None:
    config = settings(tmp_path, grid={"retrain.learning_rate": (0.1, 1e30)}, retrain=training(2))
    with pytest.raises(RuntimeError, match=r"1 trial\(s\) failed") as caught:
        sweep(config)
    (name,) = re.findall(r"(uniform-0.5-seed0-\w+): .*training diverged", str(caught.value))
    assert "diverged" in (config.folder / "trials" / name / "error.txt").read_text()
    (row,) = pd.read_csv(config.folder / "leaderboard.csv").to_dict("records")
    assert json.loads(row["parameters"]) == {"retrain.learning_rate": 0.1}


def test_more_than_the_cluster_has_fails_at_once_with_the_numbers(tmp_path: Path) -> None:
    config = settings(tmp_path, resources=Resources(workers=5))
    with pytest.raises(ValueError, match=r"5 worker\(s\) of 1 CPU.*room for 4.*4 CPU"):
        sweep(config)
    assert not (config.folder / "trials").exists()


def test_weak_hyper_parameters_are_stopped_early(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        grid={"retrain.learning_rate": (0.1, 1e-7)},
        retrain=training(6),
        holdout=True,
        asha=Asha(grace_epochs=2, reduction_factor=2.0),
        checkpoint_seconds=0.0,
        resources=Resources(concurrent_trials=1),
    )
    (row,) = sweep(config).to_dict("records")
    assert json.loads(row["parameters"]) == {"retrain.learning_rate": 0.1}
    (stopped,) = config.folder.glob("trials/*/stopped.json")
    assert json.loads(stopped.read_text())["retrain_epoch"] == 2
    assert len(sweep(config)) == 1


def test_optuna_searches_accuracy_against_macs(tmp_path: Path) -> None:
    optuna = Optuna(
        parameters={"budget": Range(low=0.3, high=0.9), "retrain.learning_rate": (0.05, 0.1)},
        trials=2,
        against_macs=True,
        population=2,
    )
    config = settings(tmp_path, methods=(Random(),), budgets=(), optuna=optuna, holdout=True)
    table = sweep(config)
    assert 1 <= len(table) <= 2
    for row in table.to_dict("records"):
        values = json.loads(row["parameters"])
        assert 0.3 <= values["budget"] <= 0.9
        assert row["macs"] <= row["budget_macs"]
        assert row["budget_ratio"] == pytest.approx(values["budget"], abs=1e-5)
        assert row["validation_accuracy"] == read_result(Path(row["checkpoint"]) / "result.json").validation_accuracy
