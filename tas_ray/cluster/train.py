"""One trial on Ray Train: workers, checkpoints, restarts and elasticity around `tas_ray.pipeline.run`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from tas_ray import pipeline
from tas_ray.cluster.config import Resources
from tas_ray.cluster.metrics import Gauges
from tas_ray.pipeline import MEASURED_FILE, Measured, Trial, read_measured
from tas_ray.results import RESULT_FILE, Result, read_result
from tas_ray.supernets import SUPERNET_FILE
from tas_ray.workers import Checkpoints, Workers, read_state, write_state

STATE_FILE = "state.pt"
TRAIN_FOLDER = "train"
LOCK_FILE = ".lock"
EPOCH = "retrain_epoch"
"""The metric of a report that counts epochs of retraining, there only beside a measured `ACCURACY`."""
ERROR = "error"
"""The metric of a report that ends a failed trial: what went wrong, in a line."""
ACCURACY = "validation_accuracy"
"""The metric of every report that sweeps compare trials by; 0 where it was not measured."""
_SNAPSHOT = "checkpoint_manager_snapshot.json"

# Every report waits for the controller's next look at its workers: by default two seconds, too long for small epochs.
_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}


class RayCheckpoints(Checkpoints):
    """The state as a Ray Train checkpoint: counts once it is uploaded, and every later start of the trial finds it."""

    def load(self) -> dict[str, Any] | None:
        """See `Checkpoints.load`."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder) / STATE_FILE)

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """See `Checkpoints.save`; the metrics go to the sweep, which may stop the trial for them."""
        if ACCURACY in metrics:
            metrics = {**metrics, EPOCH: metrics["epoch"]}
        else:
            metrics = {**metrics, ACCURACY: 0.0}
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_state(state, Path(folder) / STATE_FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


Job = Callable[[Trial, Workers, Checkpoints, pipeline.Report], object]


class _Work(TypedDict):
    job: Job
    trial: Trial
    threads: int


def _train(work: _Work) -> str | None:
    """What every worker runs; returns what the caller did wrong, if anything (which no second start would heal)."""
    torch.set_num_threads(work["threads"])
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), world=context.get_world_size(), device=get_device())
    show = partial(Gauges().epoch, work["trial"])
    try:
        work["job"](work["trial"], workers, RayCheckpoints(), show)
    except ValueError as error:
        return str(error)
    return None


def launch(trial: Trial, resources: Resources, callbacks: Sequence[ray.train.UserCallback] = ()) -> Result:
    """Trains one trial on Ray Train, or goes on with it from its latest checkpoint, and returns its result.

    Checkpoints lie in the trial's folder until its result does. Learning rates do not depend on the number of workers,
    see `Resources`.

    Raises:
        ValueError: the caller's mistake, found in a worker.
        ray.train.TrainingFailedError: the workers crashed more often than `resources.max_failures`.
    """
    _launch(pipeline.run, RESULT_FILE, trial, resources, callbacks)
    return read_result(trial.folder / RESULT_FILE)


def launch_measurement(
    trial: Trial, resources: Resources, callbacks: Sequence[ray.train.UserCallback] = ()
) -> Measured:
    """Retrains a trial that is measured only (`tas_ray.pipeline.measure`) in the same way.

    Raises:
        ValueError, ray.train.TrainingFailedError: see `launch`.
    """
    _launch(pipeline.measure, MEASURED_FILE, trial, resources, callbacks)
    return read_measured(trial.folder)


def launch_supernet(trial: Trial, resources: Resources, callbacks: Sequence[ray.train.UserCallback] = ()) -> Path:
    """Trains the supernet of a trial's method in the same way (`tas_ray.pipeline.prepare`), and returns its file.

    Raises:
        ValueError, ray.train.TrainingFailedError: see `launch`.
    """
    _launch(pipeline.prepare, SUPERNET_FILE, trial, resources, callbacks)
    return trial.folder / SUPERNET_FILE


def _launch(
    job: Job, made: str, trial: Trial, resources: Resources, callbacks: Sequence[ray.train.UserCallback]
) -> None:
    """Runs a job on workers until the file that it makes is in the trial's folder."""
    storage = trial.folder / TRAIN_FOLDER
    storage.mkdir(parents=True, exist_ok=True)
    with (storage / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a study may suggest the same values twice; the second waits for the first
        if not (trial.folder / made).exists():
            mistake = _trainer(job, trial, resources, storage, callbacks).fit().return_value
            if mistake is not None:
                raise ValueError(mistake)
        shutil.rmtree(storage, ignore_errors=True)


def _trainer(
    job: Job, trial: Trial, resources: Resources, storage: Path, callbacks: Sequence[ray.train.UserCallback]
) -> TorchTrainer:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    name = f"{trial.run}-{trial.name}"
    _set_aside_unreadable(storage / name)
    return TorchTrainer(
        _train,
        train_loop_config=_Work(job=job, trial=trial, threads=max(1, int(resources.cpus_per_worker))),
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=_scaling(resources),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def _scaling(resources: Resources) -> ray.train.ScalingConfig:
    fixed = resources.min_workers is None
    return ray.train.ScalingConfig(
        num_workers=resources.workers if fixed else (resources.least_workers, resources.workers),
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=resources.per_worker,
    )


def _set_aside_unreadable(folder: Path) -> None:
    """Ray Train rewrites its list of checkpoints in place; one cut short by a crash would stop every later start."""
    snapshot = folder / _SNAPSHOT
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text())
    except ValueError:
        folder.rename(folder.with_name(f"{folder.name}.unreadable-{os.getpid()}"))
