"""What networks scored: a journal that survives crashes, and a search that is answered from it, in this process."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol, runtime_checkable

from tas_ray.choices import Architecture
from tas_ray.evolution import Candidate, Search

SECONDS_BETWEEN_PROGRESS = 1.0

OnProgress = Callable[[int, int, Sequence[float], float], None]
"""Called with the networks evaluated so far, their number at most, the best score of each budget (NaN: none yet), and
the seconds since the call began."""


@runtime_checkable
class Evaluate(Protocol):
    """Scores networks. The score of an architecture is always the same, wherever and beside whatever it is asked for.

    It travels to other processes, so it has to be picklable.
    """

    def setup(self) -> None:
        """Prepares the process that evaluates; called once in it, before anything is scored."""

    def __call__(self, architectures: Sequence[Architecture]) -> Sequence[float]:
        """The score of each architecture, in this order; higher is better, NaN is the worst.

        Raises:
            ValueError: the caller's mistake, which no second attempt would heal; ends the search.
        """


@dataclass(frozen=True)
class Entry:
    """A line of the journal: what a network scored, and how long it took."""

    architecture: Architecture
    score: float
    seconds: float


def journal_file(folder: Path, context: str) -> Path:
    """Where the journal of a context lies in its folder."""
    return folder / f"scores-{context[:16]}.jsonl"


class Journal:
    """The scores of one context, `scores-<context>.jsonl` in a folder: a line per network, never rewritten.

    What is added is on the disk when `add` returns. Several processes may add to one journal; each knows what was
    there when it opened it and what it added itself.
    """

    def __init__(self, folder: Path, context: str) -> None:
        """Opens the journal, or begins one; a last line that a crash cut short is dropped.

        Args:
            context: a hash of all that a score depends on; the file is named by its first 16 characters.

        Raises:
            ValueError: a line is no score, the folder cannot be written, or the context is no hash.
        """
        if not re.fullmatch(r"[0-9A-Za-z]{16,}", context):
            raise ValueError(f"the context of scores is a hash of 16 or more letters and digits, not {context!r}")
        self.path = journal_file(folder, context)
        self._scores: dict[Architecture, float] = {}
        self._seconds = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                content = file.readall()
                whole = content[: content.rfind(b"\n") + 1]
                if whole != content:
                    file.truncate(len(whole))
        except OSError as error:
            raise ValueError(f"scores cannot be kept in {folder}: {error}. Give another, writable folder") from error
        for number, line in enumerate(whole.splitlines(), start=1):
            self._remember(self._read(line, number))

    def __len__(self) -> int:
        return len(self._scores)

    def scored(self) -> dict[Architecture, float]:
        """The score of every network that has one (not NaN), in the order they were written."""
        return {architecture: score for architecture, score in self._scores.items() if not math.isnan(score)}

    @property
    def seconds(self) -> float:
        """What all evaluations in it took together."""
        return self._seconds

    def known(self, architecture: Architecture) -> float | None:
        """What the network scored, NaN if that was no number; None if it was not evaluated yet."""
        return self._scores.get(architecture)

    def add(self, entries: Sequence[Entry]) -> None:
        """Appends scores; one that is not finite is kept as NaN.

        Raises:
            RuntimeError: they could not be written, perhaps because the disk is full; the journal is as it was.
        """
        try:
            with self._locked() as file:
                self._append(file, b"".join(self._line(entry) for entry in entries))
        except OSError as error:
            raise RuntimeError(
                f"no more scores can be written to {self.path}: {error}. The {len(self)} in it are kept: make room, "
                "and the same call goes on"
            ) from error
        for entry in entries:
            self._remember(entry)

    @staticmethod
    def _append(file: FileIO, lines: bytes) -> None:
        end = file.seek(0, os.SEEK_END)
        try:
            while lines:
                lines = lines[file.write(lines) :]  # a disk that is nearly full takes a part
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise

    def _remember(self, entry: Entry) -> None:
        self._seconds += entry.seconds
        self._scores.setdefault(entry.architecture, entry.score if math.isfinite(entry.score) else math.nan)

    @contextmanager
    def _locked(self) -> Iterator[FileIO]:
        with self.path.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file

    @staticmethod
    def _line(entry: Entry) -> bytes:
        score = entry.score if math.isfinite(entry.score) else None
        line = {"architecture": dict(entry.architecture), "score": score, "seconds": round(entry.seconds, 6)}
        return json.dumps(line).encode() + b"\n"

    def _read(self, line: bytes, number: int) -> Entry:
        try:
            fields = json.loads(line)
            score = math.nan if fields["score"] is None else float(fields["score"])
            return Entry(Architecture(fields["architecture"]), score, float(fields["seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"line {number} of {self.path} is no score ({type(error).__name__}: {error}): mend it, or delete the "
                "line to have its network evaluated again"
            ) from error


def unknown(search: Search, journal: Journal) -> list[Candidate]:
    """What the search wants evaluated now, after it was told all that the journal already knows."""
    candidates: list[Candidate] = []
    while asked := search.ask():  # ends: a search has so many candidates and no more
        for candidate in asked:
            score = journal.known(candidate.architecture)
            if score is None:
                candidates.append(candidate)
            else:
                search.tell(candidate.ticket, score)
    return candidates


def settle(search: Search, journal: Journal, scored: Sequence[tuple[Candidate, float]], seconds: float) -> None:
    """Writes new scores to the journal and then tells the search.

    Args:
        seconds: what each of them took.

    Raises:
        RuntimeError: see `Journal.add`.
    """
    journal.add([Entry(candidate.architecture, score, seconds) for candidate, score in scored])
    for candidate, score in scored:
        search.tell(candidate.ticket, score)


class Progress:
    """Says how far a search is, at most once a second."""

    def __init__(self, search: Search, say: OnProgress) -> None:
        self._search = search
        self._say = say
        self._began = time.monotonic()
        self._said = -math.inf

    def tick(self) -> None:
        """Says it if a second has passed."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_PROGRESS:
            self.now()

    def now(self) -> None:
        """Says it."""
        self._said = time.monotonic()
        search = self._search
        best = [max((one.score for one in search.best(i)), default=math.nan) for i in range(len(search.budgets))]
        shown = [score if math.isfinite(score) else math.nan for score in best]
        self._say(search.evaluated, search.most, shown, self._said - self._began)


