import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial

from tas_ray.cluster.config import Asha
from tas_ray.cluster.stopping import EarlyStopping
from tas_ray.methods.baselines import Random, Uniform
from tas_ray.pipeline import Trial
from tests.cluster.settings import trial

EPOCHS = 10


class Field:
    """Trials that report to one scheduler, as Tune would let them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials: dict[str, Trial] = {}
        self.scheduler = self.started()

    def started(self) -> EarlyStopping:
        config = Asha(grace_epochs=1, reduction_factor=2.0)

        def trial_of(config: Mapping[str, Any]) -> Trial:
            return self.trials[config["trial"]]

        return EarlyStopping(config, trial_of, self.folder)

    def add(self, name: str, **changes: Any) -> None:
        made = trial(self.folder / "trials" / name, Uniform(), epochs=EPOCHS)
        self.trials[name] = replace(made, **changes)
        self.scheduler.on_trial_add(None, self._of_tune(name))

    def report(self, name: str, epoch: float, accuracy: float) -> str:
        result = {"retrain_epoch": epoch, "validation_accuracy": accuracy}
        return self.scheduler.on_trial_result(None, self._of_tune(name), result)

    def finish(self, name: str) -> None:
        folder = self.trials[name].folder
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")

    def restart(self) -> None:
        self.scheduler = self.started()

    def _of_tune(self, name: str) -> TuneTrial:
        return TuneTrial("stub", trial_id=f"id-of-{name}", config={"trial": name}, stub=True)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path)


def test_the_weaker_half_is_stopped(field: Field) -> None:
    for name in "abc":
        field.add(name)
    assert field.report("a", 1.0, 0.5) == "CONTINUE"
    assert field.report("b", 1.0, 0.4) == "STOP"
    assert field.report("c", 1.0, 0.6) == "CONTINUE"


@pytest.mark.parametrize("changes", [{"budget": 0.3}, {"seed": 1}, {"method": Random()}])
def test_only_hyper_parameters_compete(field: Field, changes: dict[str, Any]) -> None:
    field.add("strong")
    field.add("other", **changes)
    assert field.report("strong", 1.0, 0.9) == "CONTINUE"
    assert field.report("other", 1.0, 0.1) == "CONTINUE"


def test_reports_of_the_search_decide_nothing(field: Field) -> None:
    field.add("a")
    field.add("b")
    assert field.report("a", 1.0, 0.9) == "CONTINUE"
    search = {"validation_accuracy": 0.0, "epoch": 5.0}
    assert field.scheduler.on_trial_result(None, field._of_tune("b"), search) == "CONTINUE"


def test_who_reaches_the_last_epoch_is_kept(field: Field) -> None:
    field.add("a")
    field.add("b")
    field.report("a", 8.0, 0.9)
    field.report("b", 8.0, 0.95)
    assert field.report("a", float(EPOCHS), 0.1) == "CONTINUE"
    assert field.report("b", float(EPOCHS), 0.2) == "CONTINUE"


def test_a_new_driver_remembers_what_finished_trials_reported(field: Field) -> None:
    field.add("a")
    field.report("a", 1.0, 0.9)
    field.finish("a")
    field.restart()
    field.add("b")
    assert field.report("b", 1.0, 0.5) == "STOP"


def test_a_trial_that_goes_on_does_not_compete_with_its_former_self(field: Field) -> None:
    field.add("a")
    field.report("a", 1.0, 0.9)
    field.restart()
    field.add("a")
    assert field.report("a", 1.0, 0.5) == "CONTINUE"


def test_half_a_line_of_a_killed_driver_is_passed_over(field: Field) -> None:
    field.add("a")
    field.report("a", 1.0, 0.9)
    field.finish("a")
    with (field.folder / "asha.jsonl").open("a") as journal:
        journal.write(json.dumps({"trial": "a"})[:-3])
    field.restart()
    field.add("b")
    assert field.report("b", 1.0, 0.5) == "STOP"
    field.restart()
    field.add("c")
    assert field.report("c", 1.0, 0.6) == "STOP"
