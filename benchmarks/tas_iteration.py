"""What a TAS iteration costs: one weight step and one architecture step over one plain training step of the network.

    python -m benchmarks.tas_iteration --device cpu --threads 1

Times are medians of repeated steps, taken in turn so that other load on the machine meets all alike: CPU seconds of
the process on a CPU (at one thread the work done, whatever else runs), wall time on a GPU. Memory is what autograd
keeps for the backward pass, and the peak: of the allocator on a GPU, of a process of its own on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tas_ray.methods.tas import Tas
from tas_ray.provenance import commit, versions
from tas_ray.space import load
from tas_ray.train import Classification, Task, Training, placed, train_step
from tas_ray.workers import Workers

WARM_UP = 5


@dataclass(frozen=True)
class Bench:
    """A task's steps on one fixed batch."""

    task: Task
    images: Tensor
    labels: Tensor
    workers: Workers
    dtype: torch.dtype

    def step(self, group: int, number: int) -> None:
        """One optimizer step of the task's group."""
        part = self.task.groups[group]
        self.task.train()
        train_step(self.task, part, self.images, self.labels, number, 1.0, self.dtype, self.workers)


def main() -> None:
    """Prints a line per network and writes all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet32"])
    parser.add_argument("--tied", action="store_true", help="the tied spaces instead of the published ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(network, options) for network in options.networks]
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    record = {"device": where, "threads": options.threads, **versions(), "commit": commit(), "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


def measure(network: str, options: argparse.Namespace) -> dict[str, float | str | int]:
    """Ratios of one network."""
    device = torch.device(options.device)
    steps = steps_of(network, options)
    seconds = {name: statistics.median(times) for name, times in timed(steps, options.steps, device).items()}
    kept = {name: median_kept(step) for name, step in steps.items()}
    if device.type == "cuda":
        peaks = {name: peak_allocated(step, device) for name, step in steps.items()}
    else:
        peaks = {name: peak_resident(network, options, name) for name in steps}
    row: dict[str, float | str | int] = {
        "network": network + ("" if options.tied else "-published"),
        "batch": options.batch,
        "precision": str(Training(precision=options.precision).dtype(device)).removeprefix("torch."),
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "iteration_ratio": (seconds["weights"] + seconds["architecture"]) / seconds["plain"],
        "kept_for_backward_ratio": max(kept["weights"], kept["architecture"]) / kept["plain"],
        "peak_memory_ratio": max(peaks["weights"], peaks["architecture"]) / peaks["plain"],
    }
    print(
        " ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
    )
    return row


def steps_of(network: str, options: argparse.Namespace) -> dict[str, Callable[[int], None]]:
    """A plain training step of the network, and the two steps of a TAS iteration; called with the step's number."""
    device = torch.device(options.device)
    space = load(f"search_spaces.cifar_resnet:{network}", published=not options.tied)
    training = Training(batch_size=options.batch, precision=options.precision)
    images = torch.randn(options.batch, 3, 32, 32, device=device)
    labels = torch.randint(space.classes, (options.batch,), device=device)

    def bench(task: Task) -> Bench:
        placed(task, device)
        return Bench(task, images, labels, Workers(device=device), training.dtype(device))

    plain = bench(Classification(space.build(space.dense), training, "training"))
    search = bench(Tas(search=training).task(space, space.budget(0.5), seed=0))
    return {
        "plain": lambda number: plain.step(0, number),
        "weights": lambda number: search.step(0, number),
        "architecture": lambda number: search.step(1, number),
    }


def timed(steps: dict[str, Callable[[int], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step, `repeats` times in turn."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + repeats):
        for name, step in steps.items():
            if on_gpu:
                torch.cuda.synchronize()
            began = clock()
            step(number)
            if on_gpu:
                torch.cuda.synchronize()
            if number >= WARM_UP:
                times[name].append(clock() - began)
    return times


def median_kept(step: Callable[[int], None]) -> float:
    """Bytes that autograd keeps between forward and backward, each storage once; median of five steps."""
    return statistics.median(_kept(step, number) for number in range(5))


def _kept(step: Callable[[int], None], number: int) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(number)
    return sum(storages.values())


def peak_allocated(step: Callable[[int], None], device: torch.device) -> int:
    """The most bytes allocated on the GPU during a step, parameters and optimizer included."""
    torch.cuda.reset_peak_memory_stats(device)
    for number in range(5):
        step(number)
    return torch.cuda.max_memory_allocated(device)


def peak_resident(network: str, options: argparse.Namespace, name: str) -> int:
    """By how many KiB a new process grows while it runs steps of one kind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (network, options, name))


def _growth(network: str, options: argparse.Namespace, name: str) -> int:
    torch.set_num_threads(options.threads)
    step = steps_of(network, options)[name]
    before = _resident_peak()
    for number in range(5):
        step(number)
    return _resident_peak() - before


def _resident_peak() -> int:
    """The most KiB of memory this process has held so far (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
