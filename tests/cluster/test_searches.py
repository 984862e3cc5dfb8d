"""Evolving methods in a sweep: one supernet, one search for all budgets, the same answer whatever is lost."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tas_ray.cluster.config import Optuna, Range, Resources, Sweep
from tas_ray.cluster.plan import SEARCHES_FOLDER, SUPERNETS_FOLDER, SharedSearch, plan_sweep
from tas_ray.cluster.searches import run_search
from tas_ray.cluster.sweep import sweep
from tas_ray.data import load
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.metapruning import MetaPruning, RandomSearch, published_training
from tas_ray.methods.method import Method
from tas_ray.pipeline import WINNERS_FILE, read_winner
from tas_ray.supernets import SUPERNET_FILE
from tests.cluster.kills import kill_actors, wait_for
from tests.cluster.settings import settings

pytestmark = pytest.mark.usefixtures("cluster")

METHOD = MetaPruning(
    supernet=replace(published_training(), epochs=12, batch_size=32, learning_rate=0.1),
    hidden=16,
    sampler="even",
    evaluation=Evaluation(calibration_images=200, images=200),
    evolution=Evolution(population=8, parents=3, mutations=4, crossovers=4, generations=3),
)
BUDGETS = (0.3, 0.6)
SLOT = "with_resources.<locals>.ResourceTrainable"
"""What Ray calls the actor of a trial whose trainable is a class."""


def config(folder: Path, *methods: Method) -> Sweep:
    return settings(folder, methods=methods, budgets=BUDGETS, resources=Resources(slots=1))


def scores(folder: Path) -> dict[str, str]:
    """The lines of every search's journal without their times, by name of the search."""
    return {
        journal.parent.name: "\n".join(
            sorted(line.split(', "seconds"')[0] for line in journal.read_text().splitlines())
        )
        for journal in (folder / SEARCHES_FOLDER).glob("*/scores-*.jsonl")
    }


@pytest.fixture(scope="module")
def quiet(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, pd.DataFrame]:
    """A finished sweep whose search had one slot and met no accident."""
    work = config(tmp_path_factory.mktemp("quiet"), METHOD)
    return work, sweep(work)


def test_one_supernet_and_one_search_serve_all_budgets(quiet: tuple[Sweep, pd.DataFrame]) -> None:
    work, table = quiet
    assert list(table["method"]) == ["metapruning"] * 2
    assert (table["macs"] <= table["budget_macs"]).all()
    assert list(table["evaluations"]) == [48] * 2
    (supernet,) = (work.folder / SUPERNETS_FOLDER).iterdir()
    assert {file.name for file in supernet.iterdir()} == {"supernet.pt"}
    assert len(scores(work.folder)) == 1


def searched_again(quiet: Sweep, folder: Path, *methods: Method) -> list[SharedSearch]:
    """The searches of a new sweep that finds the supernet of a quiet one."""
    work = config(folder, *methods)
    shutil.copytree(quiet.folder / SUPERNETS_FOLDER, work.folder / SUPERNETS_FOLDER)
    return list(plan_sweep(work, load(work.data, torch.device("cpu"))).searches)


def winners(search: SharedSearch) -> list[dict[str, Any]]:
    space = search.supernet.space.load(classes=10, image_size=8)
    found = [read_winner(search.folder, space.budget(budget)) for budget in search.budgets]
    return [{name: value for name, value in winner.items() if name != "seconds"} for winner in found]


def test_a_lost_slot_and_more_slots_change_no_score_and_no_winner(
    quiet: tuple[Sweep, pd.DataFrame], tmp_path: Path
) -> None:
    (search,) = searched_again(quiet[0], tmp_path, METHOD)
    killer = threading.Thread(target=lambda: wait_for("a slot to kill", lambda: kill_actors(SLOT, most=1)))
    killer.start()
    run_search(search, Resources(slots=2), {})
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert scores(search.folder.parents[1]) == scores(quiet[0].folder)
    (before,) = plan_sweep(quiet[0], load(quiet[0].data, torch.device("cpu"))).searches
    assert winners(search) == winners(before)


def test_random_search_scores_as_many_with_the_same_supernet(quiet: tuple[Sweep, pd.DataFrame], tmp_path: Path) -> None:
    evolution, random = searched_again(quiet[0], tmp_path, METHOD, RandomSearch.beside(METHOD))
    supernet = evolution.supernet.folder / SUPERNET_FILE
    stamp = supernet.stat().st_mtime_ns
    run_search(random, Resources(slots=2), {})
    assert supernet.stat().st_mtime_ns == stamp
    assert {winner["evaluations"] for winner in winners(random)} == {48}


def test_a_search_that_lost_its_winners_is_answered_from_its_journal(quiet: tuple[Sweep, pd.DataFrame]) -> None:
    work, _ = quiet
    before = scores(work.folder)
    stamps = {path: path.stat().st_mtime_ns for path in work.folder.glob("*/*/scores-*")}
    found = {path: path.read_text() for path in work.folder.glob(f"{SEARCHES_FOLDER}/*/{WINNERS_FILE}")}
    for path in found:
        path.unlink()
    (work.folder / "trials" / "metapruning-0.3-seed0" / "result.json").unlink()
    sweep(work)
    assert {path: path.read_text() for path in found} == found
    assert scores(work.folder) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_optuna_may_not_choose_what_is_searched_once(tmp_path: Path) -> None:
    work = settings(
        tmp_path,
        methods=(METHOD,),
        optuna=Optuna(parameters={"method.hidden": Range(low=8, high=16)}, trials=2),
        holdout=True,
    )
    with pytest.raises(ValueError, match=r"metapruning searches once for all trials.*method\.hidden"):
        plan_sweep(work, load(work.data, torch.device("cpu")))
