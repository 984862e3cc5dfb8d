"""One finished network as a file, and the leaderboard derived from all such files below a folder."""

import dataclasses
import json
import math
import os
import types
import typing
import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

RESULT_FILE = "result.json"
LEADERBOARD_FILE = "leaderboard.csv"
FIDELITY_FILE = "fidelity.json"

_TASK = ["space", "dataset"]
_BUDGET = [*_TASK, "budget_macs"]
_SETTING = ["run", "space", "dataset", "method", "budget_macs", "parameters"]
_DTYPES: dict[object, str] = {
    str: "string",
    int: "int64",
    float: "float64",
    str | None: "string",
    int | None: "Int64",
    float | None: "Float64",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished network: what was asked, what came out, what it cost, and where the network lies.

    The fields, in this order and with `drop` after `dense_accuracy`, are the columns of the leaderboard.
    Raises ValueError when a value is out of range, and when the network is over its budget.
    """

    run: str
    """Name of the run that made the network."""

    trial: str
    """Name of the trial, unique in its run."""

    space: str
    """Search space, which also says what the dense network is."""

    dataset: str
    """Dataset the network was trained and tested on."""

    method: str
    """How the architecture was found, e.g. tas, uniform, random, dense."""

    seed: int
    """Seed of search and retraining."""

    budget_macs: int | None
    """Upper bound on the MACs of one image; None for the dense network."""

    budget_ratio: float | None
    """Budget over the MACs of the dense network; None for the dense network."""

    macs: int
    """Multiply-accumulates of one image, counted on the built network by torch's own counter."""

    macs_ratio: float
    """MACs over the MACs of the dense network."""

    params: int
    """Number of trainable parameters."""

    test_accuracy: float
    """Accuracy on the test set, read once after retraining, 0..1."""

    dense_accuracy: float | None
    """Test accuracy of the dense network of the same space and dataset, 0..1; None where it is unknown."""

    search_accuracy: float | None
    """Accuracy of the architecture on the search split with the supernet's shared weights, 0..1; None where
    the method has no supernet."""

    validation_accuracy: float | None
    """Accuracy of the retrained network on the search split, 0..1; None where retraining used that split."""

    evaluations: int | None
    """Architectures scored by the search; None where none was."""

    search: str | None
    """Name of the search, shared by the trials of a run, that the architecture came from; None where there was none."""

    search_seconds: float
    """Wall-clock seconds of the search, the whole of one that served several budgets; 0 where there is none."""

    retrain_seconds: float
    """Wall-clock seconds of retraining."""

    workers: int
    """Number of training workers at the end of retraining."""

    device: str
    """Device of the workers, e.g. cpu or the name of the GPU."""

    precision: str
    """Arithmetic of the forward pass, e.g. float32 or bfloat16."""

    architecture: str
    """Channels and blocks, readable."""

    checkpoint: str
    """Folder with network.safetensors and architecture.json."""

    parameters: str
    """Swept hyper-parameters as a JSON object; "{}" where none was swept."""

    tas_ray_version: str
    """Version of this package."""

    torch_version: str
    """Version of torch."""

    ray_version: str
    """Version of Ray."""

    python_version: str
    """Version of Python."""

    commit: str | None
    """Git commit of the code; None outside a checkout."""

    finished_at: str
    """When the network was finished: ISO 8601, UTC, e.g. 2030-01-31T12:00:00+00:00."""

    def __post_init__(self) -> None:
        for name in ("test_accuracy", "dense_accuracy", "search_accuracy", "validation_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, but accuracies are fractions from 0 to 1: divide by 100?")
        for name in ("macs", "params", "workers", "macs_ratio", "budget_macs", "budget_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, but must be a finite number above 0")
        for name in ("search_seconds", "retrain_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be finite and not negative")
        self._check_budget()
        _check_parameters(self.parameters)
        _check_time(self.finished_at)

    @property
    def drop(self) -> float | None:
        """Dense minus test accuracy, a fraction; negative where pruning helped, None if dense is."""
        return None if self.dense_accuracy is None else self.dense_accuracy - self.test_accuracy

    def to_json(self) -> str:
        """The fields as one JSON object, the inverse of `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """The result a `to_json` text holds.

        A field that may be None may be missing: the text may be older than the field. Raises ValueError when the
        text is no JSON object, when any other key is missing or one is unknown, and when a value has the wrong
        type or is refused by `Result`.
        """
        values = json.loads(text)  # json's own error is a ValueError and says where the text breaks off
        if not isinstance(values, dict):
            raise ValueError(f"a result is a JSON object, not a {type(values).__name__}")
        fields = dataclasses.fields(cls)
        names = [field.name for field in fields]
        required = [field.name for field in fields if types.NoneType not in typing.get_args(field.type)]
        missing = [name for name in required if name not in values]
        unknown = [key for key in values if key not in names]
        if missing:
            raise ValueError(f"keys are missing: {', '.join(missing)}")
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        return cls(**{field.name: _typed(field.name, values.get(field.name), field.type) for field in fields})

    def _check_budget(self) -> None:
        if (self.budget_macs is None) != (self.budget_ratio is None):
            raise ValueError(
                f"budget_macs is {self.budget_macs} and budget_ratio is {self.budget_ratio}: give both, "
                "or neither for the dense network"
            )
        if self.budget_macs is not None and self.macs > self.budget_macs:
            raise ValueError(
                f"the network has {self.macs} MACs, more than its budget of {self.budget_macs}: "
                "a result over its budget cannot exist, derive an architecture the budget admits"
            )


def _typed(name: str, value: object, expected: Any) -> Any:
    """The value, whole numbers as float where the field is one; raises ValueError when the type is wrong."""
    options = typing.get_args(expected) or (expected,)
    if float in options and type(value) is int:
        return float(value)
    if type(value) not in options:
        wanted = " or ".join("null" if option is types.NoneType else option.__name__ for option in options)
        raise ValueError(f"{name} is {value!r}, but must be of type {wanted}")
    return value


def _check_parameters(text: str) -> None:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"parameters is {text!r}, but must be a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"parameters is {text!r}, but must be a JSON object such as {{}}")


def _check_time(text: str) -> None:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise ValueError(f"finished_at is {text!r}, but must be an ISO 8601 time") from error
    if offset != timedelta(0):
        raise ValueError(f"finished_at is {text!r}, but must be in UTC: datetime.now(timezone.utc).isoformat()")


def write_atomically(path: Path, content: bytes) -> None:
    """Puts content at path so that a reader, even after a crash, meets the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power cut too
    finally:
        os.close(folder)


def write_result(folder: Path, result: Result) -> Path:
    """Writes the result atomically as `result.json` of its trial's folder and returns that path."""
    path = folder / RESULT_FILE
    write_atomically(path, result.to_json().encode())
    return path


def read_result(path: Path) -> Result:
    """The result in one file; raises ValueError naming the file when it cannot be read as a `Result`."""
    try:
        return Result.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a readable result: {error}. Move the file aside and run the same command again: "
            "only this trial is repeated"
        ) from error


