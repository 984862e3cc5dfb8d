"""ResNet-20/32/56/110 on CIFAR-10 and -100 as TAS published them (NeurIPS 2019), beside its baselines.

The dense teacher, then TAS, uniform scaling and a random architecture at the paper's pruning ratio, all
retrained by the same distillation. `--epochs` and `--search-epochs` shorten it, which shows in
the name of the run.
"""

from pathlib import Path
from typing import Literal

from tas_ray.cli import job
from tas_ray.cluster.config import Resources, Sweep
from tas_ray.data import DataConfig
from tas_ray.methods.baselines import Random, Uniform
from tas_ray.methods.tas import Tas
from tas_ray.space import SpaceConfig
from tas_ray.train import Training

Network = Literal["resnet20", "resnet32", "resnet56", "resnet110"]
Classes = Literal["cifar10", "cifar100"]

BUDGETS: dict[tuple[Classes, Network], float] = {
    ("cifar10", "resnet20"): 0.55,
    ("cifar10", "resnet32"): 0.506,
    ("cifar10", "resnet56"): 0.473,
    ("cifar10", "resnet110"): 0.47,
    ("cifar100", "resnet20"): 0.55,
    ("cifar100", "resnet32"): 0.615,
    ("cifar100", "resnet56"): 0.487,
    ("cifar100", "resnet110"): 0.474,
}
"""One minus the pruning ratios of the paper: shares of the dense MACs."""

SEARCH_EPOCHS = 600
RETRAIN_EPOCHS = 305
"""Five epochs of warm-up among them."""

ONE_GPU = Resources(gpus_per_worker=1.0)


def tas_cifar(
    *,
    network: Network = "resnet56",
    dataset: Literal["cifar10", "cifar100", "parquet"] = "cifar10",
    path: Path,
    run: str | None = None,
    storage: Path = Path("runs"),
    budgets: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0,),
    search_epochs: int = SEARCH_EPOCHS,
    epochs: int = RETRAIN_EPOCHS,
    published: bool = True,
    resources: Resources = ONE_GPU,
) -> Sweep:
    """A CIFAR ResNet pruned by TAS, uniform scaling and at random.

    Args:
        network: Which ResNet.
        dataset: cifar10 and cifar100 in torchvision's layout, or parquet files of one of them.
        path: Where the data lies, on every node.
        run: Name of the run. Left out: network, dataset, and epochs where they are not the published ones.
        storage: Where runs lie; for a submitted job an absolute path that all nodes see.
        budgets: Shares of the dense MACs, or MACs above 1. Left out: the paper's (parquet: CIFAR-10's).
        seeds: Seeds of search and retraining.
        search_epochs: Epochs of the search; the logits learn faster where there are fewer.
        epochs: Epochs of each other training, the teacher's too, warm-up included.
        published: Search every convolution's width as TAS did; without, one residual width per stage.
        resources: What a trial gets; --gpus-per-worker 0 trains on CPUs.
    """
    classes: Classes = "cifar100" if dataset == "cifar100" else "cifar10"
    retrain = Training(epochs=epochs, warmup_epochs=min(5, epochs // 10))
    search = Training(epochs=search_epochs, warmup_epochs=0)
    short = (search_epochs, epochs) != (SEARCH_EPOCHS, RETRAIN_EPOCHS)
    return Sweep(
        run=run or f"{network}-{dataset}" + (f"-{search_epochs}+{epochs}epochs" if short else ""),
        storage=storage,
        space=SpaceConfig(name=f"search_spaces.cifar_resnet:{network}", options={"published": published}),
        data=DataConfig(dataset=dataset, path=path),
        methods=(
            Tas(search=search, learning_rate=1e-3 * max(1.0, SEARCH_EPOCHS / search_epochs)),
            Uniform(),
            Random(),
        ),
        budgets=budgets or (BUDGETS[classes, network],),
        seeds=seeds,
        teacher=retrain,
        retrain=retrain,
        resources=resources,
    )


if __name__ == "__main__":
    job(tas_cifar)
