"""What trials will cost, in multiply-accumulates, told before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

from tas_ray import pipeline
from tas_ray.cluster.config import Range
from tas_ray.cluster.plan import Study
from tas_ray.data import Dataset
from tas_ray.pipeline import Trial

BACKWARD = 2
"""A backward pass costs two forward passes: one for the weights, one for what is below."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of one trial's stages, evaluations left out."""

    search: int = 0
    """An epoch of a search is taken as a weight step and an architecture step of the dense network on every image."""

    retrain: int = 0
    """Training of the network, with the teacher's forward passes."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(search=self.search + other.search, retrain=self.retrain + other.retrain)

    @property
    def total(self) -> int:
        """Both stages."""
        return self.search + self.retrain


def cost_of(trial: Trial, dataset: Dataset) -> Cost:
    """An estimate of what one trial costs from its start to its end."""
    plan = pipeline.plan(trial, classes=dataset.classes, image_size=dataset.image_size)
    dense = plan.space.macs(plan.space.dense)
    search = trial.method.training
    images = trial.retrain.epochs * dataset.size("train" if trial.holdout else "training")
    return Cost(
        search=0 if search is None else search.epochs * dataset.size("train") * 2 * (1 + BACKWARD) * dense,
        retrain=images * ((1 + BACKWARD) * plan.budget.most + (dense if trial.distillation else 0)),
    )


def typical(study: Study) -> Trial:
    """A trial in the middle of a study's ranges, to estimate the others by."""
    middle = {
        path: type(values.low)((values.low + values.high) / 2)
        if isinstance(values, Range)
        else values[len(values) // 2]
        for path, values in study.parameters.items()
    }
    return study.trial(middle)