def read_results(folder: str | Path) -> list[Result]:
    """Every result below folder, in the order of their paths; an empty list where none is finished.

    Raises ValueError when folder is no folder, when a file is corrupt (a row is never left out silently), and
    when two files hold the same trial of the same run (a row is never counted twice).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of a run, or one that holds several runs")
    found: dict[tuple[str, str], Path] = {}
    results = []
    for path in _files(folder, RESULT_FILE):
        try:
            result = read_result(path)
        except ValueError:
            if (path.parent / "params.pkl").exists():  # a log of Ray Tune's, which has the same file name
                continue
            raise
        first = found.setdefault((result.run, result.trial), path)
        if first != path:
            raise ValueError(
                f"{first} and {path} both hold trial {result.trial} of run {result.run}: "
                "move the copy elsewhere, or read one of the two folders"
            )
        results.append(result)
    return results


def _files(folder: Path, name: str) -> list[Path]:
    """Paths of all files of this name below folder, sorted; folders that vanish meanwhile are passed over."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(folder, onerror=refuse)
    return sorted(Path(parent) / name for parent, _, files in walk if name in files)


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """How the scores of a search rank networks that were retrained and measured on other images, at one budget."""

    run: str
    """Name of the search's run."""

    search: str
    """Name of the search in it."""

    budget_macs: int
    """The budget below which the networks lie."""

    tau: float
    """Kendall's tau-b between score and accuracy: -1 to 1, 0 where the scores say nothing."""

    low: float
    """Lower end of its 95 % interval."""

    high: float
    """Upper end of its 95 % interval."""

    p: float
    """Probability of a tau as far from 0 if the scores said nothing."""

    networks: int
    """How many were retrained."""

    epochs: int
    """Of each retraining."""

    images: int
    """On which accuracies were measured."""


