"""How the tests are shared out among processes: those of `tests/cluster` stay together, beside two Ray instances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

CLUSTER = Path(__file__).parent / "cluster"
SEARCHES = ("population", "searches", "fidelity", "driver")
"""About half of what the files of `tests/cluster` take."""


class TwoClusters(LoadFileScheduling):
    """Whole files to each process (`pytest -n`), the files of `tests/cluster` to two, which start a cluster each."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        if not scope.startswith("tests/cluster/"):
            return scope
        return f"searches on a cluster: {Path(scope).stem.removeprefix('test_') in SEARCHES}"


@pytest.hookimpl(optionalhook=True)  # so that `-p no:xdist` works
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TwoClusters:
    return TwoClusters(config, log)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
