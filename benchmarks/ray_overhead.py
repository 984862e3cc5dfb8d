"""What Ray costs a sweep of trivial work: fresh process to row in the leaderboard, against the same work in process.

    python -m benchmarks.ray_overhead --out benchmarks/results/ray_overhead.json

Each measurement is a process of its own, imports and cluster start included. Wall times: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tas_ray.provenance import commit, versions

CASES = {
    "in process, 1 trial": ("local", 1),
    "sweep, 1 trial": ("sweep", 1),
    "sweep, 10 trials": ("sweep", 10),
}


def main() -> None:
    """Prints seconds per case and their ratios, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=["local", "sweep"], help="used by this program itself")
    parser.add_argument("--trials", type=int, default=1, help="used by this program itself")
    parser.add_argument("--folder", type=Path, help="used by this program itself")
    options = parser.parse_args()
    if options.case is not None:
        (_local if options.case == "local" else _sweep)(options.trials, options.folder)
        return
    seconds = {
        name: min(_measured(case, trials) for _ in range(options.repeats)) for name, (case, trials) in CASES.items()
    }
    baseline, single, ten = seconds.values()
    record = {
        "machine": platform.processor() or platform.machine(),
        **versions(),
        "commit": commit(),
        "repeats": options.repeats,
        "seconds, best of the repeats": seconds,
        "seconds Ray adds to one trial": single - baseline,
        "seconds of each further trial": (ten - single) / 9,
    }
    print(json.dumps(record, indent=2))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


def _measured(case: str, trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ray_overhead", "--case", case]
        began = time.perf_counter()
        subprocess.run([*command, "--trials", str(trials), "--folder", folder], check=True, stdout=subprocess.DEVNULL)
        assert len((Path(folder) / "overhead" / "leaderboard.csv").read_text().splitlines()) == trials + 1
        return time.perf_counter() - began


def _local(trials: int, folder: Path) -> None:
    from tas_ray.data import DataConfig
    from tas_ray.methods.baselines import Dense
    from tas_ray.pipeline import Trial, run
    from tas_ray.results import write_leaderboard
    from tas_ray.space import SpaceConfig
    from tas_ray.train import Training
    from tas_ray.workers import FileCheckpoints, Workers

    for seed in range(trials):
        place = folder / "overhead" / f"dense-seed{seed}"
        trial = Trial(
            run="overhead",
            name=place.name,
            folder=place,
            space=SpaceConfig(),
            data=DataConfig(),
            method=Dense(),
            budget=None,
            seed=seed,
            retrain=Training(epochs=1, warmup_epochs=0),
        )
        run(trial, Workers(), FileCheckpoints(place / "state.pt"), lambda metrics: None)
    write_leaderboard(folder / "overhead")


def _sweep(trials: int, folder: Path) -> None:
    from tas_ray.cluster.config import Sweep
    from tas_ray.cluster.sweep import sweep
    from tas_ray.methods.baselines import Dense
    from tas_ray.train import Training

    trivial = Training(epochs=1, warmup_epochs=0)
    sweep(
        Sweep(
            run="overhead",
            storage=folder,
            methods=(Dense(),),
            seeds=tuple(range(trials)),
            teacher=trivial,
            retrain=trivial,
        )
    )


if __name__ == "__main__":
    main()
