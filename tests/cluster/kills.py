"""What the tests that kill processes share: a quiet run to compare with, and a look at where a trial stands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.util.state import list_actors

from tas_ray import pipeline
from tas_ray.pipeline import Trial
from tas_ray.results import Result
from tas_ray.workers import FileCheckpoints, Workers, read_state

PATIENCE = 240.0
OWN = ("checkpoint", "search_seconds", "retrain_seconds", "finished_at", "commit")
"""What may differ between two runs of the same trial."""


def quiet(trial: Trial, folder: Path) -> Result:
    """The trial's result in this process, without Ray and without interruption; its files go to `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        copy = replace(trial, folder=folder)
        return pipeline.run(copy, Workers(), FileCheckpoints(folder / "state.pt"), lambda metrics: None)
    finally:
        torch.set_num_threads(threads)


def assert_same(folder: Path, other: Path) -> None:
    """Two runs of one trial ended with the same network, bit by bit, and the same row."""
    rows = [vars(pipeline.read_result(place / "result.json")) for place in (folder, other)]
    differing = {name: [row[name] for row in rows] for name in rows[0] if rows[0][name] != rows[1][name]}
    assert not {name: values for name, values in differing.items() if name not in OWN}
    weights = [(place / "network.safetensors").read_bytes() for place in (folder, other)]
    assert weights[0] == weights[1]


def state_files(folder: Path) -> list[Path]:
    """The checkpoints of the trial with this folder that Ray Train counts, oldest first."""
    for snapshot in folder.glob("train/*/checkpoint_manager_snapshot.json"):
        try:
            names = [one["checkpoint_dir_name"] for one in json.loads(snapshot.read_text())["checkpoint_results"]]
        except ValueError:  # being written
            return []
        return [snapshot.parent / name / "state.pt" for name in names]
    return []


def phase(folder: Path) -> str:
    """The phase in the middle of which a trial's latest checkpoint was written; empty between phases."""
    for file in reversed(state_files(folder)):
        try:
            return str(read_state(file)["phase"])
        except ValueError:  # just deleted, newer ones have come
            continue
    return ""


@contextmanager
def started(module: str, arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that starts a cluster of its own; killed in the end, which ends both."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    variables = {**os.environ, "RAY_TMPDIR": folder, **environment}
    command = [sys.executable, "-m", module, *arguments]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
            wait_for("the killed process's cluster to end", lambda: not left_of(folder))
            shutil.rmtree(folder, ignore_errors=True)


def left_of(folder: str) -> list[psutil.Process]:
    """The processes that are left of a cluster with this folder."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == folder and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    return left


def wait_for(what: str, condition: Callable[[], Any]) -> None:
    """Returns when the condition is true; fails if it never is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill_workers() -> None:
    """Ends the processes of all training workers of the connected cluster at once, without a word."""
    assert kill_actors("RayTrainWorker")


def kill_actors(class_name: str, most: int | None = None) -> int:
    """Ends the processes of so many (all) actors of a class of the connected cluster; how many there were."""
    alive = [("class_name", "=", class_name), ("state", "=", "ALIVE")]
    actors = list_actors(ray.get_runtime_context().gcs_address, filters=alive, detail=True)[:most]
    for actor in actors:
        os.kill(actor.pid, signal.SIGKILL)
    return len(actors)
