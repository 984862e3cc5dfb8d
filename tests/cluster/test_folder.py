import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tas_ray.cluster.config import Resources
from tas_ray.cluster.folder import claimed, keep_config
from tests.cluster.settings import settings, tas, training

HOLD = """
import sys
from pathlib import Path
from tas_ray.cluster.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is working"), claimed(tmp_path):
            pass
        other.kill()
        other.wait()
        with claimed(tmp_path):
            pass


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be stored"), claimed(tmp_path / "file" / "run"):
        pass


def test_a_run_remembers_its_settings_versions_and_commit(tmp_path: Path) -> None:
    config = settings(tmp_path, methods=(tas(),))
    keep_config(config)
    kept = json.loads((config.folder / "config.json").read_text())
    assert kept["config"]["methods"][0]["class"] == "Tas"
    assert kept["config"]["budgets"] == [0.5]
    assert {"tas_ray", "torch", "ray", "python"} <= set(kept["versions"])
    assert "commit" in kept


def test_the_same_settings_go_on_with_other_resources_and_moved_storage(tmp_path: Path) -> None:
    config = settings(tmp_path / "here")
    keep_config(config)
    (tmp_path / "here").rename(tmp_path / "there")
    keep_config(replace(config, storage=tmp_path / "there", resources=Resources(workers=7)))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    keep_config(settings(tmp_path))
    other = settings(tmp_path, retrain=training(learning_rate=0.05), seeds=(0, 1))
    with pytest.raises(ValueError, match="other settings") as caught:
        keep_config(other)
    assert "retrain.learning_rate: 0.1 there, 0.05 here" in str(caught.value)
    assert "seeds.1: absent there, 1 here" in str(caught.value)
    assert "batch_size" not in str(caught.value)


def test_a_damaged_record_of_the_settings_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    keep_config(config)
    (config.folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        keep_config(config)
