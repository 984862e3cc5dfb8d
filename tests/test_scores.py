import json
import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tas_ray.choices import Architecture
from tas_ray.evolution import Evolution, Search
from tas_ray.scores import Entry, Journal, search_here
from tas_ray.space import load

CONTEXT = "0123456789abcdef0123"


def entry(width: int, score: float = 0.5) -> Entry:
    return Entry(Architecture({"width": width}), score, 0.1)


def test_scores_are_there_when_the_journal_is_opened_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "search", CONTEXT)
    journal.add([entry(1, 0.25), entry(2)])
    journal.add([entry(3, 1.0)])
    again = Journal(tmp_path / "search", CONTEXT)
    for one in (journal, again):
        assert len(one) == 3
        assert [one.known(entry(width).architecture) for width in (1, 2, 3, 4)] == [0.25, 0.5, 1.0, None]
    assert again.path == tmp_path / "search" / "scores-0123456789abcdef.jsonl"
    first = json.loads(again.path.read_text().splitlines()[0])
    assert first == {"architecture": {"width": 1}, "score": 0.25, "seconds": 0.1}


def test_another_context_has_another_journal(tmp_path: Path) -> None:
    Journal(tmp_path, CONTEXT).add([entry(1)])
    assert Journal(tmp_path, "f" + CONTEXT).known(entry(1).architecture) is None


@pytest.mark.parametrize("context", ["", "short", "../../0123456789abcdef"])
def test_a_context_that_is_no_hash_is_refused(tmp_path: Path, context: str) -> None:
    with pytest.raises(ValueError, match="a hash of 16 or more"):
        Journal(tmp_path, context)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_kept_as_nan(tmp_path: Path, score: float) -> None:
    journal = Journal(tmp_path, CONTEXT)
    journal.add([entry(1, score)])
    for one in (journal, Journal(tmp_path, CONTEXT)):
        known = one.known(entry(1).architecture)
        assert known is not None
        assert math.isnan(known)
    assert json.loads(journal.path.read_text())["score"] is None


def test_the_first_score_of_a_network_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, CONTEXT)
    journal.add([entry(1, 0.25)])
    journal.add([entry(1, 0.75)])
    assert journal.known(entry(1).architecture) == 0.25
    assert Journal(tmp_path, CONTEXT).known(entry(1).architecture) == 0.25


def test_a_last_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, CONTEXT)
    journal.add([entry(1)])
    whole = journal.path.read_bytes()
    journal.add([entry(2)])
    both = journal.path.read_bytes()
    for length in range(len(whole), len(both)):
        journal.path.write_bytes(both[:length])
        again = Journal(tmp_path, CONTEXT)
        assert len(again) == 1
        assert journal.path.read_bytes() == whole
    again.add([entry(3)])
    assert len(Journal(tmp_path, CONTEXT)) == 2


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "null", '{"score": 1}', '{"architecture": 3, "score": 1, "seconds": 1}', "\x00\x00"]
)
def test_any_other_line_that_is_no_score_is_named(tmp_path: Path, line: str) -> None:
    journal = Journal(tmp_path, CONTEXT)
    journal.add([entry(1)])
    whole = journal.path.read_text()
    journal.path.write_text(whole + line + "\n" + whole)
    with pytest.raises(ValueError, match=rf"line 2 of {journal.path} is no score"):
        Journal(tmp_path, CONTEXT)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Give another, writable folder"):
        Journal(tmp_path / "file" / "search", CONTEXT)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond this size, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path, CONTEXT)
    journal.add([entry(1)])
    whole = journal.path.read_bytes()
    with room_for(len(whole) + 10), pytest.raises(RuntimeError, match=r"The 1 in it are kept: make room"):
        journal.add([entry(2)])
    assert journal.path.read_bytes() == whole
    assert journal.known(entry(2).architecture) is None
    journal.add([entry(2)])
    assert len(Journal(tmp_path, CONTEXT)) == 2


class Counting:
    """Scores by the MACs' last digits, and remembers what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.setups = 0
        self.asked: list[Architecture] = []
        self._fail_after = fail_after

    def setup(self) -> None:
        self.setups += 1

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        self.asked += architectures
        if self._fail_after == len(self.asked):
            raise KeyboardInterrupt
        return [sum(architecture.values()) % 17 / 17 for architecture in architectures]


def search() -> Search:
    space = load("search_spaces.tiny:tiny", classes=10, image_size=8)
    settings = Evolution(population=10, parents=4, mutations=5, crossovers=5, generations=3)
    return Search(space, [space.budget(0.5), space.budget(0.7)], settings, seed=0)


Told = list[tuple[int, int, list[float]]]


def drive(folder: Path, evaluate: Counting) -> tuple[Search, Told]:
    mine, told = search(), Told()
    search_here(
        mine,
        evaluate,
        Journal(folder, CONTEXT),
        lambda done, total, best, seconds: told.append((done, total, list(best))),
    )
    return mine, told


def test_a_search_in_this_process_ends_with_its_answer(tmp_path: Path) -> None:
    evaluate = Counting()
    mine, told = drive(tmp_path, evaluate)
    assert mine.finished
    assert (evaluate.setups, len(evaluate.asked), len(set(evaluate.asked))) == (1, 60, 60)
    assert told[-1] == (60, 60, [mine.best(budget)[0].score for budget in (0, 1)])
    assert len(Journal(tmp_path, CONTEXT)) == 60


def test_an_interrupted_search_goes_on_and_evaluates_nothing_twice(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, Counting(fail_after=35))
    evaluate = Counting()
    mine, _ = drive(tmp_path, evaluate)
    assert len(evaluate.asked) == 60 - 34
    other, _ = drive(tmp_path / "other", Counting())
    assert [mine.best(budget, 60) for budget in (0, 1)] == [other.best(budget, 60) for budget in (0, 1)]


def test_a_finished_search_does_not_even_prepare_the_evaluation(tmp_path: Path) -> None:
    drive(tmp_path, Counting())
    evaluate = Counting()
    mine, told = drive(tmp_path, evaluate)
    assert (mine.finished, evaluate.setups, evaluate.asked) == (True, 0, [])
    assert told[-1][0] == 60


def test_a_search_that_handed_candidates_to_others_is_refused(tmp_path: Path) -> None:
    begun = search()
    begun.ask()
    with pytest.raises(ValueError, match="make it anew from the same settings and seed"):
        search_here(begun, Counting(), Journal(tmp_path, CONTEXT), lambda *_: None)


class Short(Counting):
    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        return []


def test_an_evaluation_without_a_score_for_each_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave 0 for 1"):
        drive(tmp_path, Short())
