"""Retrains some candidates of a run's finished searches, and says how well the searches' scores rank them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tas_ray import data, pipeline
from tas_ray.cluster.config import Fidelity, Sweep
from tas_ray.cluster.cost import cost_of
from tas_ray.cluster.folder import claimed
from tas_ray.cluster.plan import SharedSearch, plan_sweep
from tas_ray.cluster.progress import Progress
from tas_ray.cluster.resources import alive_nodes, check_resources
from tas_ray.cluster.searches import searched
from tas_ray.cluster.sweep import publish
from tas_ray.cluster.tuner import Runner, connect
from tas_ray.data import Dataset
from tas_ray.fidelity import ScoredNetwork, comparable, kendall, stratified
from tas_ray.methods.baselines import Given
from tas_ray.pipeline import MEASURED_FILE, Trial, read_measured
from tas_ray.randomness import seed_of
from tas_ray.results import RankCorrelation, write_correlation
from tas_ray.scores import Journal, journal_file
from tas_ray.space import Budget
from tas_ray.supernets import SUPERNET_FILE, context_of, images_for, unscored_by
from tas_ray.train import Training

FIDELITY_FOLDER = "fidelity"
SHORT = 5
"""Left out, the epochs are those of the run's retraining divided by this."""


def fidelity(sweep: Sweep, settings: Fidelity) -> list[RankCorrelation]:
    """Retrains candidates of a sweep's finished searches, and says for each search and budget how its scores rank them.

    What comes back also lies in `fidelity.json` in the folder of each search, from where the leaderboard has it. After
    a kill at any moment the same call goes on.

    Raises:
        ValueError: the caller's mistake, before anything is spent; or all networks came out the same.
        RuntimeError: trainings failed; names each with its error. The same call tries them again.
    """
    with claimed(sweep.folder):
        dataset = data.load(sweep.data, torch.device("cpu"))
        studies = plan_fidelity(sweep, settings, dataset)
        _retrain(sweep, settings, studies, dataset)
        found = [_correlated(study, sweep, dataset) for study in studies]
        publish(sweep.folder)
    return found


@dataclass(frozen=True, kw_only=True)
class FidelityStudy:
    """A search at one of its budgets, and candidates that show how far its scores can be trusted there."""

    search: SharedSearch
    budget: Budget
    candidates: Sequence[ScoredNetwork]

    trials: Sequence[Trial]
    """What retrains them, in the same order."""


def plan_fidelity(sweep: Sweep, settings: Fidelity, dataset: Dataset) -> list[FidelityStudy]:
    """What has to be retrained, checked; the same networks for the same settings, finished ones too.

    Raises:
        ValueError: no search has finished, or there is none of these names or for these budgets; it scored too few
            networks there, or left no image unscored.
    """
    finished = _finished(sweep, settings, plan_sweep(sweep, dataset).searches)
    known = {amount for search in finished for amount in search.budgets}
    unknown = sorted(set(settings.budgets) - known)
    if unknown:
        raise ValueError(f"no search was for a budget of {_listed(unknown)}; there are {_listed(sorted(known))}")
    return [study for search in finished for study in _studies(search, sweep, settings, dataset)]


def _finished(sweep: Sweep, settings: Fidelity, searches: Sequence[SharedSearch]) -> list[SharedSearch]:
    if not searches:
        names = ", ".join(method.name for method in sweep.methods)
        raise ValueError(f"{sweep.folder} has no search that scores candidates: its methods are {names}")
    unknown = set(settings.searches) - {search.name for search in searches}
    if unknown:
        there = ", ".join(search.name for search in searches)
        raise ValueError(f"{sweep.folder} has no search {', '.join(sorted(unknown))}; it has {there}")
    wanted = [search for search in searches if not settings.searches or search.name in settings.searches]
    finished = [search for search in wanted if searched(search)]
    if not finished:
        raise ValueError(f"no search of {sweep.folder} has finished: the command that began the run goes on with it")
    return finished


def _studies(search: SharedSearch, sweep: Sweep, settings: Fidelity, dataset: Dataset) -> list[FidelityStudy]:
    evaluation = search.method.evaluation
    unscored_by(dataset, evaluation)
    space = sweep.space.load(classes=dataset.classes, image_size=dataset.image_size)
    supernet = search.supernet.folder / SUPERNET_FILE
    if not supernet.is_file():
        raise ValueError(f"{supernet} is missing: without it nobody knows which scores of {search.name} are its own")
    context = context_of(supernet, images_for(dataset, evaluation), space)
    if not journal_file(search.folder, context).is_file():
        raise ValueError(
            f"{search.folder} has no scores of these images by {supernet}: one of them is not what the search had. "
            "Move both folders aside, and the command that began the run searches again"
        )
    scores = Journal(search.folder, context).scored()
    studies = []
    for amount in search.budgets:
        if settings.budgets and amount not in settings.budgets:
            continue
        budget = space.budget(amount, window=search.method.window)
        candidates = comparable(space, scores, budget, below=settings.below)
        try:
            chosen = stratified(candidates, settings.networks, seed=seed_of(search.name, budget.most))
        except ValueError as error:
            raise ValueError(f"{search.name} at a budget of {budget.most} MACs: {error}") from error
        trials = [_trial(candidate, search, sweep, settings) for candidate in chosen]
        for trial in trials:
            pipeline.plan(trial, classes=dataset.classes, image_size=dataset.image_size)
        studies.append(FidelityStudy(search=search, budget=budget, candidates=chosen, trials=trials))
    return studies


