"""MobileNetV1, MobileNetV2 and ResNet-50 on ImageNet as MetaPruning published them (ICCV 2019), beside its baselines.

One PruningNet per network, an evolution for every budget of the paper's tables, each winner trained from scratch on
labels alone. Budgets are MACs of convolutions and the classifier, which the published search counts a little higher.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tas_ray.cli import job
from tas_ray.cluster.config import Resources, Sweep
from tas_ray.data import DataConfig
from tas_ray.methods.baselines import Dense, Uniform
from tas_ray.methods.metapruning import MetaPruning
from tas_ray.space import SpaceConfig
from tas_ray.train import Training

Network = Literal["mobilenet_v1", "mobilenet_v2", "resnet50"]

IMAGES_HELD_OUT = 50 / 1281
"""Of every class, for scoring candidates: 50 000 images in all."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the reference code does with one network (specification, sections 2.4 and 7)."""

    space: str
    method: MetaPruning
    retrain: Training
    budgets: tuple[float, ...]


def _training(epochs: int, batch_size: int, learning_rate: float, weight_decay: float, steps: bool) -> Training:
    return Training(
        epochs=epochs,
        warmup_epochs=0,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="steps" if steps else "linear",
        nesterov=False,
        weight_decay=weight_decay,
        decayed="weights",
        label_smoothing=0.1,
    )


RECIPES: dict[Network, Recipe] = {
    "mobilenet_v1": Recipe(
        space="search_spaces.mobilenet_v1:mobilenet_v1",
        method=MetaPruning(supernet=_training(64, 512, 0.25, 4e-5, steps=False), hidden=32),
        retrain=_training(256, 1024, 0.5, 4e-5, steps=False),
        budgets=(316e6, 142e6, 41e6),
    ),
    "mobilenet_v2": Recipe(
        space="search_spaces.mobilenet_v2:mobilenet_v2",
        method=MetaPruning(supernet=_training(64, 512, 0.25, 0.0, steps=False), hidden=64),
        retrain=_training(256, 1024, 0.5, 4e-5, steps=False),
        budgets=(303e6, 140e6, 43e6),
    ),
    "resnet50": Recipe(
        space="search_spaces.metapruning_resnet:resnet50",
        method=MetaPruning(supernet=_training(32, 256, 0.1, 1e-4, steps=True), hidden=32, tolerance=100 / 4089),
        retrain=_training(128, 512, 0.2, 1e-4, steps=True),
        budgets=(2e9, 1e9),
    ),
}

EIGHT_GPUS = Resources(workers=8, cpus_per_worker=6.0, gpus_per_worker=1.0)


def metapruning_imagenet(
    *,
    network: Network = "mobilenet_v2",
    path: Path,
    run: str | None = None,
    storage: Path = Path("runs"),
    budgets: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0,),
    resources: Resources = EIGHT_GPUS,
) -> Sweep:
    """An ImageNet network pruned by MetaPruning and by uniform scaling, and the dense one.

    Args:
        network: Which network.
        path: Holds train/ and val/, on every node.
        run: Name of the run. Left out: metapruning- and the network.
        storage: Where runs lie; for a submitted job an absolute path that all nodes see.
        budgets: MACs, or shares of the dense MACs up to 1. Left out: the published ones.
        seeds: Seeds of search and retraining.
        resources: What a trial gets.
    """
    recipe = RECIPES[network]
    return Sweep(
        run=run or f"metapruning-{network}",
        storage=storage,
        space=SpaceConfig(name=recipe.space),
        data=DataConfig(dataset="imagenet", path=path, search_fraction=IMAGES_HELD_OUT),
        methods=(Dense(), recipe.method, Uniform()),
        budgets=budgets or recipe.budgets,
        seeds=seeds,
        teacher=recipe.retrain,
        retrain=recipe.retrain,
        distillation=None,
        resources=resources,
    )


if __name__ == "__main__":
    job(metapruning_imagenet)
