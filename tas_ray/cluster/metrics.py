"""Gauges of trials on Ray's metrics endpoint, from where the dashboard and Prometheus read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from ray.util.metrics import Gauge

from tas_ray.pipeline import PHASES, Trial
from tas_ray.results import Result

FINISHED = "finished"
"""The phase behind those of `tas_ray.pipeline`."""

SECONDS_BETWEEN_SETS = 5.0

_DESCRIPTIONS = {
    "epoch": "epochs done in this phase",
    "epochs": "epochs of this phase in all",
    "loss": "mean training loss of the epoch",
    "validation_accuracy": "accuracy on the search split, 0 to 1",
    "test_accuracy": "accuracy of the finished network on the test set, 0 to 1",
    "macs": "multiply-accumulates of one image: of the finished network, or of the one the search would choose now",
    "expected_macs": "multiply-accumulates of one image that the search expects",
}
_TAGS = ("run", "trial", "method", "budget", "seed", "phase")


class Gauges:
    """`tas_loss`, `tas_macs` and so on: the latest of every trial, shown for as long as this process lives.

    Ray forgets a gauge that was not set for some seconds, so a thread sets them again and again.
    """

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(f"tas_{name}", description=description, tag_keys=_TAGS)
            for name, description in _DESCRIPTIONS.items()
        }
        self._shown: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
        threading.Thread(target=self._keep, daemon=True).start()

    def epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Shows an epoch's metrics, as `tas_ray.pipeline.run` reports them; those without a gauge are left out."""
        self._show(trial, PHASES[int(metrics["phase"])], metrics)

    def finished(self, trial: Trial, result: Result) -> None:
        """Shows what came out of a trial."""
        values = {"test_accuracy": result.test_accuracy, "macs": float(result.macs)}
        if result.validation_accuracy is not None:
            values["validation_accuracy"] = result.validation_accuracy
        self._show(trial, FINISHED, values)

    def _show(self, trial: Trial, phase: str, values: Mapping[str, float]) -> None:
        tags = {
            "run": trial.run,
            "trial": trial.name,
            "method": trial.method.name,
            "budget": "dense" if trial.budget is None else f"{trial.budget:g}",
            "seed": str(trial.seed),
            "phase": phase,
        }
        self._shown[trial.name] = (tags, {name: values[name] for name in self._gauges if name in values})
        self._set()

    def _set(self) -> None:
        for tags, values in list(self._shown.values()):
            for name, value in values.items():
                self._gauges[name].set(value, tags=tags)

    def _keep(self) -> None:
        while True:  # a daemon: ends with the process
            time.sleep(SECONDS_BETWEEN_SETS)
            self._set()