def write_correlation(folder: Path, correlation: RankCorrelation, networks: Sequence[Mapping[str, Any]]) -> None:
    """Adds what was found for a budget, and the networks it was found by, to the file in its search's folder."""
    path = folder / FIDELITY_FILE
    new = {**dataclasses.asdict(correlation), "retrained": list(networks)}
    others = _correlations_in(path) if path.exists() else []
    kept = [entry for entry in others if entry["budget_macs"] != correlation.budget_macs]
    entries = sorted([*kept, new], key=lambda entry: int(entry["budget_macs"]))
    write_atomically(path, (json.dumps(entries, indent=2) + "\n").encode())


def read_correlations(folder: str | Path) -> list[RankCorrelation]:
    """What `tas-ray fidelity` found for the searches below folder; ValueError naming the file that is damaged."""
    names = [field.name for field in dataclasses.fields(RankCorrelation)]
    entries = [entry for path in _files(Path(folder), FIDELITY_FILE) for entry in _correlations_in(path)]
    return [RankCorrelation(**{name: entry[name] for name in names}) for entry in entries]


def _correlations_in(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            for field in dataclasses.fields(RankCorrelation):
                entry[field.name] = _typed(field.name, entry[field.name], field.type)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): move it aside and run `tas-ray fidelity` again, "
            "which repeats no training"
        ) from error
    return list(entries)


def leaderboard(folder: str | Path) -> pd.DataFrame:
    """One row a result below folder, sorted by space, dataset, budget and falling test accuracy.

    Columns are the fields of `Result`, `drop`, `fidelity_tau`, `fidelity_low`, `fidelity_high`,
    `fidelity_networks`, `best_in_budget` and `pareto`. Missing values are `pd.NA`, `finished_at` is a UTC timestamp.
    The fidelity is that of the search the architecture came from, at its budget, where `tas-ray fidelity` measured
    it. `best_in_budget` marks the best test accuracy of each space, dataset and budget, ties going to fewer MACs;
    `pareto` says that no network of the space and dataset has at most these MACs and at least this test accuracy
    and is better in one of the two.

    Raises ValueError when no result lies below folder, and as `read_results` does.
    """
    return _frame(_some_results(folder), read_correlations(folder))


def write_leaderboard(folder: str | Path) -> Path:
    """Derives `leaderboard.csv` of folder anew from the results below it and returns its path.

    The file is replaced, never appended to. Several processes may do this at once: each looks again after
    writing, so that the last one to write has seen every result. Raises ValueError as `leaderboard` does.
    """
    path = Path(folder) / LEADERBOARD_FILE
    results = _some_results(folder)
    for _ in range(10):  # a result that comes later than that is followed by a rebuild of its own
        write_atomically(path, _frame(results, read_correlations(folder)).to_csv(index=False).encode())
        written, results = results, _some_results(folder)
        if written == results:
            break
    return path


def _some_results(folder: str | Path) -> list[Result]:
    results = read_results(folder)
    if not results:
        raise ValueError(
            f"no finished network below {folder} (no {RESULT_FILE}): run `tas-ray quickstart`, "
            "or `tas-ray sweep` into this folder, and ask again when its first trial is done"
        )
    return results


