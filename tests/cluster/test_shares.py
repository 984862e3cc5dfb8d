"""The dealing of shares, by a clock that stands still until a test moves it."""

from collections.abc import Sequence

import pytest

from tas_ray.choices import Architecture
from tas_ray.cluster.shares import ATTEMPTS, SHARE_SECONDS, Share, Shares
from tas_ray.evolution import Candidate


class Table:
    """Shares among slots, with a clock."""

    def __init__(self, slots: int, macs: Sequence[int]) -> None:
        self.now = 0.0
        self.shares = Shares(slots, clock=lambda: self.now)
        self.add(macs)

    def add(self, macs: Sequence[int], first: int = 0) -> None:
        self.shares.add([Candidate(first + i, 0, Architecture({"a": first + i}), cost) for i, cost in enumerate(macs)])

    def deal(self, slot: str) -> tuple[Share, list[int]]:
        share = self.shares.deal(slot)
        assert share is not None
        return share, [candidate.ticket for candidate in share.candidates]

    def score(self, slot: str, share: Share, seconds: float) -> list[int]:
        """The tickets whose scores were new."""
        new = self.shares.score(slot, share.number, [0.5] * len(share.candidates), seconds)
        return [candidate.ticket for candidate, _ in new]


def test_the_costliest_come_first_and_one_by_one_while_nothing_is_known_of_their_time() -> None:
    table = Table(2, [10, 30, 20, 30])
    assert [table.deal(slot)[1] for slot in "abcd"] == [[1], [3], [2], [0]]
    assert table.shares.deal("e") is None


def test_short_evaluations_are_dealt_together_but_fewer_towards_the_end() -> None:
    table = Table(2, [1] * 100)
    sizes = []
    while table.shares.left:
        share, tickets = table.deal("a")
        sizes.append(len(tickets))
        table.score("a", share, 1e-4 * len(tickets))
    assert sizes[:3] == [1, 24, 18]
    assert sizes == [1, *sorted(sizes[1:], reverse=True)]
    assert sizes[-4:] == [1, 1, 1, 1]


def test_long_evaluations_are_dealt_alone() -> None:
    table = Table(2, [1] * 100)
    share, _ = table.deal("a")
    table.score("a", share, SHARE_SECONDS)
    assert len(table.deal("a")[1]) == 1


def test_a_lost_slots_share_is_dealt_again_each_of_it_alone() -> None:
    table = Table(1, [5] * 20)
    share, _ = table.deal("a")
    table.score("a", share, 0.01)
    share, tickets = table.deal("a")
    assert len(tickets) == 9
    table.shares.lost("a", "killed")
    again = []
    for _ in tickets:
        share, alone = table.deal("a")
        again += alone
        assert len(alone) == 1
        assert table.score("a", share, 0.01) == alone
    assert again == tickets
    assert len(table.deal("a")[1]) > 1


def test_a_slot_that_had_nothing_in_hand_may_be_lost() -> None:
    table = Table(1, [5])
    table.shares.lost("a", "killed")
    assert table.deal("a")[1] == [0]


def test_a_candidate_that_always_fails_is_named() -> None:
    table = Table(1, [5, 7])
    for _ in range(ATTEMPTS - 1):
        table.deal("a")
        table.shares.lost("a", "killed")
    table.deal("a")
    with pytest.raises(RuntimeError, match=rf"of {{'a': 1}} failed {ATTEMPTS} times, the last time with: killed\. "):
        table.shares.lost("a", "killed")


def test_a_late_share_is_dealt_again_when_nothing_else_is_left_and_the_first_score_counts() -> None:
    table = Table(2, [5, 7, 6])
    slow, _ = table.deal("a")
    share, tickets = table.deal("b")
    assert table.score("b", share, 1.0) == tickets == [2]
    table.now = 100.0
    share, tickets = table.deal("b")
    assert tickets == [0]  # what waits goes first
    assert table.score("b", share, 1.0) == [0]
    again, tickets = table.deal("b")
    assert tickets == [1]
    assert table.shares.deal("c") is None  # it was just dealt
    assert table.score("b", again, 1.0) == [1]
    assert table.shares.left == 0
    assert table.score("a", slow, 101.0) == []


def test_a_slot_is_not_late_before_several_times_the_usual_time() -> None:
    table = Table(2, [5, 7])
    table.deal("a")
    share, _ = table.deal("b")
    table.score("b", share, 10.0)
    table.now = 25.0
    assert table.shares.deal("b") is None
    table.now = 40.0
    assert table.deal("b")[1] == [1]


def test_the_late_first_score_counts_too() -> None:
    table = Table(2, [5, 7])
    slow, _ = table.deal("a")
    share, _ = table.deal("b")
    table.score("b", share, 1.0)
    table.now = 100.0
    again, _ = table.deal("b")
    assert table.score("a", slow, 100.0) == [1]
    assert table.score("b", again, 1.0) == []


def test_what_another_slot_has_in_hand_as_well_is_not_dealt_again_when_one_is_lost() -> None:
    table = Table(2, [5, 7])
    table.deal("a")
    share, _ = table.deal("b")
    table.score("b", share, 1.0)
    table.now = 100.0
    table.deal("b")
    table.shares.lost("a", "killed")
    assert table.shares.deal("a") is None


def test_the_scores_of_a_share_from_before_a_failure_are_dropped() -> None:
    table = Table(1, [5])
    share, _ = table.deal("a")
    table.shares.lost("a", "killed")
    assert table.score("a", share, 1.0) == []
    again, _ = table.deal("a")
    assert table.score("a", share, 1.0) == []
    assert table.score("a", again, 1.0) == [0]
