import dataclasses
from pathlib import Path

import pytest
import torch

from tas_ray import pipeline
from tas_ray.data import DataConfig
from tas_ray.distill import Distillation
from tas_ray.export import WEIGHTS_FILE, load_blueprint, load_network, save_network
from tas_ray.methods.baselines import Dense, Random, Uniform
from tas_ray.methods.tas import Tas
from tas_ray.pipeline import Trial, inherit, plan, run
from tas_ray.results import RESULT_FILE, Result, read_result
from tas_ray.space import SpaceConfig
from tas_ray.train import Training
from tas_ray.workers import FileCheckpoints, Workers

SHORT = Training(epochs=2, warmup_epochs=0, batch_size=128)
CHANGING = ("search_seconds", "retrain_seconds", "finished_at", "checkpoint")


class Killed(Exception):
    """Stands for whatever ends a process in the middle."""


def a_trial(folder: Path, **changes) -> Trial:
    trial = Trial(
        run="test",
        name="trial",
        folder=folder,
        space=SpaceConfig(),
        data=DataConfig(),
        method=Dense(),
        budget=None,
        seed=0,
        retrain=SHORT,
        checkpoint_seconds=0.0,
    )
    return dataclasses.replace(trial, **changes)


def finish(trial: Trial, stop_after: int | None = None) -> Result:
    """Runs a trial in this process; ends it after so many epochs as a kill would."""
    epochs = 0

    def count(metrics):
        nonlocal epochs
        epochs += 1
        if stop_after is not None and epochs > stop_after:
            raise Killed

    return run(trial, Workers(), FileCheckpoints(trial.folder / "state.pt"), count)


def kept(result: Result) -> dict:
    """What two runs of the same trial have in common."""
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in CHANGING}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    finish(a_trial(folder))
    return folder


@pytest.mark.parametrize("method", [Tas(search=SHORT), Uniform(), Random()], ids=["tas", "uniform", "random"])
def test_a_trial_ends_in_a_network_within_its_budget(tmp_path, teacher, method):
    trial = a_trial(tmp_path, method=method, budget=0.4, teacher=teacher, distillation=Distillation())
    result = finish(trial)
    assert read_result(tmp_path / RESULT_FILE) == result
    assert result.budget_macs is not None
    assert result.macs <= result.budget_macs
    assert result.dense_accuracy == read_result(teacher / RESULT_FILE).test_accuracy
    assert (result.search_accuracy is not None) == (method.name == "tas")
    network = load_network(tmp_path)
    assert sum(p.numel() for p in network.parameters()) == result.params
    assert str(load_blueprint(tmp_path).architecture) == result.architecture


def test_a_finished_trial_is_not_run_again(tmp_path, monkeypatch):
    result = finish(a_trial(tmp_path))
    monkeypatch.setattr(pipeline, "load_data", lambda *_: pytest.fail("it was run again"))
    assert finish(a_trial(tmp_path)) == result


@pytest.mark.parametrize("stop_after", [1, 2, 3], ids=["in the search", "between the phases", "in the retraining"])
def test_a_trial_that_was_cut_off_ends_bit_for_bit_as_the_undisturbed_one(tmp_path, teacher, stop_after):
    settings = {"method": Tas(search=SHORT), "budget": 0.4, "teacher": teacher, "distillation": Distillation()}
    quiet = finish(a_trial(tmp_path / "quiet", **settings))
    trial = a_trial(tmp_path / "killed", **settings)
    with pytest.raises(Killed):
        finish(trial, stop_after=stop_after)
    assert not (trial.folder / RESULT_FILE).exists()
    assert kept(finish(trial)) == kept(quiet)
    weights = [(tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("quiet", "killed")]
    assert weights[0] == weights[1]


def test_a_search_that_is_finished_is_not_searched_again(tmp_path):
    trial = a_trial(tmp_path, method=Tas(search=SHORT), budget=0.4)
    checkpoints = FileCheckpoints(tmp_path / "state.pt")
    found = pipeline.search(trial, Workers(), checkpoints, lambda metrics: None)
    again = pipeline.search(trial, Workers(), checkpoints, lambda metrics: pytest.fail("it was searched again"))
    assert again == found
    assert found.accuracy is not None


def test_held_out_data_is_measured_and_not_trained_on(tmp_path, monkeypatch):
    splits = set()
    original = pipeline.Classification

    def spied(network, training, split):
        splits.add(split)
        return original(network, training, split)

    monkeypatch.setattr(pipeline, "Classification", spied)
    metrics = []
    trial = a_trial(tmp_path, method=Uniform(), budget=0.4, holdout=True)
    result = run(trial, Workers(), FileCheckpoints(tmp_path / "state.pt"), metrics.append)
    assert splits == {"train"}
    assert [m["validation_accuracy"] for m in metrics][-1] == result.validation_accuracy


def test_weights_are_inherited_from_the_leading_channels(tmp_path, teacher):
    dense = load_network(teacher)
    space = SpaceConfig().load(classes=10, image_size=8)
    network = space.build(space.sample(space.budget(0.4), seed=0), seed=1)
    inherit(network, dense)
    source = dense.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source[name][tuple(slice(size) for size in tensor.shape)]), name


