import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import torch

from tas_ray.cluster.config import Resources, Sweep
from tas_ray.cluster.plan import plan_sweep
from tas_ray.data import load
from tas_ray.methods.baselines import Uniform
from tas_ray.workers import read_state, write_state
from tests.cluster.kills import assert_same, phase, quiet, wait_for
from tests.cluster.settings import settings, tas, training


@contextmanager
def driver(config: Sweep, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, with a cluster of its own, that runs the sweep; killed in the end, which ends both."""
    pickled = log.with_suffix(".pickle")
    pickled.write_bytes(pickle.dumps(config))
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {**os.environ, "RAY_TMPDIR": folder}
    command = [sys.executable, "-m", "tests.cluster.driver", str(pickled)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        yield process
        process.send_signal(signal.SIGKILL)
    wait_for("the killed driver's cluster to end", lambda: not left_of(folder))
    shutil.rmtree(folder, ignore_errors=True)


def test_a_driver_killed_in_search_and_retraining_ends_with_the_leaderboard_of_a_quiet_run(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        methods=(Uniform(), tas(20)),
        retrain=training(20),
        checkpoint_seconds=0.0,
        resources=Resources(concurrent_trials=1),
    )
    uniform, searched = plan_sweep(config, load(config.data, torch.device("cpu"))).trials
    for moment in ("search", "retrain"):
        with driver(config, tmp_path / f"{moment}.log"):
            wait_for(f"a checkpoint of {moment}", lambda moment=moment: phase(searched.folder) == moment)
        if moment == "search":
            pretend_hours_of_search(searched.folder)
            finished = (uniform.folder / "result.json").stat().st_mtime_ns
    with driver(config, tmp_path / "last.log") as last:
        assert last.wait(timeout=300) == 0, (tmp_path / "last.log").read_text()

    assert (uniform.folder / "result.json").stat().st_mtime_ns == finished  # not run again
    table = pd.read_csv(config.folder / "leaderboard.csv").set_index("trial")
    assert sorted(table.index) == ["tas-0.5-seed0", "uniform-0.5-seed0"]
    assert table.loc["tas-0.5-seed0", "search_seconds"] > 3600  # went on from the checkpoint, not from the start
    for trial in (uniform, searched):
        quiet(trial, tmp_path / "quiet" / trial.name)
        assert_same(trial.folder, tmp_path / "quiet" / trial.name)


def left_of(folder: str) -> list[psutil.Process]:
    """The processes that are left of the cluster in a folder."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == folder and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    return left


def pretend_hours_of_search(folder: Path) -> None:
    """Marks the checkpoints of a trial, to see later whether it went on from one of them."""
    for file in folder.glob("train/*/checkpoint_*/state.pt"):
        try:
            state = read_state(file)
        except ValueError:  # cut short by the kill, so never counted
            continue
        write_state(state | {"seconds": {"search": 3600.0}}, file)
