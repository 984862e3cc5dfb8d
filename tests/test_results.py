"""Tests of the result files, of the leaderboard derived from them, and of its table and picture."""

import dataclasses
import io
import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from tas_ray import plot, results
from tas_ray.results import RankCorrelation, Result

DENSE_MACS = 40_000_000


def a_result(**changes: object) -> Result:
    """A valid result with the given fields changed; the trial is named after what tells it apart."""
    values: dict[str, object] = {
        "run": "demo",
        "space": "tiny",
        "dataset": "digits",
        "method": "tas",
        "seed": 0,
        "budget_macs": DENSE_MACS // 2,
        "budget_ratio": 0.5,
        "macs": 19_000_000,
        "macs_ratio": 0.475,
        "params": 123_456,
        "test_accuracy": 0.9,
        "dense_accuracy": 0.92,
        "search_accuracy": 0.7,
        "evaluations": 1000,
        "search": None,
        "validation_accuracy": None,
        "search_seconds": 12.5,
        "retrain_seconds": 30.25,
        "workers": 2,
        "device": "cpu",
        "precision": "float32",
        "architecture": "stem=16 stage0=[12, 8] blocks=2,3,1",
        "checkpoint": "runs/demo/trial",
        "parameters": "{}",
        "tas_ray_version": "0.1.0",
        "torch_version": "2.11.0",
        "ray_version": "2.60.0",
        "python_version": "3.11.7",
        "commit": None,
        "finished_at": "2030-01-31T12:00:00.123456+00:00",
    }
    values |= changes
    told_apart = ("space", "dataset", "method", "budget_macs", "seed", "macs", "test_accuracy")
    values.setdefault("trial", "-".join(str(values[name]) for name in told_apart))
    return Result(**values)  # type: ignore[arg-type]


def write_all(folder: Path, rows: list[Result]) -> None:
    for number, row in enumerate(rows):
        results.write_result(folder / f"trial{number}", row)


def a_sweep(run: str = "demo", space: str = "tiny") -> list[Result]:
    """Two methods, two budgets, three seeds, and the dense network."""
    rows = [
        a_result(
            run=run,
            space=space,
            method=method,
            seed=seed,
            budget_macs=budget,
            budget_ratio=budget / DENSE_MACS,
            macs=budget - seed,
            test_accuracy=round(0.8 + budget / DENSE_MACS / 10 + bonus + seed / 100, 4),
        )
        for method, bonus in (("tas", 0.01), ("uniform", 0.0))
        for budget in (10_000_000, 20_000_000)
        for seed in range(3)
    ]
    dense = {"budget_macs": None, "budget_ratio": None, "macs": DENSE_MACS, "macs_ratio": 1.0}
    return [*rows, a_result(run=run, space=space, method="dense", test_accuracy=0.92, **dense)]


def test_a_result_comes_back_from_its_file_unchanged(tmp_path: Path) -> None:
    result = a_result(commit="abc123", parameters='{"lr": 0.1}', search_accuracy=None)
    path = results.write_result(tmp_path / "new" / "folder", result)
    assert path == tmp_path / "new" / "folder" / "result.json"
    assert results.read_result(path) == result
    assert results.read_results(tmp_path) == [result]


@given(
    accuracy=st.floats(0, 1),
    dense=st.none() | st.floats(0, 1),
    seconds=st.floats(0, 1e9),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != ""),
)
def test_any_valid_result_survives_json(accuracy: float, dense: float | None, seconds: float, text: str) -> None:
    result = a_result(test_accuracy=accuracy, dense_accuracy=dense, search_seconds=seconds, architecture=text)
    assert Result.from_json(result.to_json()) == result