def _frame(results: Sequence[Result], correlations: Sequence[RankCorrelation]) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for field in dataclasses.fields(Result):
        values = [getattr(result, field.name) for result in results]
        columns[field.name] = pd.Series(values, dtype=_DTYPES[field.type])
        if field.name == "dense_accuracy":
            columns["drop"] = pd.Series([result.drop for result in results], dtype="Float64")
    searched = {(one.run, one.search, one.budget_macs): one for one in correlations}
    of_results = [searched.get((result.run, result.search or "", result.budget_macs or 0)) for result in results]
    for name, dtype in (("tau", "Float64"), ("low", "Float64"), ("high", "Float64"), ("networks", "Int64")):
        values = [None if one is None else getattr(one, name) for one in of_results]
        columns[f"fidelity_{name}"] = pd.Series(values, dtype=dtype)
    frame = pd.DataFrame(columns)
    times = pd.to_datetime(frame["finished_at"], utc=True, format="ISO8601")
    return _rank(frame.assign(finished_at=times.astype("datetime64[us, UTC]")))


def _rank(df: pd.DataFrame) -> pd.DataFrame:
    """The rows in the leaderboard's order, with `best_in_budget` and `pareto` marked among these rows."""
    order = [*_BUDGET, "test_accuracy", "macs", "params", "method", "seed", "run", "trial"]
    rising = [column != "test_accuracy" for column in order]
    ranked = df.sort_values(order, ascending=rising, ignore_index=True)
    pareto = pd.Series(False, index=ranked.index)
    for _, group in ranked.groupby(_TASK):
        accuracy = group["test_accuracy"]
        best_at_cost = accuracy.groupby(group["macs"]).max()
        best_below_cost = best_at_cost.cummax().shift(fill_value=-1.0)
        undominated = (accuracy == group["macs"].map(best_at_cost)) & (accuracy > group["macs"].map(best_below_cost))
        pareto.loc[group.index] = undominated
    return ranked.assign(best_in_budget=~ranked.duplicated(_BUDGET), pareto=pareto)


def best_per_budget(df: pd.DataFrame) -> pd.DataFrame:
    """The best row of each space, dataset and budget among the rows of a (perhaps filtered) leaderboard."""
    ranked = _rank(df)
    return ranked[ranked["best_in_budget"]].reset_index(drop=True)


