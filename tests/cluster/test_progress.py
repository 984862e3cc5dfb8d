import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial

from tas_ray.cluster import progress
from tas_ray.cluster.progress import Progress, duration
from tas_ray.cluster.train import _set_aside_unreadable
from tas_ray.methods.baselines import Uniform
from tas_ray.pipeline import Trial
from tests.cluster.kills import quiet
from tests.cluster.settings import trial


class Watched:
    """Four trials of equal cost whose ends a test reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress = Progress(folder, lambda ours: 10, trials=4, cost=40)
        self.progress.trial_of = self.trial_of

    def trial_of(self, config: Mapping[str, Any]) -> Trial:
        return trial(self.folder / "trials" / config["trial"], Uniform())

    def ends(self, name: str, **last_result: Any) -> None:
        ended = TuneTrial("stub", config={"trial": name}, stub=True)
        if last_result:
            ended.update_last_result({"trial_id": "x", "training_iteration": 1, "done": True, **last_result})
        self.progress.on_trial_complete(0, [], ended)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_finished_trial_is_a_line_and_a_row(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    ours = watched.trial_of({"trial": "good"})
    result = quiet(ours, ours.folder)
    watched.ends("good", validation_accuracy=0.0)
    line = capsys.readouterr().out
    assert line.startswith(f"[1/4] good: {result.test_accuracy:.2%} with {result.macs / 1e6:.3g} M MACs in ")
    assert re.search(r"; about \d+ s left\n$", line)
    assert "good" in (watched.folder / "leaderboard.csv").read_text()


def test_failed_and_stopped_trials_are_told_and_told_apart(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.ends("bad", error="the loss is nan", validation_accuracy=0.0)
    watched.ends("weak", retrain_epoch=3.0, validation_accuracy=0.25)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/4] bad: failed: the loss is nan; about ")
    assert second.startswith("[2/4] weak: stopped at epoch 3 with 25.00% on validation; about ")
    assert watched.progress.failures == {"bad": "the loss is nan"}
    stopped = json.loads((watched.folder / "trials" / "weak" / "stopped.json").read_text())
    assert stopped == {"retrain_epoch": 3.0, "validation_accuracy": 0.25}
    assert not (watched.folder / "trials" / "bad").exists()


def test_the_rest_is_estimated_by_cost(
    watched: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = watched.progress._began
    monkeypatch.setattr(progress.time, "monotonic", lambda: began + 60)
    watched.ends("one", error="x")
    assert "; about 3 min left" in capsys.readouterr().out  # three more as expensive as the first


def test_work_of_no_trial_counts_and_is_no_silence(
    watched: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = watched.progress._began + progress.SECONDS_OF_SILENCE
    monkeypatch.setattr(progress.time, "monotonic", lambda: later)
    watched.progress.spent(10)
    watched.progress.on_step_end(0, [])
    assert capsys.readouterr().out == ""
    watched.ends("one", error="x")
    assert "; about 10 min left" in capsys.readouterr().out  # half of the work was done in ten minutes


def test_long_silence_is_told_once(
    watched: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.progress.on_step_end(0, [])
    assert capsys.readouterr().out == ""
    later = watched.progress._began + progress.SECONDS_OF_SILENCE
    monkeypatch.setattr(progress.time, "monotonic", lambda: later)
    watched.progress.on_step_end(0, [])
    watched.progress.on_step_end(0, [])
    assert capsys.readouterr().out.count("nothing was heard for 10 min") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5000.0, "83 min"), (7200.0, "2.0 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_list_of_checkpoints_cut_short_is_set_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    snapshot = run / "checkpoint_manager_snapshot.json"
    snapshot.write_text("{}")
    _set_aside_unreadable(run)
    assert snapshot.exists()
    snapshot.write_text('{"checkpoint_res')
    _set_aside_unreadable(run)
    assert not run.exists()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["run.unreadable"]
