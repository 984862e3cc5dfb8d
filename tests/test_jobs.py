"""Tests of the named runs: each builds a sweep that can be planned, with the settings of the paper."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs import five_budgets, metapruning_cifar, metapruning_imagenet, quickstart, tas_cifar, tas_imagenet
from tas_ray import data
from tas_ray.cli import MISTAKE, job
from tas_ray.cluster.config import Sweep
from tas_ray.cluster.plan import SweepPlan, plan_sweep
from tas_ray.data import DataConfig, Dataset

DATA = Path("data")


def of_size(classes: int, image_size: int) -> Dataset:
    """A dataset that looks like one of so many classes and this size to a plan."""
    digits = data.load(DataConfig(), torch.device("cpu"))
    return dataclasses.replace(digits, classes=classes, image_size=image_size)


def planned(sweep: Sweep, classes: int, image_size: int) -> SweepPlan:
    return plan_sweep(sweep, of_size(classes, image_size))


@pytest.mark.parametrize(("dataset", "network"), tas_cifar.BUDGETS)
def test_the_cifar_runs_are_the_papers(dataset, network):
    sweep = tas_cifar.tas_cifar(network=network, dataset=dataset, path=DATA)
    plan = planned(sweep, 100 if dataset == "cifar100" else 10, 32)
    assert [trial.method.name for trial in plan.trials] == ["tas", "uniform", "random"]
    assert len(plan.teachers) == 1
    tas, uniform, _ = plan.trials
    assert tas.budget == uniform.budget == tas_cifar.BUDGETS[dataset, network]
    assert tas.space.options == {"published": True}
    search, retrain = tas.method.training, tas.retrain
    assert search is not None
    assert (search.epochs, search.warmup_epochs, search.batch_size) == (600, 0, 256)
    assert (retrain.epochs, retrain.warmup_epochs, retrain.batch_size) == (305, 5, 256)
    assert search.learning_rate == retrain.learning_rate == 0.1
    assert search.weight_decay == retrain.weight_decay == 5e-4
    assert tas.method.learning_rate == 1e-3  # type: ignore[attr-defined]
    assert tas.distillation is not None
    assert (tas.distillation.alpha, tas.distillation.temperature) == (0.9, 4.0)


@pytest.mark.parametrize("network", tas_imagenet.BUDGETS)
def test_the_imagenet_runs_are_the_papers(network):
    sweep = tas_imagenet.tas_imagenet(network=network, path=DATA)
    tas = planned(sweep, 1000, 224).trials[0]
    assert tas.method.training is not None
    assert (tas.method.training.epochs, tas.method.training.warmup_epochs) == (120, 5)
    assert (tas.retrain.epochs, tas.retrain.warmup_epochs, tas.retrain.label_smoothing) == (125, 5, 0.1)
    assert tas.retrain.weight_decay == tas.method.training.weight_decay == 1e-4
    assert tas.distillation is not None
    assert tas.distillation.alpha == 0.5


def test_a_short_run_says_so_in_its_name_and_teaches_the_logits_faster():
    sweep = tas_cifar.tas_cifar(
        network="resnet20", dataset="parquet", path=DATA, search_epochs=60, epochs=100, seeds=(0, 1)
    )
    assert sweep.run == "resnet20-parquet-60+100epochs"
    assert sweep.methods[0].learning_rate == pytest.approx(1e-2)  # type: ignore[attr-defined]
    assert len(planned(sweep, 10, 32).trials) == 6


@pytest.mark.parametrize(
    ("network", "epochs", "batch_size", "rate", "decay"),
    [
        ("mobilenet_v1", (64, 256), (512, 1024), (0.25, 0.5), (4e-5, 4e-5)),
        ("mobilenet_v2", (64, 256), (512, 1024), (0.25, 0.5), (0.0, 4e-5)),
        ("resnet50", (32, 128), (256, 512), (0.1, 0.2), (1e-4, 1e-4)),
    ],
)
def test_the_imagenet_runs_of_metapruning_are_the_papers(network, epochs, batch_size, rate, decay):
    sweep = metapruning_imagenet.metapruning_imagenet(network=network, path=DATA)
    plan = planned(sweep, 1000, 224)
    (search,) = plan.searches
    assert search.budgets == sweep.budgets
    trainings = (search.method.training, sweep.retrain)
    assert tuple(t.epochs for t in trainings) == epochs
    assert tuple(t.batch_size for t in trainings) == batch_size
    assert tuple(t.learning_rate for t in trainings) == rate
    assert tuple(t.weight_decay for t in trainings) == decay
    assert {(t.momentum, t.nesterov, t.label_smoothing, t.warmup_epochs) for t in trainings} == {(0.9, False, 0.1, 0)}
    assert sweep.distillation is None


@pytest.mark.parametrize("network", metapruning_cifar.SPACES)
def test_one_pruning_net_and_one_search_serve_all_budgets_on_cifar(network):
    sweep = metapruning_cifar.metapruning_cifar(network=network, path=DATA)
    plan = planned(sweep, 10, 32)
    assert [search.method.name for search in plan.searches] == ["metapruning", "random-search"]
    assert len({search.supernet.folder for search in plan.searches}) == 1
    assert all(search.budgets == (0.25, 0.5, 0.75) for search in plan.searches)
    names = [trial.method.name for trial in plan.trials]
    assert names == [name for name in ("metapruning", "random-search", "tas", "uniform", "random") for _ in range(3)]


def test_a_run_of_one_epoch_is_possible():
    sweep = tas_cifar.tas_cifar(path=DATA, search_epochs=1, epochs=1)
    assert sweep.retrain.warmup_epochs == 0


def test_five_budgets_are_planned_for_every_method_and_seed():
    sweep = five_budgets.five_budgets(network="resnet20", path=DATA)
    plan = planned(sweep, 10, 32)
    assert len({trial.budget for trial in plan.trials}) == 5
    assert len(plan.trials) == 5 * 3 * 3
    assert sweep.space.options == {"published": False}


def test_the_quickstart_is_thirteen_trainings_and_a_search():
    plan = planned(quickstart.quickstart(), 10, 8)
    assert len(plan.teachers) + len(plan.trials) == 13
    assert len(plan.searches) == 1


@pytest.mark.parametrize(
    "define",
    [five_budgets.five_budgets, quickstart.quickstart, tas_cifar.tas_cifar, tas_imagenet.tas_imagenet],
)
def test_a_job_explains_each_of_its_flags(define: Callable[..., Sweep], capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        job(define, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: python -m jobs.{define.__name__}" in text
    documented = inspect.getdoc(define) or ""
    for name in inspect.signature(define).parameters:
        assert f"    {name}: " in documented
    assert "--storage" in text


def test_a_job_refuses_data_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        job(tas_cifar.tas_cifar, ["--path", str(tmp_path / "none"), "--storage", str(tmp_path)])
    assert ended.value.code == MISTAKE
    assert "is no folder on this machine" in capsys.readouterr().err
    assert not (tmp_path / "resnet56-cifar10").exists()


def test_every_module_of_jobs_ends_by_running_itself():
    for path in sorted(Path(tas_cifar.__file__).parent.glob("[a-z]*.py")):
        assert f'if __name__ == "__main__":\n    job({path.stem})\n' in path.read_text()