def test_a_result_over_its_budget_cannot_exist() -> None:
    a_result(macs=20_000_000, budget_macs=20_000_000)
    with pytest.raises(ValueError, match="20000001 MACs, more than its budget of 20000000"):
        a_result(macs=20_000_001, budget_macs=20_000_000)
    with pytest.raises(ValueError, match="more than its budget"):
        dataclasses.replace(a_result(), budget_macs=18_999_999)
    edited = a_result().to_json().replace('"macs": 19000000', '"macs": 21000000')
    with pytest.raises(ValueError, match="21000000 MACs"):
        Result.from_json(edited)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_accuracy": 93.1}, "test_accuracy is 93.1, but accuracies are fractions"),
        ({"dense_accuracy": -0.1}, "dense_accuracy is -0.1"),
        ({"search_accuracy": float("nan")}, "search_accuracy is nan"),
        ({"retrain_seconds": float("inf")}, "retrain_seconds is inf, but must be finite"),
        ({"budget_ratio": None}, "give both"),
        ({"macs": 0}, "macs is 0, but must be a finite number above 0"),
        ({"workers": 0}, "workers is 0"),
        ({"search_seconds": -1.0}, "not negative"),
        ({"parameters": "lr=0.1"}, "parameters is 'lr=0.1', but must be a JSON object"),
        ({"parameters": "[1]"}, "must be a JSON object such as {}"),
        ({"finished_at": "yesterday"}, "must be an ISO 8601 time"),
        ({"finished_at": "2030-01-31T12:00:00"}, "must be in UTC"),
        ({"finished_at": "2030-01-31T12:00:00+02:00"}, "must be in UTC"),
    ],
)
def test_an_impossible_value_is_refused_with_its_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_result(**changes)


