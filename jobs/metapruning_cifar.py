"""A CIFAR ResNet or MobileNetV2 at several budgets: MetaPruning beside TAS, random search and simple scaling.

One PruningNet answers for all budgets. All networks found are retrained by the same distillation. `--epochs` and
`--search-epochs` shorten it, which shows in the name of the run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tas_ray.cli import job
from tas_ray.cluster.config import Resources, Sweep
from tas_ray.data import DataConfig
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.baselines import Random, Uniform
from tas_ray.methods.metapruning import MetaPruning, RandomSearch, published_training
from tas_ray.methods.tas import Tas
from tas_ray.space import SpaceConfig
from tas_ray.train import Training

Network = Literal["resnet20", "resnet56", "mobilenet_v2"]

SPACES: dict[Network, SpaceConfig] = {
    "resnet20": SpaceConfig(name="search_spaces.cifar_resnet:resnet20"),
    "resnet56": SpaceConfig(name="search_spaces.cifar_resnet:resnet56"),
    "mobilenet_v2": SpaceConfig(name="search_spaces.mobilenet_v2:mobilenet_v2", options={"small_images": True}),
}
SEARCH_EPOCHS = 600
RETRAIN_EPOCHS = 305
"""As TAS published them for CIFAR, five epochs of warm-up among them; a PruningNet gets a quarter."""

ONE_GPU = Resources(gpus_per_worker=1.0)


def metapruning_cifar(
    *,
    network: Network = "resnet56",
    dataset: Literal["cifar10", "cifar100", "parquet"] = "cifar10",
    path: Path,
    run: str | None = None,
    storage: Path = Path("runs"),
    budgets: tuple[float, ...] = (0.25, 0.5, 0.75),
    seeds: tuple[int, ...] = (0,),
    search_epochs: int = SEARCH_EPOCHS,
    epochs: int = RETRAIN_EPOCHS,
    population: int = 50,
    generations: int = 20,
    calibration_images: int = 2500,
    scored_images: int = 10_000,
    resources: Resources = ONE_GPU,
) -> Sweep:
    """A CIFAR network pruned by MetaPruning and what it is compared with.

    Args:
        network: Which network, its residual widths tied.
        dataset: cifar10 and cifar100 in torchvision's layout, or parquet files of one of them.
        path: Where the data lies, on every node.
        run: Name of the run. Left out: network, dataset, and epochs where they are not the published ones.
        storage: Where runs lie; for a submitted job an absolute path that all nodes see.
        budgets: Shares of the dense MACs, or MACs above 1.
        seeds: Seeds of search and retraining.
        search_epochs: Epochs of TAS; the logits learn faster where there are fewer.
        epochs: Epochs of each training of a network, warm-up included; the PruningNet gets a quarter, at least 3.
        population: Candidates of a generation, for each budget.
        generations: Of the evolution.
        calibration_images: Images a candidate's BatchNorm statistics are computed on.
        scored_images: Images of the search split a candidate is scored on.
        resources: What a trial gets; --gpus-per-worker 0 trains on CPUs.
    """
    retrain = Training(epochs=epochs, warmup_epochs=min(5, epochs // 10))
    metapruning = MetaPruning(
        supernet=replace(published_training(), epochs=max(3, epochs // 4), batch_size=256, learning_rate=0.125),
        sampler="even",
        evaluation=Evaluation(calibration_images=calibration_images, images=scored_images),
        evolution=Evolution(
            population=population,
            parents=max(2, population // 5),
            mutations=population // 2,
            crossovers=population // 2,
            generations=generations,
        ),
    )
    short = (search_epochs, epochs) != (SEARCH_EPOCHS, RETRAIN_EPOCHS)
    return Sweep(
        run=run or f"metapruning-{network}-{dataset}" + (f"-{search_epochs}+{epochs}epochs" if short else ""),
        storage=storage,
        space=SPACES[network],
        data=DataConfig(dataset=dataset, path=path),
        methods=(
            metapruning,
            RandomSearch.beside(metapruning),
            Tas(
                search=Training(epochs=search_epochs, warmup_epochs=0),
                learning_rate=1e-3 * max(1.0, SEARCH_EPOCHS / search_epochs),
            ),
            Uniform(),
            Random(),
        ),
        budgets=budgets,
        seeds=seeds,
        teacher=retrain,
        retrain=retrain,
        resources=resources,
    )


if __name__ == "__main__":
    job(metapruning_cifar)
