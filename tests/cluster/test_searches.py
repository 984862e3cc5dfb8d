"""Evolving methods in a sweep: one supernet, one search for all budgets, the same answer whatever is lost."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tas_ray.cluster.config import Optuna, Range, Resources, Sweep
from tas_ray.cluster.plan import SEARCHES_FOLDER, SUPERNETS_FOLDER, plan_sweep
from tas_ray.cluster.sweep import sweep
from tas_ray.data import load
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.metapruning import MetaPruning, RandomSearch, published_training
from tas_ray.methods.method import Method
from tas_ray.pipeline import WINNERS_FILE
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
SLOT = "with_resources.<locals>.ResourceTrainable"
"""What Ray calls the actor of a trial whose trainable is a class."""


def config(folder: Path, *methods: Method, slots: int) -> Sweep:
    return settings(folder, methods=methods, budgets=(0.3, 0.6), resources=Resources(slots=slots))


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
    work = config(tmp_path_factory.mktemp("quiet"), METHOD, slots=1)
    return work, sweep(work)


def test_one_supernet_and_one_search_serve_all_budgets(quiet: tuple[Sweep, pd.DataFrame]) -> None:
    work, table = quiet
    assert list(table["method"]) == ["metapruning"] * 2
    assert (table["macs"] <= table["budget_macs"]).all()
    assert list(table["evaluations"]) == [48] * 2
    (supernet,) = (work.folder / SUPERNETS_FOLDER).iterdir()
    assert {file.name for file in supernet.iterdir()} == {"supernet.pt"}
    assert len(scores(work.folder)) == 1


def test_a_lost_slot_more_slots_and_another_search_change_no_score_and_no_row(
    quiet: tuple[Sweep, pd.DataFrame], tmp_path: Path
) -> None:
    work = config(tmp_path, METHOD, RandomSearch.beside(METHOD), slots=2)
    shutil.copytree(quiet[0].folder / SUPERNETS_FOLDER, work.folder / SUPERNETS_FOLDER)
    (supernet,) = (work.folder / SUPERNETS_FOLDER).glob("*/supernet.pt")
    stamp = supernet.stat().st_mtime_ns
    killer = threading.Thread(target=lambda: wait_for("a slot to kill", lambda: kill_actors(SLOT, most=1)))
    killer.start()
    table = sweep(work)
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert list(work.folder.glob(f"{SUPERNETS_FOLDER}/*/*")) == [supernet]
    assert supernet.stat().st_mtime_ns == stamp
    assert len(scores(work.folder)) == 2
    assert scores(quiet[0].folder).items() <= scores(work.folder).items()
    evolved, random = (table[table["method"] == name] for name in ("metapruning", "random-search"))
    columns = ["trial", "architecture", "macs", "test_accuracy", "search_accuracy"]
    pd.testing.assert_frame_equal(evolved[columns].reset_index(drop=True), quiet[1][columns])
    assert (random["macs"] <= random["budget_macs"]).all()
    assert list(random["evaluations"]) == [48] * 2


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
