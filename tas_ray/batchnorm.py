"""Running statistics of BatchNorm for one architecture of a supernet: those it trained with belong to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tas_ray.data import Dataset, Split
from tas_ray.randomness import generator

BATCHES = 64
"""With BatchNorm's momentum of 0.1, what was there before keeps a weight of 0.9^64, 0.1 %."""

BATCH_SIZE = 128


def recalibrate(network: nn.Module, batches: Iterable[Tensor], *, cumulative: bool = False) -> None:
    """Passes images through `network` until its running statistics are theirs; trains nothing.

    Args:
        cumulative: `nn.BatchNorm2d` modules start anew and average all batches alike, so that their order
            does not matter; otherwise later batches count more, by their momentum.
    """
    if cumulative:
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None
    network.train()
    with torch.no_grad():
        for images in batches:
            network(images)


def random_batches(dataset: Dataset, split: Split, *, seed: int) -> Iterator[Tensor]:
    """Random images of a split without augmentation, the same on every worker."""
    size = min(BATCH_SIZE, dataset.size(split))
    steps = (
        (step, torch.randint(dataset.size(split), (size,), generator=generator("cpu", "recalibrate", seed, step)))
        for step in range(BATCHES)
    )
    return (images for images, _ in dataset.batches(split, steps, augment=False, seed=seed))


def fold(network: nn.Module) -> None:
    """Merges every BatchNorm of a plain network into the convolution before it, for evaluation only."""
    for layer in network.modules():
        children = dict(layer.named_children())
        conv, norm = children.get("conv"), children.get("bn")
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            layer.add_module("bn", nn.Identity())
