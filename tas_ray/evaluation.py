"""How good an architecture is before it is retrained: its accuracy on the search split with weights it was given.

MetaPruning, section 3.2: the statistics of BatchNorm are recomputed for each architecture on training images, then
held-out training images are classified. All architectures see the same images in the same order, so a score repeats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tas_ray.augment import normalize
from tas_ray.batchnorm import fold, recalibrate
from tas_ray.choices import Architecture
from tas_ray.data import Dataset, Split
from tas_ray.randomness import generator, seed_of
from tas_ray.space import SearchSpace
from tas_ray.train import Precision, Training, placed

SCORED_SHARE = 0.8
"""Share of the search split that candidates are scored on; the rest tells how far their scores can be trusted."""

STANDARD_ERRORS = 4
LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """On which images a candidate is scored, and how."""

    calibration_images: int = 2500
    """Images of the train split that BatchNorm's statistics are computed on. The published code passes 100 000, of
    which (one GPU's share, weighted by a momentum) about 2 400 count."""

    calibration_batch: int = 125
    """Images of one batch of them."""

    batchnorm: Literal["cumulative", "ema"] = "cumulative"
    """All batches count alike, or later ones more (momentum 0.1, published), which leaves 12 % of the initial
    statistics after 20 batches."""

    images: int | None = None
    """Images of the search split that are classified, drawn once. Left out: four fifths of them. What is not scored on
    is what `tas-ray fidelity` measures retrained networks on."""

    batch_size: int = 500
    """Images of one batch of them."""

    precision: Precision = "auto"
    """As in training."""

    def __post_init__(self) -> None:
        for name in ("calibration_images", "calibration_batch", "batch_size"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but BatchNorm and accuracies need at least 2 images"
                )
        if self.images is not None and self.images < 2:
            raise ValueError(f"an accuracy is measured on at least 2 images, not {self.images}")


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """Decoded images for all candidates, as arrays that processes of a node can share."""

    calibration: UInt8[np.ndarray, "calibration 3 size size"]
    images: UInt8[np.ndarray, "images 3 size size"]
    labels: Int64[np.ndarray, " images"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    """Identifies them, of the settings too."""


def evaluation_images(dataset: Dataset, settings: Evaluation, *, seed: int) -> EvaluationImages:
    """The images these settings ask for, fewer where a split has fewer."""
    calibration, _ = dataset.pixels("train", _drawn(dataset, "train", settings.calibration_images, seed))
    images, labels = dataset.pixels("search", _drawn(dataset, "search", scored_images(dataset, settings), seed))
    parts = [calibration.numpy(), images.numpy(), labels.numpy()]
    digest = hashlib.sha256(repr((asdict(settings), dataset.mean, dataset.std)).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return EvaluationImages(
        calibration=parts[0],
        images=parts[1],
        labels=parts[2],
        mean=dataset.mean,
        std=dataset.std,
        digest=digest.hexdigest(),
    )


def unscored(dataset: Dataset, settings: Evaluation, *, seed: int) -> Dataset:
    """The dataset with a search split of only those images that these settings score no candidate on.

    Raises:
        ValueError: they score on all of them.
    """
    scored = scored_images(dataset, settings)
    rest = _drawn(dataset, "search", dataset.size("search"), seed)[scored:].sort().values
    if len(rest) < 2:
        raise ValueError(
            f"candidates were scored on {scored} images of the search split, which has {dataset.size('search')}: none "
            "are left to measure networks on that no score has seen. Search again with fewer `evaluation.images`"
        )
    return replace(dataset, rows={**dataset.rows, "search": dataset.rows["search"][rest]})


def scored_images(dataset: Dataset, settings: Evaluation) -> int:
    """How many images of the search split candidates are scored on."""
    size = dataset.size("search")
    return max(2, int(SCORED_SHARE * size)) if settings.images is None else min(settings.images, size)


def _drawn(dataset: Dataset, split: Split, count: int, seed: int) -> Tensor:
    order = torch.randperm(dataset.size(split), generator=generator("cpu", "evaluation", split, seed_of(seed)))
    return order[:count]


class Evaluator:
    """Scores candidates on images that stay on the device."""

    def __init__(
        self, space: SearchSpace, images: EvaluationImages, settings: Evaluation, device: torch.device
    ) -> None:
        self.space, self.settings, self.device = space, settings, device
        self.mean, self.std = images.mean, images.std
        # The arrays may be another process's to read; a copy is ours, and torch asks for nothing less.
        self.calibration = torch.tensor(images.calibration, device=device)
        self.images = torch.tensor(images.images, device=device)
        self.labels = torch.tensor(images.labels, device=device)
        self.dtype = Training(precision=settings.precision).dtype(device)

    def score(self, architecture: Architecture, weights: Mapping[str, Tensor]) -> float:
        """The accuracy, 0 to 1, of the plain network of `architecture` that loads `weights`; NaN if it computes any."""
        with _Uninitialized():
            network = self.space.build(architecture)
        network.load_state_dict(
            {name: tensor.to(self.device, copy=True) for name, tensor in weights.items()}, assign=True
        )
        placed(network, self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            batches = self._batches(self.calibration, self.settings.calibration_batch)
            recalibrate(network, batches, cumulative=self.settings.batchnorm == "cumulative")
            fold(network.eval())
            return self._accuracy(network)

    def check(self, scores: Callable[[Sequence[Architecture]], Sequence[float]], *, training_accuracy: float) -> None:
        """ValueError if `scores`, which this evaluator computes, mean nothing (see `check_sane`)."""
        (dense,) = scores([self.space.dense])
        check_sane(dense, training_accuracy=training_accuracy, classes=self.space.classes, images=len(self.labels))

    def _accuracy(self, network: nn.Module) -> float:
        right = torch.zeros((), device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        batches = zip(
            self._batches(self.images, self.settings.batch_size),
            self.labels.split(self.settings.batch_size),
            strict=True,
        )
        with torch.inference_mode():
            for images, labels in batches:
                logits = network(images)
                right += (logits.argmax(1) == labels).sum()
                finite &= logits.isfinite().all()
        return right.item() / len(self.labels) if finite else math.nan

    def _batches(self, images: Tensor, size: int) -> Iterator[Tensor]:
        return (normalize(batch, self.mean, self.std) for batch in images.split(size))


class _Uninitialized(TorchFunctionMode):
    """Leaves new weights as they lie in memory, where others replace them at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


_DRAWS = (Tensor.normal_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


def check_sane(score: float, *, training_accuracy: float, classes: int, images: int) -> None:
    """Refuses to search with scores that mean nothing.

    Args:
        score: of the unpruned architecture.
        training_accuracy: what the supernet reached in training, over random architectures.

    Raises:
        ValueError: the score is not above chance, or far below what training reached.
    """
    chance = 1 / classes
    least = chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / images)
    least = max(least, LEAST_SHARE * training_accuracy)
    if not score >= least:
        raise ValueError(
            f"the unpruned network scores {score:.2%} on the search split with generated weights; at least {least:.2%} "
            f"was expected (chance is {chance:.2%}, training reached {training_accuracy:.2%} on random architectures). "
            "Check that the supernet was trained long enough, on these classes in this order, and normalized alike"
        )