def test_drop_is_dense_minus_test_accuracy() -> None:
    assert a_result(test_accuracy=0.9, dense_accuracy=0.92).drop == pytest.approx(0.02)
    assert a_result(test_accuracy=0.93, dense_accuracy=0.92).drop == pytest.approx(-0.01)
    assert a_result(dense_accuracy=None).drop is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a readable result"),
        (lambda text: "", "not a readable result"),
        (lambda text: "[]", "a result is a JSON object, not a list"),
        (lambda text: text.replace('"macs"', '"flops"'), "keys are missing: macs"),
        (lambda text: text.replace("{\n", '{\n  "speed": 1,\n', 1), "unknown keys: speed"),
        (lambda text: text.replace('"seed": 0', '"seed": "0"'), "seed is '0', but must be of type int"),
        (lambda text: text.replace('"seed": 0', '"seed": true'), "seed is True, but must be of type int"),
        (lambda text: text.replace('"seed": 0', '"seed": 0.5'), "seed is 0.5, but must be of type int"),
        (
            lambda text: text.replace('"commit": null', '"commit": 7'),
            "commit is 7, but must be of type str or null",
        ),
        (lambda text: text.replace('"test_accuracy": 0.9', '"test_accuracy": null'), "must be of type float"),
    ],
)
def test_a_corrupt_file_is_named_with_the_way_out(tmp_path: Path, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    write_all(tmp_path, [a_result(seed=1), a_result(seed=0)])
    path = tmp_path / "trial1" / "result.json"
    path.write_text(break_it(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        results.leaderboard(tmp_path)
    assert str(path) in str(caught.value)
    assert "Move the file aside and run the same command again" in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = a_result(test_accuracy=0.8)
    path = results.write_result(tmp_path, old)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        results.write_result(tmp_path, a_result(test_accuracy=0.9))
    assert results.read_result(path) == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_reader_that_opened_the_old_file_still_reads_all_of_it(tmp_path: Path) -> None:
    old, new = a_result(test_accuracy=0.8), a_result(test_accuracy=0.9)
    path = results.write_result(tmp_path, old)
    with path.open() as reader:
        results.write_result(tmp_path, new)
        assert Result.from_json(reader.read()) == old
    assert results.read_result(path) == new


def test_the_draft_of_a_killed_write_is_never_read(tmp_path: Path) -> None:
    result = a_result()
    results.write_result(tmp_path / "done", result)
    for folder in ("done", "killed"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".result.json.0123.tmp").write_text(result.to_json()[:100])
    assert results.read_results(tmp_path) == [result]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    first, second = a_result(test_accuracy=0.5), a_result(test_accuracy=0.25, architecture="x" * 500_000)
    (tmp_path / "first").write_text(first.to_json())
    (tmp_path / "second").write_text(second.to_json())
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tas_ray.results import Result, write_result
        folder = Path(sys.argv[1])
        both = [Result.from_json((folder / name).read_text()) for name in ("first", "second")]
        for turn in range(100_000):
            write_result(folder / "trial", both[turn % 2])
            print(turn, flush=True)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            assert writer.stdout.readline()
        writer.kill()
    assert results.read_results(tmp_path) in ([first], [second])


def test_a_log_of_ray_tune_is_not_taken_for_a_result(tmp_path: Path) -> None:
    results.write_result(tmp_path / "trial", a_result())
    log = tmp_path / "tune" / "trial_0"
    log.mkdir(parents=True)
    (log / "params.pkl").write_bytes(b"")
    (log / "result.json").write_text('{"training_iteration": 1}\n{"training_iteration": 2}\n')
    assert results.read_results(tmp_path) == [a_result()]


def test_the_same_trial_in_two_files_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, [a_result(), a_result()])
    with pytest.raises(ValueError, match=r"trial0.*trial1.*both hold trial"):
        results.leaderboard(tmp_path)


def test_no_results_says_what_to_run(tmp_path: Path) -> None:
    for ask in (results.leaderboard, results.write_leaderboard):
        with pytest.raises(ValueError, match=r"no finished network below .*tas-ray quickstart"):
            ask(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        results.leaderboard(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_columns_are_the_fields_with_drop_and_marks_and_have_types(tmp_path: Path) -> None:
    write_all(tmp_path, a_sweep())
    df = results.leaderboard(str(tmp_path))
    fields = [field.name for field in dataclasses.fields(Result)]
    fields.insert(fields.index("dense_accuracy") + 1, "drop")
    fidelity = ["fidelity_tau", "fidelity_low", "fidelity_high", "fidelity_networks"]
    assert list(df.columns) == [*fields, *fidelity, "best_in_budget", "pareto"]
    assert df[fidelity].isna().all(axis=None)
    assert df["budget_macs"].dtype == "Int64"
    assert df["macs"].dtype == "int64"
    assert df["validation_accuracy"].dtype == "Float64"
    assert df["validation_accuracy"].isna().all()
    assert df["best_in_budget"].dtype == df["pareto"].dtype == bool
    assert df["finished_at"].iloc[0] == pd.Timestamp("2030-01-31T12:00:00.123456", tz="UTC")
    assert df.loc[df["method"] == "dense", "budget_macs"].isna().all()


def test_rows_are_sorted_by_budget_and_falling_accuracy_whatever_the_folders_are_called(
    tmp_path: Path,
) -> None:
    rows = a_sweep()
    write_all(tmp_path / "one", rows)
    write_all(tmp_path / "two", rows[::-1])
    df = results.leaderboard(tmp_path / "one")
    pd.testing.assert_frame_equal(df, results.leaderboard(tmp_path / "two"))
    assert df["budget_macs"].isna().tolist() == [False] * 12 + [True]
    for _, group in df.groupby("budget_macs"):
        assert group["test_accuracy"].is_monotonic_decreasing
    assert df["budget_macs"].dropna().is_monotonic_increasing


def test_rebuilding_never_doubles_a_row(tmp_path: Path) -> None:
    write_all(tmp_path, a_sweep())
    first = results.write_leaderboard(tmp_path).read_bytes()
    assert results.write_leaderboard(tmp_path).read_bytes() == first
    results.write_result(tmp_path / "trial0", a_sweep()[0])
    path = results.write_leaderboard(tmp_path)
    assert path == tmp_path / "leaderboard.csv"
    assert path.read_bytes() == first
    assert len(pd.read_csv(path)) == len(a_sweep())


def test_pandas_reads_the_csv_with_equal_values(tmp_path: Path) -> None:
    write_all(tmp_path, [*a_sweep(), a_result(seed=9, test_accuracy=1 / 3, parameters='{"lr": 0.1, "name": "a,b"}')])
    df = results.leaderboard(tmp_path)
    csv = pd.read_csv(
        results.write_leaderboard(tmp_path),
        dtype=df.dtypes.drop("finished_at").to_dict(),
        parse_dates=["finished_at"],
        float_precision="round_trip",
    )
    pd.testing.assert_frame_equal(csv, df, check_dtype=False)
    plain = pd.read_csv(tmp_path / "leaderboard.csv")
    assert plain["macs"].tolist() == df["macs"].tolist()
    assert plain["test_accuracy"].tolist() == pytest.approx(df["test_accuracy"].tolist())


def test_a_result_finished_while_the_csv_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path, [a_result()])
    late = a_result(seed=7)
    write = results.write_atomically

    def write_with_a_late_result(path: Path, content: bytes) -> None:
        write(tmp_path / "late" / "result.json", late.to_json().encode())
        write(path, content)

    monkeypatch.setattr(results, "write_atomically", write_with_a_late_result)
    assert sorted(pd.read_csv(results.write_leaderboard(tmp_path))["seed"]) == [0, 7]


def test_concurrent_writers_end_with_every_row(tmp_path: Path) -> None:
    rows = a_sweep()
    barrier = threading.Barrier(4)

    def work(start: int) -> None:
        barrier.wait()
        for number in range(start, len(rows), 4):
            results.write_result(tmp_path / f"trial{number}", rows[number])
            results.write_leaderboard(tmp_path)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pd.read_csv(tmp_path / "leaderboard.csv")["trial"]) == sorted(row.trial for row in rows)
    assert not list(tmp_path.rglob("*.tmp"))


points = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 5), st.sampled_from(["tiny", "big"])), min_size=1, max_size=14
)


