"""Running statistics of BatchNorm for one architecture of a supernet: those it trained with belong to all of them."""

from __future__ import annotations

import torch
from torch import nn

from tas_ray.data import Dataset, Split
from tas_ray.randomness import generator
from tas_ray.train import Training
from tas_ray.workers import Workers

BATCHES = 64
"""With BatchNorm's momentum of 0.1, what was there before keeps a weight of 0.9^64, 0.1 %."""

BATCH_SIZE = 128


def recalibrate(
    network: nn.Module, dataset: Dataset, split: Split, training: Training, workers: Workers, *, seed: int
) -> None:
    """Passes random images of a split through `network` until its running statistics are theirs; trains nothing.

    Every worker does the same, so all end with the same statistics.
    """
    size = min(BATCH_SIZE, dataset.size(split))
    steps = (
        (
            step,
            torch.randint(dataset.size(split), (size,), generator=generator("cpu", "recalibrate", seed, step)),
        )
        for step in range(BATCHES)
    )
    dtype = training.dtype(workers.device)
    network.train()
    with torch.no_grad(), torch.autocast(workers.device.type, dtype, enabled=dtype != torch.float32):
        for images, _ in dataset.batches(split, steps, augment=False, seed=seed):
            network(images)
