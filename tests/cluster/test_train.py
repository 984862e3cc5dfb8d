from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from tas_ray.cluster.config import Resources
from tas_ray.cluster.train import launch
from tas_ray.methods.baselines import Uniform
from tests.cluster.kills import assert_same, kill_workers, phase, quiet, state_files, wait_for
from tests.cluster.settings import tas, trial

pytestmark = pytest.mark.usefixtures("cluster")


def test_workers_killed_in_search_and_retraining_change_nothing_of_the_result(tmp_path: Path) -> None:
    work = trial(tmp_path / "killed", tas(25), epochs=25)
    with ThreadPoolExecutor(1) as background:
        result = background.submit(launch, work, Resources(max_failures=2))
        for moment in ("search", "retrain"):
            wait_for(f"a checkpoint of {moment}", lambda moment=moment: phase(work.folder) == moment)
            kill_workers()
        assert result.result(timeout=300).trial == "killed"
    quiet(work, tmp_path / "quiet")
    assert_same(work.folder, tmp_path / "quiet")
    assert not (work.folder / "train").exists()


def test_two_workers_train_one_network_together(tmp_path: Path) -> None:
    result = launch(trial(tmp_path / "two", tas(2), epochs=4), Resources(workers=2))
    assert result.workers == 2
    assert result.macs <= (result.budget_macs or 0)


def test_workers_that_crash_too_often_are_given_up_and_damaged_checkpoints_told(tmp_path: Path) -> None:
    work = trial(tmp_path / "hopeless", Uniform(), epochs=100)
    with ThreadPoolExecutor(1) as background:
        result = background.submit(launch, work, Resources(max_failures=0))
        wait_for("a checkpoint", lambda: state_files(work.folder))
        kill_workers()
        with pytest.raises(ray.train.TrainingFailedError):
            result.result(timeout=300)

    for file in work.folder.glob("train/*/checkpoint_*/state.pt"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint .*state.pt cannot be read"):
        launch(work, Resources())
