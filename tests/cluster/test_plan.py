from pathlib import Path

import pytest
import torch

from tas_ray.cluster.config import Optuna, Range
from tas_ray.cluster.cost import cost_of, cost_of_search, cost_of_supernets, typical
from tas_ray.cluster.plan import plan_sweep
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.distill import Distillation
from tas_ray.evaluation import Evaluation
from tas_ray.evolution import Evolution
from tas_ray.methods.baselines import Dense, Random, Uniform
from tas_ray.methods.metapruning import MetaPruning, RandomSearch
from tas_ray.supernets import SUPERNET_FILE
from tests.cluster.settings import settings, tas, training


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), torch.device("cpu"))


def test_every_method_meets_every_budget_with_every_seed(tmp_path: Path, digits: Dataset) -> None:
    config = settings(tmp_path, methods=(tas(), Uniform()), budgets=(0.3, 600_000.0), seeds=(0, 1))
    plan = plan_sweep(config, digits)
    names = [trial.name for trial in plan.trials]
    assert names == [
        f"{method}-{budget}-seed{seed}"
        for method in ("tas", "uniform")
        for budget in ("0.3", "600000")
        for seed in (0, 1)
    ]
    assert [trial.folder for trial in plan.trials] == [config.folder / "trials" / name for name in names]
    assert plan.teachers == ()
    assert all(trial.teacher is None for trial in plan.trials)


def test_one_teacher_serves_all_trials_and_is_trained_by_its_own_schedule(tmp_path: Path, digits: Dataset) -> None:
    config = settings(tmp_path, distillation=Distillation(), seeds=(3, 4), teacher=training(7))
    plan = plan_sweep(config, digits)
    (teacher,) = plan.teachers
    assert (teacher.name, teacher.seed, teacher.retrain.epochs) == ("dense-seed3", 3, 7)
    assert teacher.distillation is None
    assert {trial.teacher for trial in plan.trials} == {teacher.folder}


def test_weights_of_the_dense_network_need_it_trained(tmp_path: Path, digits: Dataset) -> None:
    plan = plan_sweep(settings(tmp_path, initialization="dense"), digits)
    assert [trial.initialization for trial in (*plan.teachers, *plan.trials)] == ["random", "dense"]


def test_asked_for_dense_rows_there_is_one_a_seed(tmp_path: Path, digits: Dataset) -> None:
    plan = plan_sweep(settings(tmp_path, methods=(Dense(), Uniform()), seeds=(0, 1)), digits)
    assert [trial.name for trial in plan.teachers] == ["dense-seed0", "dense-seed1"]
    assert [trial.name for trial in plan.trials] == ["uniform-0.5-seed0", "uniform-0.5-seed1"]
    assert {trial.teacher for trial in plan.trials} == {plan.teachers[0].folder}


def test_a_grid_multiplies_only_the_methods_that_have_the_field(tmp_path: Path, digits: Dataset) -> None:
    grid = {"method.samples": (1, 2), "retrain.learning_rate": (0.1, 0.2)}
    plan = plan_sweep(settings(tmp_path, methods=(tas(), Uniform()), grid=grid), digits)
    assert [trial.method.name for trial in plan.trials] == ["tas"] * 4 + ["uniform"] * 2
    assert {(t.method.samples, t.retrain.learning_rate) for t in plan.trials[:4]} == {  # type: ignore[attr-defined]
        (samples, rate) for samples in (1, 2) for rate in (0.1, 0.2)
    }
    assert plan.trials[0].parameters == {"method.samples": 1, "retrain.learning_rate": 0.1}
    assert len({trial.folder for trial in plan.trials}) == 6