def _trial(candidate: ScoredNetwork, search: SharedSearch, sweep: Sweep, settings: Fidelity) -> Trial:
    training = _short(sweep.retrain, settings.epochs)
    told_apart = repr((sorted(candidate.architecture.items()), training))
    digest = hashlib.sha256(told_apart.encode()).hexdigest()[:8]
    return Trial(
        run=sweep.run,
        name=f"{search.name}-{digest}",
        folder=sweep.folder / FIDELITY_FOLDER / search.name / digest,
        space=search.supernet.space,
        data=search.supernet.data,
        method=Given(architecture=candidate.architecture),
        budget=float(candidate.macs),
        seed=search.seed,
        retrain=training,
        holdout=True,
        unscored=search.method.evaluation,
        checkpoint_seconds=sweep.checkpoint_seconds,
    )


def _short(training: Training, epochs: int | None) -> Training:
    """The training with so many epochs and the same share of them for warm-up."""
    epochs = max(1, training.epochs // SHORT) if epochs is None else epochs
    return replace(training, epochs=epochs, warmup_epochs=training.warmup_epochs * epochs // training.epochs)


def _retrain(sweep: Sweep, settings: Fidelity, studies: Sequence[FidelityStudy], dataset: Dataset) -> None:
    """Runs what is not measured yet on a cluster."""
    trials = {trial.name: trial for study in studies for trial in study.trials}  # budgets may share one
    left = [trial for trial in trials.values() if not (trial.folder / MEASURED_FILE).exists()]
    costs = {trial.name: cost_of(trial, dataset).total for trial in left}
    total = sum(costs.values())
    print(
        f"{len(left)} of {len(trials)} networks to be retrained in {sweep.folder / FIDELITY_FOLDER}. "
        f"Estimate: {total:.2g} MACs of training (twice as many floating-point operations)",
        flush=True,
    )
    if not left:
        return
    connect()
    at_once = check_resources(settings.resources, alive_nodes())
    progress = Progress(sweep.folder, lambda trial: costs[trial.name], len(left), total)
    runner = Runner(
        folder=sweep.folder / FIDELITY_FOLDER,
        resources=settings.resources,
        at_once=settings.resources.concurrent_trials or at_once,
        asha=None,
        progress=progress,
    )
    runner.fixed(left)
    if progress.failures:
        listed = "\n".join(f"  {name}: {why}" for name, why in progress.failures.items())
        raise RuntimeError(f"{len(progress.failures)} training(s) failed; the same command tries them again:\n{listed}")


def _correlated(study: FidelityStudy, sweep: Sweep, dataset: Dataset) -> RankCorrelation:
    """What the retrained networks of a study say, also written to the search's folder."""
    search, budget = study.search, study.budget
    measured = [read_measured(trial.folder) for trial in study.trials]
    scores = [candidate.score for candidate in study.candidates]
    accuracies = [one.validation_accuracy for one in measured]
    try:
        tau = kendall(scores, accuracies, seed=seed_of(search.name, budget.most))
    except ValueError as error:
        raise ValueError(f"{search.name} at a budget of {budget.most} MACs: {error}") from error
    correlation = RankCorrelation(
        run=sweep.run,
        search=search.name,
        budget_macs=budget.most,
        tau=tau.tau,
        low=tau.low,
        high=tau.high,
        p=tau.p,
        networks=len(measured),
        epochs=study.trials[0].retrain.epochs,
        images=measured[0].images,
    )
    networks = [
        {"architecture": dict(c.architecture), "macs": c.macs, "score": c.score, "accuracy": accuracy}
        for c, accuracy in zip(study.candidates, accuracies, strict=True)
    ]
    write_correlation(search.folder, correlation, networks)
    print(
        f"{search.name} at {budget.most} MACs: Kendall's tau {tau.tau:.2f} between scores and accuracies of "
        f"{len(measured)} networks, 95 % interval {tau.low:.2f} to {tau.high:.2f}, p {tau.p:.2g}",
        flush=True,
    )
    return correlation


def _listed(budgets: Sequence[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)