def pareto_front(df: pd.DataFrame) -> pd.DataFrame:
    """The rows no other row of a (perhaps filtered) leaderboard dominates, by space, dataset, rising MACs."""
    ranked = _rank(df)
    front = ranked[ranked["pareto"]]
    return front.sort_values([*_TASK, "macs"], kind="stable", ignore_index=True)


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over the seeds of each run, space, dataset, method, budget and hyper-parameters.

    Columns: those keys, `budget_ratio`, `n` (number of networks), `test_accuracy_mean`, `test_accuracy_std`
    (sample standard deviation, missing for a single network), `drop_mean` (missing without a dense accuracy),
    `macs_mean`.
    """
    groups = df.groupby(_SETTING, dropna=False, as_index=False)
    table = groups.agg(
        budget_ratio=("budget_ratio", "first"),
        n=("test_accuracy", "size"),
        test_accuracy_mean=("test_accuracy", "mean"),
        test_accuracy_std=("test_accuracy", "std"),
        drop_mean=("drop", "mean"),
        macs_mean=("macs", "mean"),
    )
    order = [*_BUDGET, "test_accuracy_mean", "macs_mean", "method", "run", "parameters"]
    rising = [column != "test_accuracy_mean" for column in order]
    return table.sort_values(order, ascending=rising, ignore_index=True)


def print_leaderboard(df: pd.DataFrame, console: Console) -> None:
    """Prints one table a space and dataset, and below it the means over seeds where there are several.

    A star marks the best row of its budget; accuracies are percent, drops points of it, MACs millions.
    Architectures are cut to the room the console leaves; a narrow one gets fewer columns.
    """
    width = min(console.width, 110)
    for (space, dataset), group in df.groupby(_TASK):
        console.print(_table(f"{space} on {dataset}", _row_cells(group), width))
        console.print("* best test accuracy within its budget; drop: points below the dense network")
        for line in _fidelity_lines(group):
            console.print(line, highlight=False)
        means = summary(group)
        if (means["n"] > 1).any():
            console.print()
            console.print(_table("mean and standard deviation over seeds", _mean_cells(means), width))
        console.print()


def _fidelity_lines(df: pd.DataFrame) -> list[str]:
    """How far the scores of each search can be trusted, at each budget where it was measured."""
    measured = df[df["fidelity_tau"].notna()].drop_duplicates(["run", "search", "budget_macs"])
    return [
        f"{row['method']} seed {row['seed']} at {_million(row['budget_macs'])} M: its scores rank "
        f"{row['fidelity_networks']} retrained networks with Kendall's tau {row['fidelity_tau']:.2f} "
        f"(95 % interval {row['fidelity_low']:.2f} to {row['fidelity_high']:.2f})"
        for row in measured.to_dict("records")
    ]


def _row_cells(df: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "": "*" if row["best_in_budget"] else "",
            **_setting_cells(row),
            "MACs (M)": _million(row["macs"]),
            "params": _count(row["params"]),
            "test %": _percent(row["test_accuracy"]),
            "drop": _percent(row["drop"]),
            "seconds": f"{row['search_seconds'] + row['retrain_seconds']:,.0f}",
            "seed": str(row["seed"]),
            "architecture": row["architecture"],
        }
        for row in df.to_dict("records")
    ]


def _mean_cells(means: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "": "",
            **_setting_cells(row),
            "MACs (M)": _million(row["macs_mean"]),
            "test %": _percent(row["test_accuracy_mean"]),
            "std": _percent(row["test_accuracy_std"]),
            "drop": _percent(row["drop_mean"]),
            "n": str(row["n"]),
        }
        for row in means.to_dict("records")
    ]


def _setting_cells(row: Mapping[Hashable, Any]) -> dict[str, str]:
    swept = json.loads(row["parameters"])
    share = "" if pd.isna(row["budget_macs"]) else f"{100 * row['budget_ratio']:5.1f} %"
    return {
        "method": row["method"],
        "run": _shortened(row["run"], 14),
        "settings": _shortened(" ".join(f"{name}={value}" for name, value in swept.items()), 20),
        "budget (M)": f"{_million(row['budget_macs'])} {share}" if share else "-",
    }


def _table(title: str, cells: list[dict[str, str]], width: int) -> Table:
    """The cells under their names, without what is the same in all rows or does not fit into width."""
    gap = 2
    sizes = {name: max(len(name), *(len(row[name]) for row in cells)) + gap for name in cells[0]}
    for name in ("run", "settings"):
        if len({row[name] for row in cells}) == 1:
            del sizes[name]
    if "architecture" in sizes:
        sizes["architecture"] = len("architecture") + gap
    for name in ("architecture", "seconds", "params"):
        if sum(sizes.values()) > width:
            sizes.pop(name, None)
    room = width - sum(sizes.values()) + len("architecture")
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, gap, 0, 0))
    for name in sizes:
        text = name in {"", "method", "run", "settings", "architecture"}
        table.add_column(name, justify="left" if text else "right", no_wrap=name not in {"run", "settings"})
    for row in cells:
        shown = {**row, "architecture": _shortened(row.get("architecture", ""), room)}
        table.add_row(*(Text(shown[name]) for name in sizes), style="bold" if row[""] else "")
    return table


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _million(macs: int | float) -> str:
    return f"{macs / 1e6:.3f}" if macs < 10e6 else f"{macs / 1e6:.2f}"


def _count(params: int) -> str:
    return f"{params / 1e6:.2f} M" if params >= 1_000_000 else f"{params / 1e3:.1f} k"


def _percent(fraction: Any) -> str:
    """Percent of a fraction that may be missing."""
    return "-" if pd.isna(fraction) else f"{100 * fraction:.2f}"
