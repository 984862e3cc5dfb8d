"""The fidelity of a search whose supernet and scores a test has written, so that only the retraining takes time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tas_ray import data
from tas_ray.choices import Architecture
from tas_ray.cli import main
from tas_ray.cluster import fidelity as cluster_fidelity
from tas_ray.cluster.config import Fidelity, Resources, Sweep
from tas_ray.cluster.fidelity import fidelity, plan_fidelity
from tas_ray.cluster.folder import keep_config, kept_sweep
from tas_ray.cluster.plan import plan_sweep
from tas_ray.cluster.tuner import Runner
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.baselines import Uniform
from tas_ray.methods.metapruning import MetaPruning
from tas_ray.pipeline import WINNERS_FILE, Trial, run
from tas_ray.results import leaderboard, read_correlations
from tas_ray.scores import Entry, Journal
from tas_ray.space import Budget
from tas_ray.supernets import about, context_of, images_for, save_supernet
from tas_ray.workers import FileCheckpoints, Workers
from tests.cluster.settings import settings, training

DIGITS = data.load(data.DataConfig(), torch.device("cpu"))
EVOLUTION = Evolution(population=4, parents=2, mutations=2, crossovers=2, generations=2)
METHOD = MetaPruning(supernet=training(nesterov=False), hidden=4, hidden_alone=4, evolution=EVOLUTION)
THREE = Fidelity(networks=3, epochs=1, below=0.5, resources=Resources(cpus_per_worker=1.0))


def a_run(storage: Path, **changes: object) -> Sweep:
    """A run whose search has finished: scores of 30 networks at half the MACs, all made up."""
    sweep = settings(storage, methods=(METHOD,), budgets=(0.5,), retrain=training(5, learning_rate=0.05))
    sweep = replace(sweep, **changes)  # type: ignore[arg-type]
    keep_config(sweep)
    for search in plan_sweep(sweep, DIGITS).searches:
        space = sweep.space.load(classes=DIGITS.classes, image_size=DIGITS.image_size)
        supernet = search.supernet.folder / "supernet.pt"
        save_supernet(supernet, search.method.task(space, seed=0), about(sweep.space, sweep.data, DIGITS), 1.0)
        most = space.budget(0.5).most
        budget = Budget(most=most, least=most // 2)
        networks = dict.fromkeys(space.sample(budget, seed=seed) for seed in range(30))
        context = context_of(supernet, images_for(DIGITS, search.method.evaluation), space)
        Journal(search.folder, context).add([Entry(network, i / 100, 0.1) for i, network in enumerate(networks)])
        found = {"architecture": dict(next(iter(networks))), "accuracy": 0.0, "evaluations": 30, "seconds": 1.0}
        won = {"budget": [0, most], **found}
        (search.folder / WINNERS_FILE).write_text(json.dumps([won]))
    return sweep


# What is planned, without a cluster


def test_the_settings_of_a_run_come_back_from_its_folder(tmp_path: Path) -> None:
    sweep = a_run(tmp_path, grid={"method.hidden": (4, 5), "retrain.learning_rate": (0.1,)}, seeds=(0, 3))
    again = kept_sweep(sweep.folder)
    assert again == sweep
    assert [search.folder for search in plan_sweep(again, DIGITS).searches] == [
        search.folder for search in plan_sweep(sweep, DIGITS).searches
    ]
    assert [search.name for search in {study.search.folder: study.search for study in planned(again)}.values()] == [
        search.name for search in plan_sweep(sweep, DIGITS).searches
    ]


def planned(sweep: Sweep, **changes: object) -> list:  # type: ignore[type-arg]
    return plan_fidelity(sweep, replace(THREE, **changes), DIGITS)  # type: ignore[arg-type]


def test_the_plan_is_the_same_every_time_and_touches_neither_test_split_nor_trials(tmp_path: Path) -> None:
    sweep = a_run(tmp_path)
    (study,) = planned(sweep)
    assert planned(sweep) == [study]
    assert [candidate.score for candidate in study.candidates] == sorted(c.score for c in study.candidates)
    for trial, candidate in zip(study.trials, study.candidates, strict=True):
        assert trial.folder.parent == sweep.folder / "fidelity" / study.search.name
        assert trial.method.architecture == candidate.architecture
        assert study.budget.most / 2 <= trial.budget <= study.budget.most
        assert (trial.holdout, trial.unscored, trial.teacher) == (True, METHOD.evaluation, None)
        assert trial.retrain == replace(sweep.retrain, epochs=1)
    (longer,) = planned(sweep, epochs=None)
    assert {trial.retrain.epochs for trial in longer.trials} == {5 // 5}
    assert planned(sweep, epochs=2)[0].trials[0].folder != study.trials[0].folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": 40}, r"40 networks were asked for, but the search scored \d+ there"),
        ({"below": 0.0001}, r"3 networks were asked for, but the search scored \d there"),
        ({"budgets": (0.25,)}, r"no search was for a budget of 0.25; there are 0.5"),
        ({"searches": ("other",)}, r"has no search other; it has metapruning-seed0-"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_spent(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    sweep = a_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        planned(sweep, **changes)
    assert not (sweep.folder / "fidelity").exists()


def test_searches_that_are_missing_unfinished_or_of_other_scores_are_refused(tmp_path: Path) -> None:
    plain = settings(tmp_path / "plain", methods=(Uniform(),))
    with pytest.raises(ValueError, match="has no search that scores candidates: its methods are uniform"):
        planned(plain)
    sweep = a_run(tmp_path / "evolved")
    (folder,) = (sweep.folder / "searches").iterdir()
    (supernet,) = sweep.folder.glob("supernets/*/supernet.pt")
    supernet.write_bytes(supernet.read_bytes() + b" ")
    with pytest.raises(ValueError, match="has no scores of these images by"):
        planned(sweep)
    assert len(list(folder.glob("scores-*"))) == 1
    supernet.unlink()
    with pytest.raises(ValueError, match=r"supernet.pt is missing"):
        planned(sweep)
    (folder / WINNERS_FILE).unlink()
    with pytest.raises(ValueError, match="has finished: the command that began the run"):
        planned(sweep)


def test_a_search_that_scored_on_all_images_is_refused(tmp_path: Path) -> None:
    everything = Evaluation(images=DIGITS.size("search"))
    sweep = a_run(tmp_path, methods=(replace(METHOD, evaluation=everything),))
    with pytest.raises(ValueError, match=r"fewer `evaluation.images`"):
        planned(sweep)


@pytest.mark.parametrize("changes", [{"networks": 2}, {"epochs": 0}, {"below": 0.0}, {"below": 1.5}])
def test_impossible_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is {next(iter(changes.values()))}"):
        Fidelity(**changes)  # type: ignore[arg-type]


def test_a_folder_without_settings_that_can_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        kept_sweep(tmp_path)
    sweep = a_run(tmp_path)
    path = sweep.folder / "config.json"
    kept = path.read_text()
    for broken in (kept[:-9], kept.replace('"MetaPruning"', '"Elsewhere"'), kept.replace('"hidden"', '"concealed"')):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"config.json cannot be read"):
            kept_sweep(sweep.folder)
    path.write_text(kept)
    renamed = sweep.folder.rename(tmp_path / "renamed")
    with pytest.raises(ValueError, match="give the folder its name back"):
        kept_sweep(renamed)


def test_failed_trainings_are_named_and_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = a_run(tmp_path)
    monkeypatch.setattr(cluster_fidelity, "connect", lambda: None)
    monkeypatch.setattr(cluster_fidelity, "alive_nodes", lambda: [{"CPU": 1.0}])

    def diverging(self: Runner, trials: Sequence[Trial]) -> None:
        self.progress.failures[trials[0].name] = "training diverged"

    monkeypatch.setattr(Runner, "fixed", diverging)
    with pytest.raises(RuntimeError, match=r"1 training\(s\) failed; the same command.*\n.*: training diverged"):
        fidelity(sweep, THREE)
    assert read_correlations(sweep.folder) == []


# From a run's folder to its leaderboard


@pytest.mark.usefixtures("cluster")
def test_the_fidelity_of_a_search_goes_on_where_it_was_and_stands_in_the_leaderboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = a_run(tmp_path)
    (winner,) = plan_sweep(sweep, DIGITS).trials
    run(winner, Workers(), FileCheckpoints(tmp_path / "state.pt"), lambda metrics: None)
    (study,) = planned(sweep)
    done = study.trials[0].folder / "measured.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"macs": 1, "validation_accuracy": 0.001, "images": 135, "retrain_seconds": 1.0}))

    (found,) = fidelity(kept_sweep(sweep.folder), THREE)

    said = capsys.readouterr().out
    assert "2 of 3 networks to be retrained" in said
    assert "[2/2] metapruning-seed0-" in said
    assert [found] == read_correlations(sweep.folder)
    assert (found.networks, found.epochs, found.images) == (3, 1, 135)
    (written,) = json.loads((study.search.folder / "fidelity.json").read_text())
    assert written["retrained"][0]["accuracy"] == 0.001
    assert [Architecture(one["architecture"]) for one in written["retrained"]] == [
        candidate.architecture for candidate in study.candidates
    ]
    for trial in study.trials:
        assert [path.name for path in trial.folder.iterdir()] == ["measured.json"]

    (row,) = leaderboard(sweep.folder).to_dict("records")
    assert (row["trial"], row["search"]) == (winner.name, study.search.name)
    assert (row["fidelity_tau"], row["fidelity_networks"]) == (pytest.approx(found.tau), 3)
    assert pd.read_csv(sweep.folder / "leaderboard.csv")["fidelity_tau"].tolist() == [pytest.approx(found.tau)]

    files = {path: path.stat().st_mtime_ns for path in sweep.folder.glob("fidelity/*/*/*")}
    main(["fidelity", str(sweep.folder), "--networks", "3", "--epochs", "1", "--below", "0.5"])
    said = capsys.readouterr().out
    assert "0 of 3 networks to be retrained" in said
    assert "Kendall's tau" in said
    assert {path: path.stat().st_mtime_ns for path in sweep.folder.glob("fidelity/*/*/*")} == files
