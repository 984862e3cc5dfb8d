"""What a PruningNet's training step and the score of a candidate cost, over a plain implementation of both.

    python -m benchmarks.metapruning --space search_spaces.mobilenet_v2:mobilenet_v2 --image-size 96

The plain one generates every weight anew for every batch, in full, and cuts it; trains by autograd through the
generators and torch's SGD; recomputes statistics and classifies with BatchNorm as a layer of its own, in torch's usual
memory layout. Both compute the same structure on the same images. Times are CPU seconds of the process (wall time on a
GPU), medians of repeats taken in turn; memory is what gradients of all parameters take.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_ray.choices import Architecture
from tas_ray.evaluation import Evaluation, EvaluationImages, Evaluator
from tas_ray.methods.metapruning import MetaPruning, PruningTask, published_training
from tas_ray.methods.pruningnet import GeneratedConvBN, Generator, PruningNet
from tas_ray.provenance import commit, versions
from tas_ray.space import SearchSpace, load
from tas_ray.train import placed, train_step
from tas_ray.workers import Workers

WARM_UP = 2
CALIBRATION_BATCHES = EVALUATION_BATCHES = 4


def main() -> None:
    """Prints the ratios and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--space", default="search_spaces.mobilenet_v2:mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.365, help="MACs of the candidate over the dense ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    space = load(options.space, image_size=options.image_size)
    architecture = space.sample(space.budget(options.share, window=0.01), seed=0)
    task = MetaPruning(supernet=published_training()).task(space, seed=0)
    assert isinstance(task, PruningTask)
    placed(task, device)
    rows = [
        compared("training step", {"plain": plain_step, "ours": our_step}, task, architecture, options),
        compared("candidate", {"plain": plain_score, "ours": our_score}, task, architecture, options),
    ]
    record = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": options.threads,
        "space": options.space,
        "image_size": options.image_size,
        "batch": options.batch,
        "candidate_macs": space.macs(architecture),
        "gradient_bytes": gradient_bytes(task, architecture),
        **versions(),
        "commit": commit(),
        "rows": rows,
    }
    print(json.dumps(record, indent=2))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


Step = Callable[[], object]
Maker = Callable[[PruningTask, Architecture, argparse.Namespace], Step]


def compared(
    what: str, makers: dict[str, Maker], task: PruningTask, architecture: Architecture, options: argparse.Namespace
) -> dict[str, float | str]:
    """Median seconds of both, and their ratio."""
    steps = {name: make(task, architecture, options) for name, make in makers.items()}
    cuda = options.device.startswith("cuda")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(WARM_UP + options.repeats):
        for name, step in steps.items():
            began = time.perf_counter() if cuda else time.process_time()
            step()
            if cuda:
                torch.cuda.synchronize()
            passed = (time.perf_counter() if cuda else time.process_time()) - began
            if repeat >= WARM_UP:
                seconds[name].append(passed)
    medians = {f"{name}_seconds": statistics.median(times) for name, times in seconds.items()}
    return {"what": what, **medians, "ratio": medians["plain_seconds"] / medians["ours_seconds"]}


