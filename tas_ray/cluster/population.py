"""An evolutionary search as a population scheduler of Ray Tune: long-lived trials that evaluate what they are dealt."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

from tas_ray.choices import Architecture
from tas_ray.cluster.folder import claimed
from tas_ray.cluster.progress import last_line
from tas_ray.cluster.resources import alive_nodes, check_slots
from tas_ray.cluster.shares import Share, Shares
from tas_ray.cluster.tuner import ACTOR_RESTARTS, TUNE_FOLDER, connect
from tas_ray.evolution import Search
from tas_ray.scores import (
    Evaluate,
    Journal,
    OnProgress,
    Progress,
    check_finished,
    evaluated,
    settle,
    unknown,
)

NOBODY_SECONDS = 60.0
"""So long a search without a single running slot waits before it asks whether the cluster could hold one at all."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1

_NUMBER, _ARCHITECTURES = "number", "architectures"
"""What a slot is dealt, in its Tune configuration."""
_SCORES, _SECONDS, _MISTAKE = "scores", "seconds", "mistake"
"""What it reports; nothing while it is idle."""


def search_population(
    search: Search,
    evaluate: Evaluate,
    *,
    context: str,
    folder: Path,
    slots: int,
    resources: Mapping[str, float],
    on_progress: OnProgress,
) -> None:
    """Drives a search to its end on the connected Ray cluster; `search.best` is then the answer.

    The answer depends neither on the number of slots nor on which of them are lost on the way. Scores are journalled
    in the folder as they arrive: after a kill at any moment the same call goes on, and evaluates nothing twice. To be
    called by a driver, not inside of a trial, and by one driver per folder at a time.

    Args:
        search: a new one: what it handed out to others is never scored.
        evaluate: put into Ray's object store, where it stays until this process ends; large arrays that several
            searches share are better put there once and held by reference.
        context: a hash of all that a score depends on besides the architecture, see `Journal`.
        slots: processes that evaluate, each a trial of Ray Tune.
        resources: of each slot, by Ray's names, such as {"CPU": 1, "GPU": 0.25}.
        on_progress: called in this process, about every second and at the end.

    Raises:
        ValueError: the slots do not fit the cluster, the journal cannot be read or the search is not new; or
            `evaluate` raised it.
        RuntimeError: all slots were lost, a candidate failed wherever it was evaluated, or the journal cannot be
            written. What is in the journal is kept, and the same call goes on.
    """
    if slots < 1:
        raise ValueError(f"a search needs at least one slot to evaluate in, not {slots}")
    journal = Journal(folder, context)
    shares = Shares(slots)
    progress = Progress(search, on_progress)
    shares.add(unknown(search, journal))
    if shares.left:
        connect()
        check_slots(slots, resources, alive_nodes())
        scheduler = EvolutionaryPopulationScheduler(search, journal, shares, progress, resources)
        with claimed(folder / TUNE_FOLDER):
            _run(scheduler, evaluate, folder / TUNE_FOLDER, slots, resources)
    check_finished(search)
    progress.now()


