"""ResNet-18 and -50 on ImageNet as TAS published them (NeurIPS 2019), beside its baselines."""

from pathlib import Path
from typing import Literal

from tas_ray.cli import job
from tas_ray.cluster.config import Resources, Sweep
from tas_ray.data import DataConfig
from tas_ray.distill import Distillation
from tas_ray.methods.baselines import Random, Uniform
from tas_ray.methods.tas import Tas
from tas_ray.space import SpaceConfig
from tas_ray.train import Training

Network = Literal["resnet18", "resnet50"]

BUDGETS: dict[Network, float] = {"resnet18": 0.667, "resnet50": 0.565}
"""One minus the pruning ratios of the paper: shares of the dense MACs."""

FOUR_GPUS = Resources(workers=4, gpus_per_worker=1.0, cpus_per_worker=5.0)
"""A CPU for each of the four processes that decode images for a worker, and one for itself."""


def tas_imagenet(
    *,
    network: Network = "resnet18",
    path: Path,
    storage: Path = Path("runs"),
    budgets: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0,),
    search_epochs: int = 120,
    epochs: int = 125,
    published: bool = True,
    resources: Resources = FOUR_GPUS,
) -> Sweep:
    """An ImageNet ResNet pruned by TAS, uniform scaling and at random.

    Args:
        network: Which ResNet.
        path: The folder that holds train/ and val/, on every node.
        storage: Where runs lie; for a submitted job an absolute path that all nodes see.
        budgets: Shares of the dense MACs, or MACs above 1. Left out: the paper's.
        seeds: Seeds of search and retraining.
        search_epochs: Epochs of the search, warm-up included.
        epochs: Epochs of each other training, the teacher's too, warm-up included.
        published: Search every convolution's width as TAS did; without, one residual width per stage.
        resources: What a trial gets.
    """
    short = (search_epochs, epochs) != (120, 125)
    retrain = Training(epochs=epochs, warmup_epochs=min(5, epochs // 10), weight_decay=1e-4, label_smoothing=0.1)
    search = Training(epochs=search_epochs, warmup_epochs=min(5, search_epochs // 10), weight_decay=1e-4)
    return Sweep(
        run=f"{network}-imagenet" + (f"-{search_epochs}+{epochs}epochs" if short else ""),
        storage=storage,
        space=SpaceConfig(name=f"search_spaces.imagenet_resnet:{network}", options={"published": published}),
        data=DataConfig(dataset="imagenet", path=path),
        methods=(Tas(search=search), Uniform(), Random()),
        budgets=budgets or (BUDGETS[network],),
        seeds=seeds,
        teacher=retrain,
        retrain=retrain,
        distillation=Distillation(alpha=0.5),
        resources=resources,
    )


if __name__ == "__main__":
    job(tas_imagenet)