def batch_of(space: SearchSpace, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random images and labels on the device."""
    images = torch.randn(options.batch, 3, space.image_size, space.image_size, device=options.device)
    return images, torch.randint(space.classes, (options.batch,), device=options.device)


def our_step(task: PruningTask, architecture: Architecture, options: argparse.Namespace) -> Step:
    """A training step as the project takes it, on this structure or, in turn, on random ones in between.

    What a structure does not use is brought up to date later, so a step costs more after other structures: each step
    timed is one of a sequence of random structures.
    """
    images, labels = batch_of(task.space, options)
    workers = Workers(device=torch.device(options.device))
    numbers = iter(range(10**9))
    return lambda: train_step(task, task.groups[0], images, labels, next(numbers), 1.0, torch.float32, workers)


class PlainConvBN(nn.Module):
    """A generated convolution as the reference computes it, on the same parameters as `layer`."""

    def __init__(self, layer: GeneratedConvBN) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, structure = self.layer, self.layer.structure
        c_out, c_in = structure.size(layer.c_out), structure.size(layer.c_in)
        weight = full_weight(layer.generator, [structure.ratio(size) for size in layer.context])[:c_out, :c_in]
        groups = c_out if layer.depthwise else 1
        z = F.conv2d(x, weight, stride=layer.stride, padding=weight.shape[-1] // 2, groups=groups)
        return F.batch_norm(z, None, None, training=True)


def full_weight(generator: Generator, ratios: list[float]) -> Tensor:
    """The whole weight, differentiable."""
    hidden = generator.hidden(generator.weight1.new_tensor(ratios))
    return (generator.weight2.view(-1, len(hidden)) @ hidden).view(generator.shape)


def plain_net(task: PruningTask) -> PruningNet:
    """A PruningNet of the same size whose convolutions are plain ones."""
    other = MetaPruning(supernet=published_training()).task(task.space, seed=0)
    assert isinstance(other, PruningTask)
    device = next(task.parameters()).device
    net = other.net.to(device)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GeneratedConvBN):
                setattr(module, name, PlainConvBN(child))
    return net


def plain_step(task: PruningTask, architecture: Architecture, options: argparse.Namespace) -> Step:
    """A training step by autograd and torch's SGD, on the sequence of structures that `our_step` has."""
    net = plain_net(task)
    images, labels = batch_of(task.space, options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.9)
    numbers = iter(range(10**9))

    def step() -> None:
        optimizer.zero_grad()
        logits = net(images, task.structure(next(numbers)))
        F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
        optimizer.step()

    return step


def our_score(task: PruningTask, architecture: Architecture, options: argparse.Namespace) -> Step:
    """A candidate's score as the project computes it, weights included."""
    space, batch = task.space, options.batch
    settings = Evaluation(
        calibration_images=CALIBRATION_BATCHES * batch,
        calibration_batch=batch,
        batch_size=EVALUATION_BATCHES * batch,  # the same images, all at once
        precision="float32",
    )
    pixels = np.random.default_rng(0).integers(
        256, size=(EVALUATION_BATCHES * batch, 3, space.image_size, space.image_size), dtype=np.uint8
    )
    images = EvaluationImages(
        calibration=pixels,
        images=pixels,
        labels=np.zeros(len(pixels), dtype=np.int64),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        digest="",
    )
    evaluator = Evaluator(space, images, settings, torch.device(options.device))
    return lambda: evaluator.score(architecture, task.weights(architecture))


def plain_score(task: PruningTask, architecture: Architecture, options: argparse.Namespace) -> Step:
    """The same with the weights generated for every batch, in full, and nothing folded."""
    space = task.space
    network = space.build(architecture).to(options.device)
    places = dict(network.named_modules())
    layers = {name: module for name, module in task.net.network.named_modules() if isinstance(module, GeneratedConvBN)}
    batches = [batch_of(space, options) for _ in range(CALIBRATION_BATCHES + EVALUATION_BATCHES)]

    @torch.no_grad()
    def generated() -> None:
        structure = task.net.structure
        structure.numbers = architecture
        for name, layer in layers.items():
            conv = places[f"{name}.conv"]
            assert isinstance(conv, nn.Conv2d)
            full = full_weight(layer.generator, [structure.ratio(size) for size in layer.context])
            conv.weight.data = full[: structure.size(layer.c_out), : structure.size(layer.c_in)]

    @torch.no_grad()
    def score() -> None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        for number, (images, labels) in enumerate(batches):
            network.train(number < CALIBRATION_BATCHES)
            generated()
            (network(images).argmax(1) == labels).sum().item()

    return score


def gradient_bytes(task: PruningTask, architecture: Architecture) -> dict[str, int]:
    """What gradients take: of all parameters by autograd; of the generated weights a structure uses, which travel."""
    images = torch.randn(2, 3, task.space.image_size, task.space.image_size, device=next(task.parameters()).device)
    task.net(images, architecture).sum().backward()
    used = [generator.used.weight for generator in task.net.generators if generator.used is not None]
    return {
        "autograd": sum(4 * parameter.numel() for parameter in task.net.parameters()),
        "exchanged": sum(4 * weight.numel() for weight in used),
    }


if __name__ == "__main__":
    main()