def test_fields_of_fields_can_be_swept(tmp_path: Path, digits: Dataset) -> None:
    config = settings(tmp_path, methods=(tas(),), grid={"method.search.learning_rate": (0.3,)})
    (trial,) = plan_sweep(config, digits).trials
    assert trial.method.training is not None
    assert trial.method.training.learning_rate == 0.3


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("retrain.learning_rat", "no learning_rat in retrain, which has .*learning_rate"),
        ("method.tau_max", "no tau_max in method"),
        ("distillation.alpha", "no alpha in distillation"),
        ("seed", "lies below"),
        ("budget", "lies below"),
        ("retrain", "lies below"),
    ],
)
def test_a_misspelt_field_is_refused(tmp_path: Path, digits: Dataset, path: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plan_sweep(settings(tmp_path, grid={path: (0.1, 0.2)}), digits)


def test_a_refused_value_of_the_grid_is_told_before_anything_starts(tmp_path: Path, digits: Dataset) -> None:
    with pytest.raises(ValueError, match="learning rate has to be positive, not -1"):
        plan_sweep(settings(tmp_path, grid={"retrain.learning_rate": (0.1, -1.0)}), digits)


@pytest.mark.parametrize("budget", [0.0001, 3.0, 10.0**9])
def test_an_unreachable_budget_is_told_before_anything_starts(tmp_path: Path, digits: Dataset, budget: float) -> None:
    with pytest.raises(ValueError, match="MACs"):
        plan_sweep(settings(tmp_path, budgets=(0.5, budget)), digits)


def test_a_study_names_its_trials_by_their_values(tmp_path: Path, digits: Dataset) -> None:
    optuna = Optuna(parameters={"retrain.learning_rate": Range(low=0.01, high=0.1), "method.samples": (1, 2)})
    config = settings(tmp_path, methods=(tas(), Uniform()), optuna=optuna, holdout=True)
    of_tas, of_uniform = plan_sweep(config, digits).studies
    assert set(of_tas.parameters) == {"retrain.learning_rate", "method.samples"}
    assert set(of_uniform.parameters) == {"retrain.learning_rate"}
    one = of_tas.trial({"retrain.learning_rate": 0.05, "method.samples": 1})
    same = of_tas.trial({"method.samples": 1, "retrain.learning_rate": 0.05})
    other = of_tas.trial({"retrain.learning_rate": 0.05, "method.samples": 2})
    assert one.folder == same.folder != other.folder
    assert (one.retrain.learning_rate, one.holdout) == (0.05, True)


def test_a_study_is_refused_if_one_end_of_a_range_is(tmp_path: Path, digits: Dataset) -> None:
    optuna = Optuna(parameters={"budget": Range(low=0.001, high=0.9)}, against_macs=True)
    with pytest.raises(ValueError, match="MACs, more than the budget"):
        plan_sweep(settings(tmp_path, methods=(Random(),), budgets=(), optuna=optuna, holdout=True), digits)


def test_costs_count_search_training_and_teacher(tmp_path: Path, digits: Dataset) -> None:
    config = settings(
        tmp_path,
        methods=(tas(2), Uniform()),
        distillation=Distillation(),
        retrain=training(3),
        teacher=training(5),
    )
    plan = plan_sweep(config, digits)
    space = config.space.load(classes=10, image_size=8)
    dense, budget = space.macs(space.dense), space.budget(0.5).most
    images, halves = digits.size("training"), digits.size("train")
    searched, uniform = (cost_of(trial, digits) for trial in plan.trials)
    assert cost_of(plan.teachers[0], digits).retrain == 5 * images * 3 * dense
    assert searched.search == 2 * halves * 6 * dense
    assert searched.retrain == uniform.retrain == 3 * images * (3 * budget + dense)
    assert uniform.search == 0


def test_a_shared_search_costs_once_and_its_supernet_until_it_is_trained(tmp_path: Path, digits: Dataset) -> None:
    evaluation = Evaluation(calibration_images=100, images=50)
    evolution = Evolution(population=4, parents=2, mutations=1, crossovers=1, generations=3)
    pruning = MetaPruning(supernet=training(2, nesterov=False), evaluation=evaluation, evolution=evolution)
    config = settings(tmp_path, methods=(pruning, RandomSearch.beside(pruning)), budgets=(0.5, 0.75))
    plan = plan_sweep(config, digits)
    space = config.space.load(classes=10, image_size=8)
    dense, budgets = space.macs(space.dense), [space.budget(budget).most for budget in config.budgets]
    assert [cost_of(trial, digits).search for trial in plan.trials] == [0, 0, 0, 0]
    for search in plan.searches:
        assert cost_of_search(search, digits).total == 2 * 3 * 4 * 150 * sum(budgets) // 2
    assert cost_of_supernets(plan.searches, digits).total == 2 * digits.size("train") * 3 * dense
    place = plan.searches[0].supernet.folder
    place.mkdir(parents=True)
    (place / SUPERNET_FILE).touch()
    assert cost_of_supernets(plan.searches, digits).total == 0


def test_a_typical_trial_lies_inside_its_study(tmp_path: Path, digits: Dataset) -> None:
    optuna = Optuna(parameters={"budget": Range(low=0.2, high=0.8)}, against_macs=True)
    config = settings(tmp_path, methods=(Random(),), budgets=(), optuna=optuna, holdout=True)
    (study,) = plan_sweep(config, digits).studies
    assert typical(study).budget == pytest.approx(0.5)


def test_paths_of_data_hold_wherever_workers_run(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = DataConfig(dataset="parquet", path=Path("data"), image_size=8)
    (trial,) = plan_sweep(settings(Path("runs"), data=data), digits).trials
    assert trial.data.path == tmp_path / "data"
    assert trial.folder == tmp_path / "runs" / "test" / "trials" / "uniform-0.5-seed0"


def test_budgets_of_the_same_macs_are_refused(tmp_path: Path, digits: Dataset) -> None:
    with pytest.raises(ValueError, match="less than a MAC apart"):
        plan_sweep(settings(tmp_path, budgets=(500_000.2, 500_000.4)), digits)