def _run(
    scheduler: EvolutionaryPopulationScheduler,
    evaluate: Evaluate,
    scratch: Path,
    slots: int,
    resources: Mapping[str, float],
) -> None:
    """Runs the slots until the search is over; raises what ended it early."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures of slots are told by `scheduler`
    try:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_Slot, evaluate=evaluate), tune.PlacementGroupFactory([dict(resources)])
            ),
            tune_config=tune.TuneConfig(num_samples=slots, scheduler=scheduler, reuse_actors=True),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(scratch),
                callbacks=[_Silence()],
                failure_config=tune.FailureConfig(max_failures=ACTOR_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    except Exception as error:  # Tune raises all kinds; at the end of a search none matters
        if scheduler.error is None and scheduler.left:
            raise RuntimeError(
                f"Ray Tune stopped the search: {error.__cause__ or error}. All scores so far are in the journal, and "
                "the same call goes on"
            ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if scheduler.error is not None:
        raise scheduler.error
    if scheduler.left:
        raise RuntimeError(
            f"all {slots} slots were lost, each after {ACTOR_RESTARTS} restarts, and {scheduler.left} candidates wait "
            f"for scores; the last failure: {scheduler.failure}. All scores so far are in the journal: mend the "
            "cause, and the same call goes on"
        )


class EvolutionaryPopulationScheduler(FIFOScheduler):  # type: ignore[misc]
    """Deals the candidates of a search to trials that stay, and breeds the next when their scores are back.

    A trial is given its next share while it runs, so that no candidate waits for a process to start, and nothing
    waits for a slot but the search itself, between generations. Tune does not keep the state of a scheduler; the
    journal has all of it.
    """

    def __init__(
        self, search: Search, journal: Journal, shares: Shares, progress: Progress, resources: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.failure = "none was seen"
        self._search = search
        self._journal = journal
        self._shares = shares
        self._progress = progress
        self._resources = resources
        self._seen_running = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its settings down, this one among them, and here nobody reads them

    @property
    def left(self) -> int:
        """Candidates that wait for a score."""
        return self._shares.left

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        with self._error_kept():
            self._progress.tick()
            self._check_running(tune_controller)
        if not self._over:
            return super().choose_trial_to_run(tune_controller)
        for trial in list(tune_controller.get_live_trials()):
            self._stop(tune_controller, trial)
        return None

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        with self._error_kept():
            if _MISTAKE in result:
                raise ValueError(result[_MISTAKE])
            if _SCORES in result:
                self._take(trial.trial_id, result)
            if not self._over:
                share = self._shares.deal(trial.trial_id)
                return self.CONTINUE if share is None else self._hand_over(trial, share)
        return self.NOOP  # `choose_trial_to_run` stops all

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        trial.set_config({})  # when it starts again, others may have its share
        with self._error_kept():
            self.failure = last_line(trial)
            print(f"          slot {trial.trial_id} failed: {self.failure}", flush=True)
            self._shares.lost(trial.trial_id, self.failure)

    def debug_string(self) -> str:
        return f"{self._search.evaluated} candidates scored, {self.left} wait"

    @property
    def _over(self) -> bool:
        return self.error is not None or not self._shares.left

    @contextmanager
    def _error_kept(self) -> Iterator[None]:
        """Keeps the first error for the caller: Tune would make the text of a traceback of it."""
        try:
            yield
        except Exception as error:  # whatever it is, `_run` raises it again
            self.error = self.error or error

    def _take(self, slot: str, result: dict[str, Any]) -> None:
        scores, seconds = result[_SCORES], result[_SECONDS]
        settle(
            self._search,
            self._journal,
            self._shares.score(slot, result[_NUMBER], scores, seconds),
            seconds / len(scores),
        )
        self._shares.add(unknown(self._search, self._journal))

    def _hand_over(self, trial: TuneTrial, share: Share) -> str:
        """Gives a running trial its next share; returns what Tune is to do with the trial.

        Tasks of an actor run in the order of their calls, so the share is there before the `train` that follows. A
        version of Ray whose trials do not tell their actor gets the share by pausing and resuming the trial.
        """
        architectures = [dict(candidate.architecture) for candidate in share.candidates]
        trial.set_config({_NUMBER: share.number, _ARCHITECTURES: architectures})
        actor = _actor(trial)
        if actor is None:
            return self.PAUSE
        actor.assign.remote(trial.config)
        return self.CONTINUE

    def _stop(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Stops a trial for good, in the middle of a share if it has one: nobody needs its scores."""
        actor = _actor(trial)
        tune_controller.stop_trial(trial)
        if actor is not None and trial.trial_id in self._shares.busy:
            ray.kill(actor)

    def _check_running(self, tune_controller: Any) -> None:
        """RuntimeError if no slot runs, and none could."""
        now = time.monotonic()
        if any(trial.status == TuneTrial.RUNNING for trial in tune_controller.get_live_trials()):
            self._seen_running = now
        if now - self._seen_running > NOBODY_SECONDS:
            self._seen_running = now
            try:
                check_slots(1, self._resources, alive_nodes())
            except ValueError as error:
                raise RuntimeError(
                    f"all slots were lost with their nodes: {error}. All scores so far are in the journal, and the "
                    "same call goes on"
                ) from error


class _Silence(TrialProgressCallback):  # type: ignore[misc]
    """In place of what Tune prints of trials that end."""

    def on_trial_result(self, **info: Any) -> None: ...

    def on_trial_error(self, **info: Any) -> None: ...

    def on_trial_complete(self, **info: Any) -> None: ...


def _actor(trial: TuneTrial) -> Any | None:
    """The process of a running trial, None where Ray does not tell: the one thing used here that is not public."""
    try:
        return trial.temporary_state.ray_actor
    except AttributeError:
        return None


class _Slot(tune.Trainable):  # type: ignore[misc]
    """A process that evaluates what it is dealt, and a moment of sleep when there is nothing."""

    def setup(self, config: dict[str, Any], evaluate: Evaluate) -> None:
        self._dealt = config
        self._pause = _FIRST_PAUSE
        self._mistake: str | None = None
        self._evaluate = evaluate
        try:
            evaluate.setup()
        except ValueError as error:
            self._mistake = str(error)

    def assign(self, config: dict[str, Any]) -> None:
        """The share to evaluate in the next step."""
        self._dealt = config

    def step(self) -> dict[str, Any]:
        dealt, self._dealt = self._dealt, {}
        if self._mistake is not None:
            return {_MISTAKE: self._mistake}
        if not dealt:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return {}
        self._pause = _FIRST_PAUSE
        began = time.perf_counter()
        try:
            scores = evaluated(self._evaluate, [Architecture(numbers) for numbers in dealt[_ARCHITECTURES]])
        except ValueError as error:
            return {_MISTAKE: str(error)}
        return {_NUMBER: dealt[_NUMBER], _SCORES: scores, _SECONDS: time.perf_counter() - began}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._dealt = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # a paused slot has nothing to remember

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        return
