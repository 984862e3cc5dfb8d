"""Who evaluates what: candidates dealt in shares, the costliest first, and again where a slot is lost or late."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tas_ray.evolution import Candidate

SHARE_SECONDS = 0.2
"""Evaluations are dealt in shares of about so long, so that handing them over costs next to nothing."""
PATIENCE = 3.0
"""A share is late when it takes so many times what others take, and `GRACE` seconds more."""
GRACE = 1.0
ATTEMPTS = 3
"""A candidate whose slot failed so often ends the search: it is not the slots."""
_RECENT = 50


@dataclass(frozen=True)
class Share:
    """Candidates that one slot evaluates in one go."""

    number: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class _Dealt:
    share: Share
    at: float


class Shares:
    """The candidates of a search that wait, and those that slots have in hand. The first score of each counts."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._clock = clock
        self._waiting: list[Candidate] = []
        self._unscored: set[int] = set()
        self._in_hand: dict[str, _Dealt] = {}
        self._failures: Counter[int] = Counter()
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._numbers = 0

    def add(self, candidates: Sequence[Candidate]) -> None:
        """More to evaluate."""
        self._unscored.update(candidate.ticket for candidate in candidates)
        self._queue(candidates)

    def deal(self, slot: str) -> Share | None:
        """What an idle slot evaluates next; None if there is nothing to do, perhaps only for now.

        When all is dealt, an idle slot gets a candidate another one is late with.
        """
        assert slot not in self._in_hand
        candidates = self._next() or self._late()
        if not candidates:
            return None
        self._numbers += 1
        share = Share(self._numbers, tuple(candidates))
        self._in_hand[slot] = _Dealt(share, self._clock())
        return share

    def score(self, slot: str, number: int, scores: Sequence[float], seconds: float) -> list[tuple[Candidate, float]]:
        """Takes the scores of a share that took so long; returns those that are new.

        None are if the slot does not have this share in hand, or others were faster.
        """
        dealt = self._in_hand.get(slot)
        if dealt is None or dealt.share.number != number:
            return []
        del self._in_hand[slot]
        self._seconds.append(seconds / len(scores))
        pairs = zip(dealt.share.candidates, scores, strict=True)
        new = [(candidate, score) for candidate, score in pairs if candidate.ticket in self._unscored]
        self._unscored.difference_update(candidate.ticket for candidate, _ in new)
        return new

    def lost(self, slot: str, why: str) -> None:
        """Takes back what a failed slot had in hand; each candidate of it is then dealt alone.

        Raises:
            RuntimeError: a candidate was in hand at `ATTEMPTS` failures.
        """
        dealt = self._in_hand.pop(slot, None)
        if dealt is None:
            return
        mine = [candidate for candidate in dealt.share.candidates if candidate.ticket in self._unscored]
        elsewhere = {candidate.ticket for other in self._in_hand.values() for candidate in other.share.candidates}
        self._queue(candidate for candidate in mine if candidate.ticket not in elsewhere)
        for candidate in mine:
            self._failures[candidate.ticket] += 1
            if self._failures[candidate.ticket] == ATTEMPTS:
                raise RuntimeError(
                    f"the evaluation of {dict(candidate.architecture)} failed {ATTEMPTS} times, the last time with: "
                    f"{why}. All scores so far are in the journal: mend the cause, and the same call goes on"
                )

    @property
    def left(self) -> int:
        """Candidates without a score, waiting or in hand."""
        return len(self._unscored)

    @property
    def busy(self) -> frozenset[str]:
        """The slots that have a share in hand."""
        return frozenset(self._in_hand)

    def _queue(self, candidates: Iterable[Candidate]) -> None:
        self._waiting = sorted([*self._waiting, *candidates], key=lambda one: (-one.macs, one.ticket))

    def _next(self) -> list[Candidate]:
        waiting = [candidate for candidate in self._waiting if candidate.ticket in self._unscored]
        taken = waiting[:1]
        if taken and not self._failures[taken[0].ticket]:
            taken = [one for one in waiting[: self._size(len(waiting))] if not self._failures[one.ticket]]
        tickets = {candidate.ticket for candidate in taken}
        self._waiting = [candidate for candidate in waiting if candidate.ticket not in tickets]
        return taken

    def _size(self, waiting: int) -> int:
        """Candidates of the next share: short ones together, but never so many that slots end far apart."""
        if not self._seconds:
            return 1
        in_time = int(SHARE_SECONDS / max(self._typical, 1e-6))
        return max(1, min(in_time, waiting // (2 * self._slots)))

    def _late(self) -> list[Candidate]:
        """The costliest unscored candidate that all who have it in hand are late with, if there is one."""
        if not self._seconds:
            return []
        late: dict[int, tuple[bool, Candidate]] = {}
        for dealt in self._in_hand.values():
            limit = GRACE + PATIENCE * self._typical * len(dealt.share.candidates)
            over = self._clock() - dealt.at > limit
            for candidate in dealt.share.candidates:
                if candidate.ticket in self._unscored:
                    before, _ = late.get(candidate.ticket, (True, candidate))
                    late[candidate.ticket] = (before and over, candidate)
        candidates = [candidate for over, candidate in late.values() if over]
        return sorted(candidates, key=lambda one: (-one.macs, one.ticket))[:1]

    @property
    def _typical(self) -> float:
        return statistics.median(self._seconds)