def test_inherited_weights_make_a_better_start_than_random_ones(tmp_path, teacher):
    settings = {"method": Uniform(), "budget": 0.9, "teacher": teacher}
    gentle = Training(epochs=1, warmup_epochs=0, batch_size=128, learning_rate=1e-4)
    results = [
        finish(a_trial(tmp_path / start, initialization=start, retrain=gentle, **settings))
        for start in ("random", "dense")
    ]
    assert results[1].test_accuracy > results[0].test_accuracy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": None, "method": Uniform()}, "only the dense network has none"),
        ({"budget": 0.5}, "only the dense network has none"),
        ({"budget": -1.0, "method": Uniform()}, "positive number of MACs"),
        ({"budget": 10.0, "method": Uniform()}, "more than the budget of 10"),
        ({"budget": 1e9, "method": Random()}, "nothing to prune"),
        ({"budget": 0.5, "method": Uniform(), "distillation": Distillation()}, "distillation needs a teacher"),
        ({"budget": 0.5, "method": Uniform(), "initialization": "dense"}, "initialization needs a teacher"),
        ({"space": SpaceConfig(name="search_spaces.tiny:large")}, "no search space"),
        ({"space": SpaceConfig(name="tiny")}, "package.module:function"),
        ({"space": SpaceConfig(options={"publisht": True})}, "no option publisht"),
    ],
)
def test_a_trial_that_cannot_be_is_refused_before_anything_is_spent(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, **changes), classes=10, image_size=8)
    assert not list(tmp_path.iterdir())


def test_images_that_do_not_fit_the_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not fit this network"):
        plan(a_trial(tmp_path), classes=10, image_size=1)


def test_a_teacher_for_other_data_is_refused(tmp_path, teacher):
    blueprint = load_blueprint(teacher)
    other = dataclasses.replace(blueprint, classes=7)
    save_network(tmp_path / "other", other.build(), other)
    trial = a_trial(
        tmp_path, method=Uniform(), budget=0.5, teacher=tmp_path / "other", distillation=Distillation()
    )
    with pytest.raises(ValueError, match="7 classes and 8-pixel images, but the data has 10 and 8"):
        finish(trial)


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
    trial = a_trial(
        tmp_path, method=Uniform(), budget=0.5, teacher=tmp_path / "nowhere", distillation=Distillation()
    )
    with pytest.raises(ValueError, match="does not describe a network"):
        finish(trial)


def test_a_checkpoint_of_another_trial_is_refused(tmp_path):
    trial = a_trial(tmp_path, method=Tas(search=SHORT), budget=0.4)
    with pytest.raises(Killed):
        finish(trial, stop_after=1)
    with pytest.raises(ValueError, match="is of trial trial, not of other"):
        finish(dataclasses.replace(trial, name="other"))


def test_a_corrupt_checkpoint_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="move it aside"):
        finish(a_trial(tmp_path))


def test_a_training_that_diverges_says_so(tmp_path):
    wild = dataclasses.replace(SHORT, learning_rate=1e9)
    with pytest.raises(ValueError, match=r"diverged.*lower the learning rate"):
        finish(a_trial(tmp_path, retrain=wild))
