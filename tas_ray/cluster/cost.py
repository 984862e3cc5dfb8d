"""What trials will cost, in multiply-accumulates, told before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tas_ray import pipeline
from tas_ray.cluster.config import Range
from tas_ray.cluster.plan import SharedSearch, Study
from tas_ray.data import Dataset
from tas_ray.evaluation import scored_images
from tas_ray.pipeline import Trial
from tas_ray.supernets import SUPERNET_FILE

BACKWARD = 2
"""A backward pass costs two forward passes: one for the weights, one for what is below."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of the stages of trials, tests left out."""

    search: int = 0
    """Training before an architecture is known, every step taken as one of the dense network, and candidates scored."""

    retrain: int = 0
    """Training of the network, with the teacher's forward passes."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(search=self.search + other.search, retrain=self.retrain + other.retrain)

    @property
    def total(self) -> int:
        """Both stages."""
        return self.search + self.retrain


def cost_of(trial: Trial, dataset: Dataset) -> Cost:
    """An estimate of what a trial costs from its start to its end, besides a search that it shares with others."""
    plan = pipeline.plan(trial, classes=dataset.classes, image_size=dataset.image_size)
    dense = plan.space.macs(plan.space.dense)
    search = None if trial.searched else trial.method.training  # alternates steps of weights and of architecture
    images = trial.retrain.epochs * dataset.size("train" if trial.holdout else "training")
    return Cost(
        search=0 if search is None else search.epochs * dataset.size("train") * 2 * (1 + BACKWARD) * dense,
        retrain=images * ((1 + BACKWARD) * plan.budget.most + (dense if trial.distillation else 0)),
    )


def cost_of_search(search: SharedSearch, dataset: Dataset) -> Cost:
    """An estimate of what a shared search costs besides its supernet: every candidate at the budget it is bred for."""
    settings = search.method.evaluation
    images = min(settings.calibration_images, dataset.size("train")) + scored_images(dataset, settings)
    begun = search.begun(search.space(dataset))
    return Cost(search=begun.most * images * sum(budget.most for budget in begun.budgets) // len(begun.budgets))


def cost_of_supernets(searches: Sequence[SharedSearch], dataset: Dataset) -> Cost:
    """An estimate of what it costs to train the supernets of these searches, each once, that are not there yet."""
    cost = 0
    for folder, search in {search.supernet.folder: search for search in searches}.items():
        if not (folder / SUPERNET_FILE).exists():
            space = search.space(dataset)
            images = search.method.training.epochs * dataset.size("train")
            cost += images * (1 + BACKWARD) * space.macs(space.dense)
    return Cost(search=cost)


def typical(study: Study) -> Trial:
    """A trial in the middle of a study's ranges, to estimate the others by."""
    middle = {
        path: type(values.low)((values.low + values.high) / 2)
        if isinstance(values, Range)
        else values[len(values) // 2]
        for path, values in study.parameters.items()
    }
    return study.trial(middle)
