"""The smallest settings that still search and train something, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tas_ray.cluster.config import Sweep
from tas_ray.methods.baselines import Uniform
from tas_ray.methods.method import Method
from tas_ray.methods.tas import Tas
from tas_ray.pipeline import Trial
from tas_ray.train import Training


def training(epochs: int = 1, **changes: Any) -> Training:
    return Training(epochs=epochs, warmup_epochs=0, batch_size=256, **changes)


def tas(epochs: int = 1) -> Tas:
    return Tas(search=training(epochs), tolerance=0.3)


def settings(storage: Path, **changes: Any) -> Sweep:
    """A sweep of one uniformly scaled network without a teacher, or what `changes` make of it."""
    defaults: dict[str, Any] = {
        "run": "test",
        "storage": storage,
        "methods": (Uniform(),),
        "budgets": (0.5,),
        "teacher": training(),
        "retrain": training(),
        "distillation": None,
    }
    return Sweep(**(defaults | changes))


def trial(folder: Path, method: Method, *, epochs: int = 1, **changes: Any) -> Trial:
    """A trial that is no part of a sweep."""
    config = settings(folder)
    defaults: dict[str, Any] = {
        "run": "test",
        "name": folder.name,
        "folder": folder,
        "space": config.space,
        "data": config.data,
        "method": method,
        "budget": 0.5,
        "seed": 0,
        "retrain": training(epochs),
        "checkpoint_seconds": 0.0,
    }
    return Trial(**(defaults | changes))
