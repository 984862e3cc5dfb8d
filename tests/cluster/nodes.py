"""Several nodes on one machine, for tests that take nodes away: a script, for Ray starts nodes in main threads only.

Runs the sweep that was pickled into the file it is given on two nodes of one CPU each. Each time a checkpoint of one of
the phases it is told lies there, the node of a worker is killed, and with "replace" another one comes in its place.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from tas_ray.cluster.config import Sweep
from tas_ray.cluster.sweep import sweep
from tests.cluster.kills import free_port, phase, wait_for


def main(pickled: Path, trial: Path, moments: list[str], replace: bool) -> None:
    folder = Path(os.environ["RAY_TMPDIR"]) / "ray"
    folder.mkdir()
    node = {"num_cpus": 1, "temp_dir": str(folder)}
    head = {"num_cpus": 0, "temp_dir": str(folder), "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**node) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    config: Sweep = pickle.loads(pickled.read_bytes())
    driver = threading.Thread(target=lambda: print(sweep(config)), daemon=True)
    driver.start()
    for moment in moments:
        wait_for(f"a checkpoint of {moment}", lambda moment=moment: phase(trial) == moment)
        workers = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")], detail=True)
        (busy, *_) = [one for one in nodes if one.node_id == workers[0].node_id]
        if replace:
            nodes.append(cluster.add_node(**node))
        nodes.remove(busy)
        cluster.remove_node(busy, allow_graceful=False)
    driver.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4] == "replace")