@settings(max_examples=60, deadline=None)
@given(points)
def test_pareto_marks_exactly_the_undominated_rows(drawn: list[tuple[int, int, str]]) -> None:
    rows = [
        a_result(seed=seed, macs=macs, test_accuracy=accuracy / 5, space=space)
        for seed, (macs, accuracy, space) in enumerate(drawn)
    ]
    marked = set(results.pareto_front(frame_of(rows))["seed"])

    def dominates(one: Result, other: Result) -> bool:
        no_worse = one.macs <= other.macs and one.test_accuracy >= other.test_accuracy
        better = one.macs < other.macs or one.test_accuracy > other.test_accuracy
        return one.space == other.space and no_worse and better

    assert marked == {row.seed for row in rows if not any(dominates(other, row) for other in rows)}


def frame_of(rows: list[Result]) -> pd.DataFrame:
    """The columns ranking needs, built without the code under test."""
    return pd.DataFrame([dataclasses.asdict(row) for row in rows])


def test_the_front_rises_in_cost_and_accuracy_and_agrees_with_the_column(tmp_path: Path) -> None:
    write_all(tmp_path, a_sweep())
    df = results.leaderboard(tmp_path)
    front = results.pareto_front(df)
    assert set(front["trial"]) == set(df.loc[df["pareto"], "trial"])
    assert front["macs"].is_monotonic_increasing
    assert front["test_accuracy"].is_monotonic_increasing
    only_uniform = results.pareto_front(df[df["method"] == "uniform"])
    assert len(only_uniform) == 2  # dominated by tas before, on the front among themselves


def test_best_per_budget_is_one_row_a_budget_over_all_methods_and_seeds(tmp_path: Path) -> None:
    write_all(tmp_path, [*a_sweep(), *a_sweep(space="big")])
    df = results.leaderboard(tmp_path)
    best = results.best_per_budget(df)
    assert len(best) == 6
    assert set(best["trial"]) == set(df.loc[df["best_in_budget"], "trial"])
    pruned = best[best["budget_macs"].notna()]
    assert set(pruned["method"]) == {"tas"}
    assert set(pruned["seed"]) == {2}
    assert set(results.best_per_budget(df[df["seed"] < 2])["seed"]) == {0, 1}


