import pickle
import signal
from pathlib import Path

import pandas as pd
import torch

from tas_ray.cluster.config import Resources, Sweep
from tas_ray.cluster.plan import plan_sweep
from tas_ray.data import load
from tas_ray.methods.baselines import Uniform
from tas_ray.workers import read_state, write_state
from tests.cluster.kills import assert_same, phase, quiet, started, wait_for
from tests.cluster.settings import settings, tas, training

DRIVER, NODES = "tests.cluster.driver", "tests.cluster.nodes"
HOUR = 3600.0


def pickled(config: Sweep, folder: Path) -> str:
    path = folder / "sweep.pickle"
    path.write_bytes(pickle.dumps(config))
    return str(path)


def test_a_driver_killed_in_search_and_interrupted_in_retraining_ends_with_the_leaderboard_of_a_quiet_run(
    tmp_path: Path,
) -> None:
    config = settings(
        tmp_path,
        methods=(Uniform(), tas(20)),
        retrain=training(20),
        checkpoint_seconds=0.0,
        resources=Resources(concurrent_trials=1),
    )
    uniform, searched = plan_sweep(config, load(config.data, torch.device("cpu"))).trials
    with started(DRIVER, [pickled(config, tmp_path)], tmp_path / "first.log"):
        wait_for("a checkpoint of the search", lambda: phase(searched.folder) == "search")  # and SIGKILL
    pretend_an_hour_of_search(searched.folder)
    finished = (uniform.folder / "result.json").stat().st_mtime_ns

    log = tmp_path / "second.log"
    with started(DRIVER, [pickled(config, tmp_path)], log) as second:
        wait_for("a checkpoint of retraining", lambda: phase(searched.folder) == "retrain")
        second.send_signal(signal.SIGINT)
        assert second.wait(timeout=60) != 0
    assert log.read_text().rstrip().endswith("KeyboardInterrupt")

    log = tmp_path / "last.log"
    with started(DRIVER, [pickled(config, tmp_path)], log) as last:
        assert last.wait(timeout=240) == 0, log.read_text()

    assert (uniform.folder / "result.json").stat().st_mtime_ns == finished  # not run again
    table = pd.read_csv(config.folder / "leaderboard.csv").set_index("trial")
    assert sorted(table.index) == ["tas-0.5-seed0", "uniform-0.5-seed0"]
    assert table.loc["tas-0.5-seed0", "search_seconds"] > HOUR  # went on from the checkpoint, not from the start
    for trial in (uniform, searched):
        quiet(trial, tmp_path / "quiet" / trial.name)
        assert_same(trial.folder, tmp_path / "quiet" / trial.name)


def pretend_an_hour_of_search(folder: Path) -> None:
    """Marks the checkpoints of a trial, to see later whether it went on from one of them."""
    for file in folder.glob("train/*/checkpoint_*/state.pt"):
        try:
            state = read_state(file)
        except ValueError:  # cut short by the kill, so never counted
            continue
        write_state(state | {"seconds": {"search": HOUR}}, file)


def test_nodes_killed_in_search_and_retraining_end_with_the_leaderboard_of_a_quiet_run(tmp_path: Path) -> None:
    config = settings(tmp_path, methods=(tas(25),), retrain=training(25), checkpoint_seconds=0.0)
    (trial,) = plan_sweep(config, load(config.data, torch.device("cpu"))).trials
    arguments = [pickled(config, tmp_path), str(trial.folder), "search,retrain", "replace"]
    log = tmp_path / "nodes.log"
    with started(NODES, arguments, log, **SMALL_NODES) as process:
        assert process.wait(timeout=280) == 0, log.read_text()
    quiet(trial, tmp_path / "quiet")
    assert_same(trial.folder, tmp_path / "quiet")


def test_an_elastic_trial_goes_on_with_fewer_workers_when_a_node_is_killed(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        retrain=training(60),
        checkpoint_seconds=0.0,
        resources=Resources(workers=2, min_workers=1),
    )
    (trial,) = plan_sweep(config, load(config.data, torch.device("cpu"))).trials
    arguments = [pickled(config, tmp_path), str(trial.folder), "retrain", "lose"]
    log = tmp_path / "nodes.log"
    with started(NODES, arguments, log, **SMALL_NODES) as process:
        assert process.wait(timeout=280) == 0, log.read_text()
    (row,) = pd.read_csv(config.folder / "leaderboard.csv").to_dict("records")
    assert row["workers"] == 1


SMALL_NODES = {
    "RAY_OVERRIDE_RESOURCES": "",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
