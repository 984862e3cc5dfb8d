"""A CIFAR ResNet at five budgets, from a fifth to four fifths of its MACs: accuracy against MACs."""

from pathlib import Path
from typing import Literal

from jobs.tas_cifar import ONE_GPU, RETRAIN_EPOCHS, SEARCH_EPOCHS, Network, tas_cifar
from tas_ray.cli import job
from tas_ray.cluster.config import Resources, Sweep

BUDGETS = (0.2, 0.35, 0.5, 0.65, 0.8)


def five_budgets(
    *,
    network: Network = "resnet56",
    dataset: Literal["cifar10", "cifar100", "parquet"] = "cifar10",
    path: Path,
    storage: Path = Path("runs"),
    seeds: tuple[int, ...] = (0, 1, 2),
    search_epochs: int = SEARCH_EPOCHS,
    epochs: int = RETRAIN_EPOCHS,
    resources: Resources = ONE_GPU,
) -> Sweep:
    """TAS, uniform scaling and random architectures at five budgets, with one residual width per stage.

    Args:
        network: Which ResNet.
        dataset: cifar10 and cifar100 in torchvision's layout, or parquet files of one of them.
        path: Where the data lies, on every node.
        storage: Where runs lie; for a submitted job an absolute path that all nodes see.
        seeds: Seeds of search and retraining.
        search_epochs: Epochs of the search; the logits learn faster where there are fewer.
        epochs: Epochs of each other training, the teacher's too, warm-up included.
        resources: What a trial gets; --gpus-per-worker 0 trains on CPUs.
    """
    return tas_cifar(
        network=network,
        dataset=dataset,
        path=path,
        run=f"five-budgets-{network}-{dataset}-{search_epochs}+{epochs}epochs",
        storage=storage,
        budgets=BUDGETS,
        seeds=seeds,
        search_epochs=search_epochs,
        epochs=epochs,
        published=False,
        resources=resources,
    )


if __name__ == "__main__":
    job(five_budgets)
