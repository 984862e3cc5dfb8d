import pytest

from tas_ray.cluster.config import Resources
from tas_ray.cluster.resources import check_resources

SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 8.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("resources", "nodes", "trials"),
    [
        (Resources(), [SMALL], 2),
        (Resources(cpus_per_worker=0.5), [SMALL], 4),
        (Resources(cpus_per_worker=0.1), [{"CPU": 0.3}], 3),
        (Resources(workers=2), [SMALL, SMALL], 2),
        (Resources(workers=3, cpus_per_worker=2.0), [SMALL, SMALL, SMALL], 1),
        (Resources(workers=4, min_workers=2), [SMALL], 1),
        (Resources(cpus_per_worker=4.0), [SMALL, LARGE], 2),
        (Resources(gpus_per_worker=1.0), [LARGE, GPUS], 2),
        (Resources(gpus_per_worker=0.25), [GPUS], 8),
        (Resources(gpus_per_worker=0.3), [GPUS], 6),
        (Resources(gpus_per_worker=0.6), [GPUS], 2),
        (Resources(cpus_per_worker=4.0, gpus_per_worker=0.25), [GPUS], 2),
    ],
)
def test_as_many_trials_run_at_once_as_the_nodes_hold(
    resources: Resources, nodes: list[dict[str, float]], trials: int
) -> None:
    assert check_resources(resources, nodes) == trials


@pytest.mark.parametrize(
    ("resources", "nodes", "numbers"),
    [
        (Resources(workers=3), [SMALL], r"3 worker\(s\) of 1 CPU.* room for 2: its nodes have 2 CPU"),
        (Resources(cpus_per_worker=4.0), [SMALL, SMALL], "4 CPU.* room for 0: its nodes have 2 CPU, 2 CPU"),
        (Resources(gpus_per_worker=1.0), [LARGE], "1 CPU \\+ 1 GPU.* 8 CPU \\+ 0 GPU"),
        (Resources(workers=3, gpus_per_worker=1.0), [GPUS], "room for 2"),
        (Resources(gpus_per_worker=4.0), [GPUS, GPUS], "room for 0"),
        (Resources(), [], "no node"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused_with_the_numbers(
    resources: Resources, nodes: list[dict[str, float]], numbers: str
) -> None:
    with pytest.raises(ValueError, match=numbers):
        check_resources(resources, nodes)
