"""Scores every network of a small space with one PruningNet: a table whose best is known, for `benchmarks.evolution`.

    python -m benchmarks.digits_table --out benchmarks/results/digits_table.csv

The space is `tiny` with 4 options for each of its 6 widths and full depths, 4096 networks; the PruningNet is trained on
scikit-learn's digits, scores are accuracies on the search split.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from rich.progress import track

from tas_ray.choices import Architecture, Candidates
from tas_ray.data import DataConfig
from tas_ray.data import load as load_data
from tas_ray.evaluation import Evaluation
from tas_ray.methods.metapruning import MetaPruning, PruningTask, published_training
from tas_ray.space import SpaceConfig
from tas_ray.supernets import SupernetScores, images_for
from tas_ray.train import fit
from tas_ray.workers import Workers

CANDIDATES = Candidates(ratios=(0.25, 0.5, 0.75, 1.0), freeze=("*.depth",))
EPOCHS = 60


def main() -> None:
    """Writes a row per network: its widths, MACs and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    dataset = load_data(DataConfig(), device)
    space = SpaceConfig(candidates=CANDIDATES).load(classes=dataset.classes, image_size=dataset.image_size)
    training = replace(published_training(), epochs=options.epochs, batch_size=64, learning_rate=0.1)
    method = MetaPruning(supernet=training, hidden=32, sampler="even", evaluation=Evaluation())
    task = method.task(space, seed=0)
    assert isinstance(task, PruningTask)
    fit(task, dataset, training, seed=0, workers=Workers(), state=None, end_of_epoch=lambda *_: None)
    task.finish()
    scores = SupernetScores(
        task=task,
        space=space,
        images=images_for(dataset, method.evaluation),
        settings=method.evaluation,
        device=device,
    )
    scores.setup()
    names = [choice.name for choice in space.choices]
    networks = [
        Architecture(dict(zip(names, numbers, strict=True)))
        for numbers in itertools.product(*(choice.options for choice in space.choices))
    ]
    rows = [
        {**network, "macs": space.macs(network), "score": scores([network])[0]}
        for network in track(networks, description="networks")
    ]
    pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
