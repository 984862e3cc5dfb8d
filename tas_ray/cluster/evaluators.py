"""How slots of a population score candidates: generated weights come from one process, images from shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from tas_ray.choices import Architecture
from tas_ray.evaluation import Evaluation, Evaluator
from tas_ray.methods.method import EvolvingMethod
from tas_ray.space import SearchSpace
from tas_ray.supernets import load_supernet


@dataclass(kw_only=True)
class PopulationScores:
    """Scores architectures in a slot (a `tas_ray.scores.Evaluate`), which never holds the supernet."""

    space: SearchSpace
    settings: Evaluation

    images: Any
    """Reference to the `EvaluationImages`: one copy per node, and one on the device of each slot."""

    weights: Any
    """Handle of the `WeightSource`."""

    def setup(self) -> None:
        """See `Evaluate.setup`; ValueError if the scores mean nothing."""
        images = ray.get(self.images)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.evaluator = Evaluator(self.space, images, self.settings, device)
        self.evaluator.check(self, training_accuracy=ray.get(self.weights.training_accuracy.remote()))

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        """See `Evaluate.__call__`."""
        states = ray.get(self.weights.of.remote(architectures))
        return [
            self.evaluator.score(architecture, {name: torch.tensor(array) for name, array in state.items()})
            for architecture, state in zip(architectures, states, strict=True)
        ]


class WeightSource:
    """What runs in the process that holds a trained supernet and gives out the weights of single architectures."""

    def __init__(self, file: Path, method: EvolvingMethod, space: SearchSpace, belongs_to: dict[str, Any]) -> None:
        self._task = load_supernet(file, method, space, belongs_to)

    def training_accuracy(self) -> float:
        """See `SharedTask.training_accuracy`."""
        return self._task.training_accuracy

    def of(self, architectures: Sequence[Architecture]) -> list[dict[str, np.ndarray]]:
        """The state of each architecture's plain network."""
        states = (self._task.weights(architecture) for architecture in architectures)
        return [{name: tensor.numpy() for name, tensor in state.items()} for state in states]


def weight_source(file: Path, method: EvolvingMethod, space: SearchSpace, belongs_to: dict[str, Any]) -> Any:
    """The handle of a new `WeightSource`, which starts again if its node is lost; `ray.kill` ends it."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(WeightSource)
    return actor.remote(file, method, space, belongs_to)
