import os
from pathlib import Path
from typing import Any

import pytest
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from tas_ray.choices import Architecture
from tas_ray.cluster import population, shares
from tas_ray.cluster.population import search_population
from tas_ray.cluster.resources import check_slots
from tas_ray.cluster.shares import Shares
from tas_ray.scores import Evaluate, Journal, Progress
from tests.cluster.evaluators import (
    CONTEXT,
    Deadly,
    Faulty,
    Formula,
    Said,
    Stuck,
    answers,
    asked,
    quiet_search,
    scores,
    search,
)
from tests.cluster.kills import started, wait_for

CPU = {"CPU": 1.0}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the journal of the search as one process finds it."""
    folder = tmp_path_factory.mktemp("quiet")
    quiet_search(folder)
    return folder


def run(folder: Path, evaluate: Evaluate, slots: int = 2, **changes: Any) -> Any:
    """A search on the cluster; returns it."""
    mine = search(changes.pop("barrier", True))
    settings: dict[str, Any] = {"context": CONTEXT, "resources": CPU, "on_progress": Said()}
    search_population(mine, evaluate, folder=folder, slots=slots, **(settings | changes))
    return mine


def heavy(quiet: Path, *places: int) -> list[Architecture]:
    """Networks by the order in which they were scored quietly."""
    return [list(scores(quiet))[place] for place in places]


@pytest.mark.parametrize("slots", [1, 4])
def test_the_answer_is_that_of_one_process_with_any_number_of_slots(
    cluster: None, tmp_path: Path, quiet: Path, slots: int
) -> None:
    said = Said()
    found = run(tmp_path, Formula(notes=tmp_path / "notes", seconds=0.005), slots, on_progress=said)
    assert scores(tmp_path) == scores(quiet)
    assert answers(found) == answers(quiet_search(quiet))
    assert len(asked(tmp_path / "notes")) == 96
    assert said.lines[-1][:3] == (96, 96, [found.best(0)[0].score, found.best(1)[0].score])
    assert len(list((tmp_path / "notes").glob("slot-*"))) <= slots
    assert [path.name for path in tmp_path.iterdir() if path.name != "notes"] == [Journal(tmp_path, CONTEXT).path.name]


def test_the_answer_is_the_same_if_slots_are_killed(cluster: None, tmp_path: Path, quiet: Path) -> None:
    deadly = heavy(quiet, 13, 50)
    found = run(tmp_path, Deadly(notes=tmp_path / "notes", deadly=deadly, seconds=0.005))
    assert len(list((tmp_path / "notes").glob("slot-*"))) > 2  # some were started again
    assert len(list((tmp_path / "notes").glob("once-*"))) == 2
    assert scores(tmp_path) == scores(quiet)
    assert answers(found) == answers(quiet_search(quiet))
    assert not held()


def held() -> list[Any]:
    """The placement groups of the cluster that still hold something."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def test_without_a_barrier_the_answer_does_not_depend_on_slots_either(cluster: None, tmp_path: Path) -> None:
    found = run(tmp_path / "ray", Formula(notes=tmp_path / "notes"), barrier=False)
    quiet = quiet_search(tmp_path / "quiet", barrier=False)
    assert scores(tmp_path / "ray") == scores(tmp_path / "quiet")
    assert answers(found) == answers(quiet)


def test_a_slot_that_never_ends_and_one_that_finds_no_room_are_left_behind(
    cluster: None, tmp_path: Path, quiet: Path
) -> None:
    (where,) = heavy(quiet, 5)
    other = placement_group([{"CPU": 2.0}])
    assert other.wait(60)
    try:
        run(tmp_path, Stuck(notes=tmp_path / "notes", where=where), slots=3)
    finally:
        remove_placement_group(other)
    assert len(list((tmp_path / "notes").glob("slot-*"))) == 2
    assert scores(tmp_path) == scores(quiet)
    assert not held()


