import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd

from tests.cluster.conftest import ROOT
from tests.cluster.kills import PATIENCE, free_port, left_of, wait_for

BIN = Path(sys.executable).parent
JOB = '''
from pathlib import Path

from tas_ray.cli import job
from tas_ray.cluster.config import Sweep
from tas_ray.methods.baselines import Uniform
from tas_ray.train import Training


def one_trial(*, storage: Path) -> Sweep:
    """One uniformly scaled network."""
    training = Training(epochs=1, warmup_epochs=0)
    return Sweep(
        run="submitted",
        storage=storage,
        methods=(Uniform(),),
        budgets=(0.5,),
        teacher=training,
        retrain=training,
        distillation=None,
    )


if __name__ == "__main__":
    job(one_trial)
'''


def test_a_job_is_submitted_from_a_checkout_to_a_running_cluster(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for package in ("tas_ray", "search_spaces", "jobs"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "jobs" / "one_trial.py").write_text(JOB)
    with running_cluster() as address:
        command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m"]
        submit = partial(
            subprocess.run,
            [*command, "jobs.one_trial", "--storage", tmp_path / "runs"],
            cwd=checkout,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        submitted = submit()
        for _ in range(60):  # a cluster that has just started has no agent for a moment
            if "No available agent" not in submitted.stderr:
                break
            time.sleep(1)
            submitted = submit()
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "uniform-0.5-seed0" in submitted.stdout
    assert "succeeded" in submitted.stdout
    (row,) = pd.read_csv(tmp_path / "runs" / "submitted" / "leaderboard.csv").to_dict("records")
    assert (row["run"], row["workers"]) == ("submitted", 1)


@contextmanager
def running_cluster() -> Iterator[str]:
    """A cluster started as a user starts one; the address of its dashboard."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {**os.environ, "RAY_TMPDIR": folder, "PATH": f"{BIN}:{os.environ['PATH']}"}
    del environment["PYTHONPATH"]
    ports = {name: free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
    options = ["--head", "--block", *(f"--{name}={port}" for name, port in ports.items())]
    with subprocess.Popen([BIN / "ray", "start", *options], env=environment, stdout=subprocess.DEVNULL) as ray:
        try:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            wait_for("the dashboard", lambda: answers(f"{address}/api/jobs/") or ray.poll() is not None)
            assert ray.poll() is None, "`ray start` has failed"
            yield address
        finally:
            ray.terminate()
            ray.wait(timeout=PATIENCE)
            for process in left_of(folder):
                process.kill()
            wait_for("the cluster to end", lambda: not left_of(folder))
            shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
