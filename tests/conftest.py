"""How the tests are shared out among processes: those of `tests/cluster` stay together, beside one Ray instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

CLUSTER = Path(__file__).parent / "cluster"


class OneCluster(LoadFileScheduling):
    """Whole files to each process (`pytest -n`), all files of `tests/cluster` to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return "tests/cluster" if scope.startswith("tests/cluster/") else scope


@pytest.hookimpl(optionalhook=True)  # so that `-p no:xdist` works
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneCluster:
    return OneCluster(config, log)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
