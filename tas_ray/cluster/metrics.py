"""Gauges of running and finished trials on Ray's metrics endpoint, from where the dashboard and Prometheus read them."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from tas_ray.pipeline import Trial
from tas_ray.results import Result

PHASES = ("search", "retrain", "finished")

_DESCRIPTIONS = {
    "loss": "mean training loss of the epoch",
    "accuracy": "training accuracy of the epoch, 0 to 1",
    "validation_accuracy": "accuracy on the search split, 0 to 1",
    "test_accuracy": "accuracy of the finished network on the test set, 0 to 1",
    "macs": "multiply-accumulates of one image",
    "epoch": "epochs done in this phase",
}
_TAGS = ("run", "trial", "method", "budget", "seed", "phase")


class TrialGauges:
    """`tas_loss`, `tas_accuracy` and so on of one trial, in the process that made this object, as long as it lives."""

    def __init__(self, trial: Trial) -> None:
        self._gauges = {
            name: Gauge(f"tas_{name}", description=description, tag_keys=_TAGS)
            for name, description in _DESCRIPTIONS.items()
        }
        self._tags = {
            "run": trial.run,
            "trial": trial.name,
            "method": trial.method.name,
            "budget": "dense" if trial.budget is None else f"{trial.budget:g}",
            "seed": str(trial.seed),
        }

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Shows one epoch's metrics, as `tas_ray.pipeline.run` reports them; unknown keys are left out."""
        self._show(PHASES[int(metrics["phase"])], metrics)

    def finished(self, result: Result) -> None:
        """Shows what came out of the trial."""
        values = {"test_accuracy": result.test_accuracy, "macs": float(result.macs)}
        if result.validation_accuracy is not None:
            values["validation_accuracy"] = result.validation_accuracy
        self._show(PHASES[-1], values)

    def _show(self, phase: str, values: Mapping[str, float]) -> None:
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name], tags={**self._tags, "phase": phase})