def test_a_tie_in_accuracy_goes_to_the_cheaper_network(tmp_path: Path) -> None:
    write_all(tmp_path, [a_result(macs=18_000_000, seed=1), a_result(macs=17_000_000, seed=2)])
    assert results.best_per_budget(results.leaderboard(tmp_path))["macs"].tolist() == [17_000_000]


def test_summary_is_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    write_all(tmp_path, a_sweep())
    table = results.summary(results.leaderboard(tmp_path))
    assert len(table) == 5
    row = table[(table["method"] == "tas") & (table["budget_macs"] == 10_000_000)].iloc[0]
    accuracies = [0.835, 0.845, 0.855]
    assert row["n"] == 3
    assert row["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert row["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert row["drop_mean"] == pytest.approx(0.92 - np.mean(accuracies))
    assert row["macs_mean"] == 10_000_000 - 1
    dense = table[table["method"] == "dense"].iloc[0]
    assert dense["n"] == 1
    assert pd.isna(dense["test_accuracy_std"])


def test_summary_keeps_hyper_parameters_and_runs_apart(tmp_path: Path) -> None:
    rows = [
        a_result(parameters='{"lr": 0.1}', trial="a"),
        a_result(parameters='{"lr": 0.2}', trial="b", test_accuracy=0.5),
        a_result(parameters='{"lr": 0.1}', trial="a", run="other", test_accuracy=0.4),
    ]
    write_all(tmp_path, rows)
    assert results.summary(results.leaderboard(tmp_path))["n"].tolist() == [1, 1, 1]


def printed(df: pd.DataFrame, width: int) -> str:
    file = io.StringIO()
    results.print_leaderboard(df, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [110, 80])
def test_the_printed_table_fits_the_console(tmp_path: Path, width: int) -> None:
    write_all(tmp_path, a_sweep())
    text = printed(results.leaderboard(tmp_path), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.count("\n* ") == 3 + 1  # the best of each budget, and the line that explains the star
    for cell in ("tiny on digits", "20.00  50.0 %", "87.00", "5.00", "mean and standard deviation"):
        assert cell in text
    assert ("stem=16 stage0=[12, 8]" in text) == (width == 110)


@pytest.mark.parametrize("width", [110, 80])
def test_the_printed_table_names_runs_and_settings_that_differ(tmp_path: Path, width: int) -> None:
    write_all(
        tmp_path,
        [
            a_result(trial="a", parameters='{"lr": 0.1}'),
            a_result(trial="b", parameters='{"lr": 0.2}'),
            a_result(trial="c", run="second"),
        ],
    )
    df = results.leaderboard(tmp_path)
    text = printed(df, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for cell in ("lr=0.1", "lr=0.2", "demo", "second"):
        assert cell in text
    assert "run" not in printed(df[df["run"] == "second"], width)


def test_the_picture_is_a_png_with_a_panel_a_space_and_dataset(tmp_path: Path) -> None:
    rows = [*a_sweep(), *a_sweep(space="big"), *a_sweep(run="second")]
    write_all(tmp_path, rows)
    df = results.leaderboard(tmp_path)
    path = plot.draw(df, tmp_path / "pictures" / "accuracy.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 400
    assert pixels.std() > 0.01  # not a blank page
    figure = plot._figure(df)
    assert [ax.get_title() for ax in figure.axes] == ["big on digits", "tiny on digits"]
    assert figure.axes[0].get_xlabel() == "MACs of one image (millions)"
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"tas (demo)", "tas (second)", "uniform (demo)", "dense (demo)", "one network"} <= labels


def test_the_picture_shows_means_at_their_place(tmp_path: Path) -> None:
    write_all(tmp_path, a_sweep())
    (ax,) = plot._figure(results.leaderboard(tmp_path)).axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["tas"].get_xdata() == pytest.approx([9.999999, 19.999999])
    assert lines["tas"].get_ydata() == pytest.approx([84.5, 87.0])
    assert lines["dense"].get_xdata() == pytest.approx([40.0])
    assert lines["dense"].get_ydata() == pytest.approx([92.0])


def test_the_picture_can_be_drawn_from_little(tmp_path: Path) -> None:
    write_all(tmp_path, [a_result(dense_accuracy=None)])
    df = results.leaderboard(tmp_path)
    assert plot.draw(df, tmp_path / "one.png").stat().st_size > 0
    assert plot.draw(frame_of(a_sweep()[-1:]), tmp_path / "dense.png").stat().st_size > 0
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.draw(df[df["seed"] == 99], tmp_path / "none.png")


def test_a_result_file_is_plain_json_with_the_fields_as_keys(tmp_path: Path) -> None:
    path = results.write_result(tmp_path, a_result())
    assert json.loads(path.read_text()) == dataclasses.asdict(a_result())


# Fidelity


def a_correlation(**changes: object) -> RankCorrelation:
    values: dict[str, object] = {
        "run": "demo",
        "search": "evolved",
        "budget_macs": DENSE_MACS // 2,
        "tau": 0.5,
        "low": 0.125,
        "high": 0.75,
        "p": 0.03,
        "networks": 12,
        "epochs": 4,
        "images": 100,
    }
    return RankCorrelation(**(values | changes))  # type: ignore[arg-type]


def test_a_fidelity_stands_beside_the_networks_of_its_run_search_and_budget(tmp_path: Path) -> None:
    other = {"budget_macs": 30_000_000, "budget_ratio": 0.75}
    write_all(
        tmp_path,
        [
            a_result(search="evolved", seed=1),
            a_result(search="evolved", seed=2, **other),
            a_result(search="drawn", seed=3),
            a_result(search="evolved", seed=4, run="second"),
            a_result(seed=5),
        ],
    )
    results.write_correlation(tmp_path / "searches" / "evolved", a_correlation(), [{"score": 0.1}])
    df = results.leaderboard(tmp_path).set_index("seed").sort_index()
    assert df["fidelity_tau"].isna().tolist() == [False, True, True, True, True]
    row = df.loc[1, ["fidelity_tau", "fidelity_low", "fidelity_high", "fidelity_networks"]]
    assert row.tolist() == [0.5, 0.125, 0.75, 12]
    assert df["fidelity_networks"].dtype == "Int64"
    csv = pd.read_csv(results.write_leaderboard(tmp_path)).set_index("seed")
    assert csv["fidelity_high"].dropna().tolist() == [0.75]
    text = printed(results.leaderboard(tmp_path), 200)
    line = "tas seed 1 at 20.00 M: its scores rank 12 retrained networks with Kendall's tau 0.50 "
    assert text.count("Kendall") == text.count(line + "(95 % interval 0.12 to 0.75)") == 1


def test_budgets_are_added_to_a_fidelity_and_measured_again_without_a_rest(tmp_path: Path) -> None:
    for correlation in (
        a_correlation(budget_macs=9),
        a_correlation(budget_macs=4),
        a_correlation(budget_macs=9, tau=0.0),
    ):
        results.write_correlation(tmp_path, correlation, [])
    assert results.read_correlations(tmp_path) == [a_correlation(budget_macs=4), a_correlation(budget_macs=9, tau=0.0)]


@pytest.mark.parametrize("text", ["", "[{}]", "{}x", '["a"]'])
def test_a_damaged_fidelity_is_named(tmp_path: Path, text: str) -> None:
    write_all(tmp_path, [a_result()])
    (tmp_path / "fidelity.json").write_text(text)
    with pytest.raises(ValueError, match=r"fidelity.json cannot be read .* run `tas-ray fidelity` again"):
        results.leaderboard(tmp_path)


def test_a_result_older_than_a_field_that_may_be_missing_is_read(tmp_path: Path) -> None:
    older = json.loads(a_result(evaluations=None).to_json())
    del older["search"], older["evaluations"]
    (tmp_path / "result.json").write_text(json.dumps(older))
    assert results.read_result(tmp_path / "result.json") == a_result(evaluations=None)