def search_here(search: Search, evaluate: Evaluate, journal: Journal, on_progress: OnProgress) -> None:
    """Drives a search to its end in this process; `search.best` is then the answer.

    What the journal knows is not evaluated again, so that after a crash the same call goes on where it was.

    Args:
        search: a new one: what it handed out to others is never scored.

    Raises:
        ValueError: `evaluate` does not give a score for each architecture, or raised it; or the search is not new.
        RuntimeError: the journal cannot be written.
    """
    progress = Progress(search, on_progress)
    candidates = unknown(search, journal)
    if candidates:
        evaluate.setup()
    while candidates:
        for candidate in candidates:
            began = time.perf_counter()
            scores = evaluated(evaluate, [candidate.architecture])
            settle(search, journal, [(candidate, scores[0])], time.perf_counter() - began)
            progress.tick()
        candidates = unknown(search, journal)
    check_finished(search)
    progress.now()


def check_finished(search: Search) -> None:
    """ValueError if a search that has nothing left to ask still waits for scores: somebody else has its candidates."""
    if not search.finished:
        raise ValueError(
            "this search waits for scores of candidates it handed out before: make it anew from the same settings "
            "and seed; what the journal knows is not evaluated again"
        )


def evaluated(evaluate: Evaluate, architectures: Sequence[Architecture]) -> list[float]:
    """The scores `evaluate` gives; ValueError if they are not one for each architecture."""
    scores = [float(score) for score in evaluate(architectures)]
    if len(scores) != len(architectures):
        raise ValueError(
            f"an evaluator gives one score for each architecture, in order, but gave {len(scores)} for "
            f"{len(architectures)}"
        )
    return scores
