"""Weights that all architectures of a space share: trained once, kept in a file, used to score architectures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tas_ray.choices import Architecture
from tas_ray.data import DataConfig, Dataset
from tas_ray.evaluation import Evaluation, EvaluationImages, Evaluator, evaluation_images, unscored
from tas_ray.methods.method import EvolvingMethod, SharedTask
from tas_ray.space import SearchSpace, SpaceConfig
from tas_ray.workers import read_state, write_state

SUPERNET_FILE = "supernet.pt"
EVALUATION_SEED = 0
"""One for all searches, so that their scores can be compared and shared."""

SCORING = 2
"""Raised whenever the same images and weights begin to give other scores, so that no old ones are reused."""


def about(space: SpaceConfig, data: DataConfig, dataset: Dataset) -> dict[str, Any]:
    """What a supernet belongs to, as it stands in its file."""
    return {
        "space": repr(space),
        "classes": dataset.classes,
        "image size": dataset.image_size,
        "data": dataset.fingerprint,
        "split": f"seed {data.split_seed}, search fraction {data.search_fraction}",
    }


def save_supernet(path: Path, task: SharedTask, belongs_to: Mapping[str, Any], seconds: float) -> None:
    """Writes a supernet whose training, which took so long, is over; the file holds all of it or is not there."""
    task.finish()
    write_state({"about": dict(belongs_to), "module": task.state_dict(), "seconds": seconds}, path)


def load_supernet(path: Path, method: EvolvingMethod, space: SearchSpace, belongs_to: Mapping[str, Any]) -> SharedTask:
    """The supernet in a file, on the CPU.

    Raises:
        ValueError: there is none, it cannot be read, or it belongs to another space or other data: scores on a search
            split that its training saw would mean nothing.
    """
    if not path.is_file():
        raise ValueError(f"there is no supernet in {path}: train one, by leaving it out")
    state = read_state(path)
    there = state.get("about", {})
    differing = [
        f"{name}: {there.get(name)} there, {value} here"
        for name, value in belongs_to.items()
        if there.get(name) != value
    ]
    task = method.task(space, seed=0)
    try:
        if differing:
            raise ValueError("; ".join(differing))
        task.load_state_dict(state["module"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"the supernet in {path} was trained for something else ({error}): its scores would mean nothing here. "
            "Train one for this space and data, by leaving it out"
        ) from error
    return task


def training_seconds(path: Path) -> float:
    """How long the training of the supernet in a file took."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return float(state["seconds"])


def context_of(supernet: Path, images: EvaluationImages, space: SearchSpace) -> str:
    """A hash of all that a score depends on beside the architecture: supernet, images and settings, space, code."""
    digest = hashlib.sha256(f"{SCORING} {space.name} {images.digest}".encode())
    with supernet.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@dataclass(kw_only=True)
class SupernetScores:
    """Scores architectures in this process with the weights of a trained supernet (a `tas_ray.scores.Evaluate`)."""

    task: SharedTask
    space: SearchSpace
    images: EvaluationImages
    settings: Evaluation
    device: torch.device

    def setup(self) -> None:
        """See `Evaluate.setup`; ValueError if the scores mean nothing."""
        self.task.to(self.device)
        self.evaluator = Evaluator(self.space, self.images, self.settings, self.device)
        self.evaluator.check(self, training_accuracy=self.task.training_accuracy)

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        """See `Evaluate.__call__`."""
        return [self.evaluator.score(one, self.task.weights(one)) for one in architectures]


def images_for(dataset: Dataset, settings: Evaluation) -> EvaluationImages:
    """The images all searches score candidates on."""
    return evaluation_images(dataset, settings, seed=EVALUATION_SEED)


def unscored_by(dataset: Dataset, settings: Evaluation) -> Dataset:
    """The dataset with a search split of the images no search scores candidates on; see `evaluation.unscored`."""
    return unscored(dataset, settings, seed=EVALUATION_SEED)