def test_trials_that_do_not_tell_their_actor_are_paused_and_resumed(
    cluster: None, tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Journal(quiet, CONTEXT).path.read_bytes().splitlines(keepends=True)
    Journal(tmp_path, CONTEXT).path.write_bytes(b"".join(lines[:-1]))  # a process starts for every share
    monkeypatch.setattr(population, "_actor", lambda trial: None)
    run(tmp_path, Formula(notes=tmp_path / "notes"), slots=1)
    assert scores(tmp_path) == scores(quiet)


def test_what_the_journal_knows_is_not_evaluated(tmp_path: Path, quiet: Path) -> None:
    journal = Journal(tmp_path, CONTEXT).path
    journal.write_bytes(Journal(quiet, CONTEXT).path.read_bytes())
    run(tmp_path, Faulty(notes=tmp_path / "notes", error=AssertionError("evaluated")))  # and no cluster is needed


def test_the_callers_mistake_in_an_evaluation_ends_the_search(cluster: None, tmp_path: Path, quiet: Path) -> None:
    (where,) = heavy(quiet, 30)
    evaluate = Faulty(notes=tmp_path / "notes", error=ValueError("these are pictures of cats"), where=where)
    with pytest.raises(ValueError, match=r"^these are pictures of cats$"):
        run(tmp_path, evaluate, slots=1)
    assert 24 <= len(scores(tmp_path)) < 96
    assert set(scores(tmp_path).items()) < set(scores(quiet).items())


def test_the_callers_mistake_in_setup_ends_the_search(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no such checkpoint$"):
        run(tmp_path, Faulty(notes=tmp_path / "notes", error=ValueError("no such checkpoint")), slots=1)


def test_a_network_that_takes_every_slot_down_is_named(
    cluster: None, tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "ATTEMPTS", 2)
    (where,) = heavy(quiet, 3)
    evaluate = Faulty(notes=tmp_path / "notes", error=OSError("out of cheese"), where=where)
    with pytest.raises(RuntimeError, match=r"evaluation of .* failed 2 times.*: OSError: out of cheese\. ") as raised:
        run(tmp_path, evaluate, slots=1)
    assert str(dict(where)) in str(raised.value)
    assert set(scores(tmp_path).items()) < set(scores(quiet).items())
    quiet_search(tmp_path)  # goes on from this journal
    assert scores(tmp_path) == scores(quiet)


def test_when_all_slots_are_lost_the_last_failure_is_told(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "ACTOR_RESTARTS", 1)
    evaluate = Faulty(notes=tmp_path / "notes", error=OSError("no device"))
    with pytest.raises(RuntimeError, match=r"all 1 slots were lost, each after 1 restarts, .*OSError: no device"):
        run(tmp_path, evaluate, slots=1)
    assert len(list((tmp_path / "notes").glob("slot-*"))) == 2
    assert not held()


def test_a_full_disk_is_told_and_the_same_call_goes_on(
    cluster: None, tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.suffix == ".jsonl" and len(path.read_text().splitlines()) > 40:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match=r"No space left on device.*make room, and the same call goes on"):
        run(tmp_path, Formula(notes=tmp_path / "first"), slots=1)
    monkeypatch.undo()
    kept = scores(tmp_path)
    assert 24 <= len(kept) <= 40
    run(tmp_path, Formula(notes=tmp_path / "second"), slots=1)
    assert scores(tmp_path) == scores(quiet)
    assert not set(kept) & set(asked(tmp_path / "second"))


@pytest.mark.parametrize(("slots", "resources"), [(0, CPU), (-1, CPU), (5, CPU), (1, {"CPU": 5.0}), (1, {"GPU": 1.0})])
def test_slots_that_cannot_be_are_refused_before_anything_starts(
    cluster: None, tmp_path: Path, slots: int, resources: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=r"needs at least one slot|this cluster has room for \d: its nodes have"):
        run(tmp_path, Formula(notes=tmp_path / "notes"), slots, resources=resources)
    assert not (tmp_path / "notes").exists()


def test_a_share_of_a_gpu_does_not_reach_over_two() -> None:
    node = {"CPU": 16.0, "GPU": 2.0}
    check_slots(2, {"CPU": 1.0, "GPU": 0.6}, [node])
    with pytest.raises(ValueError, match=r"3 slots of 1 CPU \+ 0.6 GPU .* room for 2: .* 16 CPU \+ 2 GPU\."):
        check_slots(3, {"CPU": 1.0, "GPU": 0.6}, [node])
    with pytest.raises(ValueError, match="a slot needs some of the cluster"):
        check_slots(1, {"CPU": 0.0}, [node])


def test_a_search_that_handed_candidates_to_others_is_refused(cluster: None, tmp_path: Path) -> None:
    begun = search()
    begun.ask()
    with pytest.raises(ValueError, match="make it anew from the same settings and seed"):
        search_population(
            begun,
            Formula(notes=tmp_path),
            context=CONTEXT,
            folder=tmp_path,
            slots=1,
            resources=CPU,
            on_progress=Said(),
        )


def test_an_error_of_the_caller_told_of_progress_is_the_callers(cluster: None, tmp_path: Path) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(tmp_path, Formula(notes=tmp_path / "notes"), on_progress=broken)


def test_a_search_whose_nodes_are_gone_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(population, "alive_nodes", lambda: [{"CPU": 0.0}])
    monkeypatch.setattr(population, "NOBODY_SECONDS", 0.0)
    mine = search()
    scheduler = population.EvolutionaryPopulationScheduler(
        mine, Journal(tmp_path, CONTEXT), Shares(1), Progress(mine, Said()), CPU
    )
    scheduler.choose_trial_to_run(NoTrials())
    assert "all slots were lost with their nodes: 1 slots of 1 CPU" in str(scheduler.error)


class NoTrials:
    def get_live_trials(self) -> list[Any]:
        return []


def test_after_a_driver_is_killed_the_same_call_evaluates_nothing_twice(
    cluster: None, tmp_path: Path, quiet: Path
) -> None:
    folder = tmp_path / "search"
    journal = folder / Journal(quiet, CONTEXT).path.name

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    arguments = [str(folder), str(tmp_path / "first")]
    with started("tests.cluster.population_driver", arguments, tmp_path / "driver.log"):
        wait_for("scores of the second generation", lambda: lines() > 30)  # and SIGKILL
    before = scores(folder)
    assert 30 < len(before) < 96
    found = run(folder, Formula(notes=tmp_path / "second"))
    assert scores(folder) == scores(quiet)
    assert answers(found) == answers(quiet_search(quiet))
    assert not set(before) & set(asked(tmp_path / "second"))
    assert [path.name for path in folder.iterdir()] == [journal.name]
