"""One small local cluster for all tests that need one, with a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPUS = 4
"""Pretended, so that trials run side by side on any machine."""

# Before Ray is imported. Nothing goes to the home folder, and the cluster's processes find this checkout.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": CPUS}),
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """For what Ray writes; short, because the paths of sockets may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(ray_folder: Path) -> Iterator[None]:
    """A local cluster, started as a sweep starts one, which the sweeps of this process then share."""
    import ray

    from tas_ray.cluster.tuner import connect

    os.environ["RAY_TMPDIR"] = str(ray_folder)
    connect()
    yield
    ray.shutdown()
