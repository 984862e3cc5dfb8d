"""The evolutionary searches of a sweep: a supernet on Ray Train, then one population for all budgets on Ray Tune."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.train
import torch

from tas_ray import data
from tas_ray.cluster.config import Resources
from tas_ray.cluster.evaluators import PopulationScores, weight_source
from tas_ray.cluster.plan import SharedSearch
from tas_ray.cluster.population import search_population
from tas_ray.cluster.progress import SECONDS_BETWEEN_LINES, duration
from tas_ray.cluster.resources import alive_nodes, fitting
from tas_ray.cluster.search_gauges import SearchGauges
from tas_ray.cluster.train import launch_supernet
from tas_ray.pipeline import WINNERS_FILE, write_winners
from tas_ray.scores import Journal, OnProgress
from tas_ray.supernets import about, context_of, images_for, training_seconds


def searched(search: SharedSearch) -> bool:
    """Whether nothing is left to do for a search."""
    return (search.folder / WINNERS_FILE).exists()


def run_search(search: SharedSearch, resources: Resources, shared: dict[str, Any]) -> None:
    """Trains the supernet if need be and searches for all budgets, or goes on with either, on the connected cluster.

    Args:
        shared: references to the images that the searches of this process have put into the object store, by
            digest; it stays there, so the next search on the same images finds them.

    Raises:
        ValueError: the caller's mistake.
        RuntimeError: the supernet's workers or all slots were lost too often; the same call goes on.
    """
    supernet = search.supernet
    print(f"          {search.name}: supernet {supernet.name}", flush=True)
    try:
        file = launch_supernet(supernet, resources, [_Epochs(search.name)])
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"the supernet {supernet.name} could not be trained: {error}") from error
    dataset = data.load(supernet.data, torch.device("cpu"))
    space = search.space(dataset)
    images = images_for(dataset, search.method.evaluation)
    if images.digest not in shared:
        shared[images.digest] = ray.put(images)
    source = weight_source(file, search.method, space, about(supernet.space, supernet.data, dataset))
    try:
        evolution = search.begun(space)
        context = context_of(file, images, space)
        search_population(
            evolution,
            PopulationScores(
                space=space, settings=search.method.evaluation, images=shared[images.digest], weights=source
            ),
            context=context,
            folder=search.folder,
            slots=resources.slots or fitting(resources.per_worker, alive_nodes()),
            resources=resources.per_worker,
            on_progress=_progress(search),
        )
        write_winners(search.folder, evolution, training_seconds(file) + Journal(search.folder, context).seconds)
    finally:
        ray.kill(source)


class _Epochs(ray.train.UserCallback):  # type: ignore[misc]
    """Says every half minute where the training of a supernet is."""

    def __init__(self, name: str) -> None:
        self._name, self._spoke = name, time.monotonic()

    def after_report(self, run_context: Any, metrics: Sequence[Mapping[str, Any]], checkpoint: Any) -> None:
        first = metrics[0]
        if "epoch" in first and time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            where = f"supernet epoch {first['epoch']:g} of {first['epochs']:g}, loss {first['loss']:.3f}"
            print(f"          {self._name}: {where}", flush=True)


def _progress(search: SharedSearch) -> OnProgress:
    """Gauges, and a line every half minute."""
    gauges = SearchGauges(run=search.supernet.run, method=search.method.name, seed=search.seed, budgets=search.budgets)
    spoke = -SECONDS_BETWEEN_LINES

    def say(done: int, total: int, best: Sequence[float], seconds: float) -> None:
        nonlocal spoke
        gauges(done, total, best, seconds)
        if done < total and seconds - spoke < SECONDS_BETWEEN_LINES:
            return
        spoke = seconds
        pairs = zip(best, search.budgets, strict=True)
        scores = "".join(f", {score:.2%} at {budget:g}" for score, budget in pairs if not math.isnan(score))
        left = f"; about {duration(seconds * (total / done - 1))} left" if 0 < done < total else ""
        print(f"          {search.name}: {done} of {total} candidates{scores}{left}", flush=True)

    return say
