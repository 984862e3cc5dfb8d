"""A trial from its method to its result: complete, the same after any interruption, refused early if impossible."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates
from tas_ray.data import DataConfig, load
from tas_ray.distill import Distillation
from tas_ray.export import ARCHITECTURE_FILE, WEIGHTS_FILE, load_blueprint, load_network
from tas_ray.methods.baselines import Dense, Given, Uniform
from tas_ray.methods.method import Method
from tas_ray.methods.tas import Tas
from tas_ray.pipeline import Trial, inherit, plan, run, search
from tas_ray.results import RESULT_FILE, Result, read_result
from tas_ray.space import SpaceConfig
from tas_ray.train import Training, accuracy
from tas_ray.workers import Checkpoints, FileCheckpoints, Workers

CPU = torch.device("cpu")
TWO = Training(epochs=2, warmup_epochs=1, batch_size=256)
TAS = Tas(search=TWO, learning_rate=0.02)
BOTH_TIMES = {"search_seconds", "retrain_seconds", "finished_at"}


def a_trial(folder: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "run": "demo",
        "name": "trial",
        "folder": folder,
        "space": SpaceConfig(),
        "data": DataConfig(),
        "method": Uniform(),
        "budget": 0.5,
        "seed": 3,
        "retrain": TWO,
        "checkpoint_seconds": 0.0,
    }
    return Trial(**(settings | changes))


def quiet(metrics: dict[str, float]) -> None:
    """Reports to nobody."""


def state_file(trial: Trial) -> FileCheckpoints:
    return FileCheckpoints(trial.folder / "state.pt")


def run_here(trial: Trial, on_epoch: Callable[[dict[str, float]], None] = quiet) -> Result:
    return run(trial, Workers(), state_file(trial), on_epoch)


def same_outcome(first: Trial, second: Trial) -> None:
    """Both folders hold the same network and the same result but for times and places."""
    for name in (WEIGHTS_FILE, ARCHITECTURE_FILE):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    results = []
    for trial in (first, second):
        fields = dataclasses.asdict(read_result(trial.folder / RESULT_FILE))
        assert fields.pop("checkpoint") == str(trial.folder)
        results.append({name: value for name, value in fields.items() if name not in BOTH_TIMES})
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A finished dense network, as a teacher."""
    folder = tmp_path_factory.mktemp("dense")
    trial = a_trial(folder, name="dense", method=Dense(), budget=None)
    run_here(trial)
    return trial


# From method to result


def test_a_finished_trial_is_complete_and_consistent(tmp_path: Path, dense: Trial) -> None:
    trial = a_trial(
        tmp_path,
        method=TAS,
        distillation=Distillation(),
        teacher=dense.folder,
        parameters={"method.learning_rate": 0.02},
    )
    reported: list[dict[str, float]] = []
    result = run_here(trial, reported.append)
    assert read_result(tmp_path / RESULT_FILE) == result

    space = tiny()
    blueprint = load_blueprint(tmp_path)
    assert str(blueprint.architecture) == result.architecture
    assert result.macs == space.macs(blueprint.architecture)
    assert result.params == space.params(blueprint.architecture)
    unpruned = space.macs(space.dense)
    assert (result.budget_macs, result.macs_ratio) == (unpruned // 2, result.macs / unpruned)
    assert result.budget_ratio == pytest.approx(0.5)
    assert 0.45 * unpruned <= result.macs <= 0.5 * unpruned
    dataset = load(DataConfig(), CPU)
    assert accuracy(load_network(tmp_path), dataset, "test", Workers()) == result.test_accuracy
    assert (blueprint.mean, blueprint.std) == (dataset.mean, dataset.std)
    assert result.dense_accuracy == read_result(dense.folder / RESULT_FILE).test_accuracy
    assert result.search_accuracy is not None
    assert result.validation_accuracy is None
    assert (result.run, result.trial, result.method, result.seed) == ("demo", "trial", "tas", 3)
    assert (result.workers, result.device, result.precision) == (1, "cpu", "float32")
    assert json.loads(result.parameters) == {"method.learning_rate": 0.02}
    assert result.search_seconds > 0 < result.retrain_seconds

    assert [(m["phase"], m["epoch"], m["epochs"]) for m in reported] == [(0, 1, 2), (0, 2, 2), (2, 1, 2), (2, 2, 2)]
    assert all("expected_macs" in metrics for metrics in reported[:2])


def test_the_dense_network_is_its_own_reference(dense: Trial) -> None:
    result = read_result(dense.folder / RESULT_FILE)
    assert result.method == "dense"
    assert (result.budget_macs, result.budget_ratio, result.macs_ratio) == (None, None, 1.0)
    assert result.dense_accuracy == result.test_accuracy
    assert (result.search_accuracy, result.search_seconds) == (None, 0.0)


def test_a_finished_trial_never_runs_again(dense: Trial) -> None:
    class Never(Checkpoints):
        def load(self) -> dict[str, Any] | None:
            raise AssertionError("a finished trial needs no checkpoint")

        def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
            raise AssertionError("a finished trial saves nothing")

    before = {path.name: path.stat().st_mtime_ns for path in dense.folder.iterdir()}
    result = run(dense, Workers(), Never(), lambda metrics: pytest.fail("an epoch was trained"))
    assert result == read_result(dense.folder / RESULT_FILE)
    assert {path.name: path.stat().st_mtime_ns for path in dense.folder.iterdir()} == before


def test_held_out_images_are_measured_after_each_epoch_and_not_trained_on(tmp_path: Path) -> None:
    reported: list[dict[str, float]] = []
    trial = a_trial(tmp_path / "held out", holdout=True)
    result = run_here(trial, reported.append)
    validated = [metrics["validation_accuracy"] for metrics in reported]
    assert len(validated) == 2
    assert result.validation_accuracy == validated[-1]
    dataset = load(DataConfig(), CPU)
    assert accuracy(load_network(trial.folder), dataset, "search", Workers()) == validated[-1]

    everything = a_trial(tmp_path / "everything")
    plain: list[dict[str, float]] = []
    assert run_here(everything, plain.append).validation_accuracy is None
    assert "validation_accuracy" not in plain[0]
    assert plain[0]["loss"] != reported[0]["loss"]


def test_only_the_search_can_be_run(tmp_path: Path, dense: Trial) -> None:
    trial = a_trial(tmp_path / "search", method=TAS)
    reported: list[dict[str, float]] = []
    found = search(trial, Workers(), state_file(trial), reported.append)
    assert [metrics["phase"] for metrics in reported] == [0, 0]
    assert not (trial.folder / RESULT_FILE).exists()
    space = tiny()
    assert found.macs == space.macs(found.blueprint.architecture)
    assert found.params == space.params(found.blueprint.architecture)
    # The trial itself goes on with what was found.
    result = run_here(trial, reported.append)
    assert [metrics["phase"] for metrics in reported] == [0, 0, 2, 2]
    assert result.architecture == str(found.blueprint.architecture)
    assert result.search_accuracy == found.accuracy
    whole = a_trial(tmp_path / "whole", method=TAS)
    run_here(whole)
    same_outcome(trial, whole)


def test_seeds_decide_weights_and_order(tmp_path: Path) -> None:
    trials = [a_trial(tmp_path / str(number), seed=seed) for number, seed in enumerate((1, 1, 2))]
    for trial in trials:
        run_here(trial)
    same_outcome(trials[0], trials[1])
    assert (trials[0].folder / WEIGHTS_FILE).read_bytes() != (trials[2].folder / WEIGHTS_FILE).read_bytes()


def test_a_network_can_start_from_the_teachers_leading_channels() -> None:
    space = tiny(published=True)
    source = space.build(space.dense, seed=1)
    narrow = Architecture({**space.dense, "stem": 8, "stage1.block0.conv1": 6, "stage2.depth": 1})
    network, fresh = (space.build(narrow, seed=2) for _ in range(2))
    source.train()(torch.randn(4, 3, 8, 8))
    inherit(network, source)
    given, got, before = source.state_dict(), network.state_dict(), fresh.state_dict()
    assert torch.equal(got["stem.conv.weight"], given["stem.conv.weight"][:8])
    assert torch.equal(got["stem.bn.running_mean"], given["stem.bn.running_mean"][:8])
    first = "stages.0.0.conv1.conv.weight"
    assert torch.equal(got[first], given[first][:6, :8])
    assert torch.equal(got["head.bias"], given["head.bias"])
    only_here = set(got) - set(given)  # the projection between 8 and 16 channels
    assert only_here
    assert all(torch.equal(got[name], before[name]) for name in only_here)
    whole = space.build(space.dense, seed=3)
    inherit(whole, source)
    assert all(torch.equal(tensor, given[name]) for name, tensor in whole.state_dict().items())


def test_initial_weights_matter(tmp_path: Path, dense: Trial) -> None:
    losses: dict[str, list[float]] = {}
    for initialization in ("random", "dense"):
        trial = a_trial(
            tmp_path / initialization,
            method=Given(architecture=tiny().dense),
            budget=1.0,
            teacher=dense.folder,
            initialization=initialization,
        )
        run_here(trial, lambda metrics, key=initialization: losses.setdefault(key, []).append(metrics["loss"]))
    assert losses["dense"][0] < losses["random"][0]


# Interrupted as uninterrupted


class Killed(BaseException):
    """The end of a process, which nothing catches."""


class Interrupting(Checkpoints):
    """Checkpoints that end the process at the n-th report or save."""

    def __init__(self, kept: FileCheckpoints, at: int, before_saving: bool) -> None:
        self.kept, self.left, self.before_saving = kept, at, before_saving

    def load(self) -> dict[str, Any] | None:
        return self.kept.load()

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        if self.before_saving:
            self.count()
        self.kept.save(state, metrics)
        if not self.before_saving:
            self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, dense: Trial) -> Trial:
    trial = searched(tmp_path_factory.mktemp("uninterrupted"), dense)
    run_here(trial)
    return trial


def searched(folder: Path, dense: Trial, **changes: Any) -> Trial:
    teaching = {"distillation": Distillation(), "teacher": dense.folder, "initialization": "dense"}
    return a_trial(folder, method=TAS, holdout=True, **(teaching | changes))


@pytest.mark.parametrize("before_saving", [True, False])
def test_a_trial_killed_at_every_checkpoint_ends_as_an_uninterrupted_one(
    before_saving: bool, tmp_path: Path, dense: Trial, uninterrupted: Trial
) -> None:
    trial = searched(tmp_path, dense)
    kills = 0
    for _ in range(20):
        # Before the save, the next start does this epoch again and gets one further; after it, it goes on behind.
        checkpoints = Interrupting(state_file(trial), int(before_saving), before_saving)
        try:
            run(trial, Workers(), checkpoints, quiet)
        except Killed:
            kills += 1
            continue
        break
    assert kills == (4 if before_saving else 5)  # 2 epochs of search, what it found, 2 epochs of retraining
    same_outcome(trial, uninterrupted)


def test_a_trial_killed_once_at_any_epoch_ends_as_an_uninterrupted_one(
    tmp_path: Path, dense: Trial, uninterrupted: Trial
) -> None:
    for epoch in range(4):
        trial = searched(tmp_path / str(epoch), dense, checkpoint_seconds=0.0 if epoch % 2 else 3600.0)
        seen = 0

        def report(metrics: dict[str, float], last: int = epoch) -> None:
            nonlocal seen
            seen += 1
            if seen > last:
                raise Killed

        with pytest.raises(Killed):
            run_here(trial, report)
        run_here(trial)
        same_outcome(trial, uninterrupted)


def test_time_adds_up_over_interruptions(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    with pytest.raises(Killed):
        run(trial, Workers(), Interrupting(state_file(trial), 0, before_saving=False), quiet)
    saved = state_file(trial).load()
    assert saved is not None
    spent = saved["seconds"]["retrain"]
    assert run_here(trial).retrain_seconds > spent > 0


def test_checkpoints_are_as_rare_as_asked(tmp_path: Path) -> None:
    class Counting(FileCheckpoints):
        saves = 0

        def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
            type(self).saves += 1
            super().save(state, metrics)

    for seconds, saves in ((3600.0, 1), (0.0, 5)):
        Counting.saves = 0
        trial = a_trial(tmp_path / str(saves), method=TAS, checkpoint_seconds=seconds)
        run(trial, Workers(), Counting(trial.folder / "state.pt"), quiet)
        assert Counting.saves == saves  # what the search found is always kept


# Refused before anything is spent


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0.0, "a budget is a positive number of MACs or a share of the dense MACs, not 0.0"),
        (-0.5, "not -0.5"),
        (math.nan, "not nan"),
        (math.inf, "not inf"),
        (1000.0, r"smallest network of tiny has [\d ]+ MACs, more than the budget of 1 000"),
        (0.01, r"more than the budget of 11 420"),
        (5e6, r"5 000 000 MACs is above the dense network of tiny"),
        (None, "uniform with a budget of None: only the dense network has none"),
    ],
)
def test_impossible_budgets_are_refused(budget: float | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, budget=budget), classes=10, image_size=8)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Dense(), "dense with a budget of 0.5: only the dense network has none"),
        (Given(architecture=Architecture({"stage7.out": 3})), r"missing: stage1.block0.conv1.*unknown: stage7.out"),
        (Given(architecture=tiny().dense), "has 1142080 MACs, more than the budget of 571040"),
    ],
)
def test_a_method_without_an_answer_is_refused(method: Method, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, method=method), classes=10, image_size=8)


DEPTHS = SpaceConfig(candidates=Candidates(freeze=("*.out", "*.conv?")))  # 48, 74, 74 and 100 % of the MACs


def test_a_window_without_any_network_is_refused_before_the_search(tmp_path: Path) -> None:
    trial = a_trial(tmp_path, space=DEPTHS, method=TAS, budget=0.6)
    with pytest.raises(ValueError, match=r"no architecture of tiny .* widen the budget"):
        plan(trial, classes=10, image_size=8)


def test_uniform_scaling_of_depths_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uniform scaling cannot reach it"):
        plan(a_trial(tmp_path, space=DEPTHS, budget=0.6), classes=10, image_size=8)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SpaceConfig(name="search_spaces.nowhere:tiny"), "there is no search space search_spaces.nowhere:tiny"),
        (SpaceConfig(name="tiny"), "a search space is named `package.module:function`"),
        (SpaceConfig(options={"width": 3}), "search_spaces.tiny:tiny has no option width"),
        (SpaceConfig(candidates=Candidates(freeze=("stage3.*",))), r"stage3.\*, but the network has no such width"),
        (SpaceConfig(candidates=Candidates(freeze=("*",))), "MACs"),
    ],
)
def test_an_impossible_space_is_refused(space: SpaceConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, space=space, method=TAS), classes=10, image_size=8)


def test_images_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    trial = a_trial(tmp_path, data=DataConfig(image_size=7))
    with pytest.raises(ValueError, match="images of 3 x 7 x 7 do not fit this network"):
        run_here(trial)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": Distillation()}, "distillation needs a teacher: give the folder of a finished dense"),
        ({"initialization": "dense"}, "initialization needs a teacher: give the folder of a finished dense"),
    ],
)
def test_a_missing_teacher_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(a_trial(tmp_path, **changes), classes=10, image_size=8)


def test_a_teachers_folder_that_holds_no_network_is_refused(tmp_path: Path, dense: Trial) -> None:
    trial = a_trial(tmp_path / "trial", teacher=tmp_path / "nowhere", distillation=Distillation())
    with pytest.raises(ValueError, match=rf"nowhere.*{ARCHITECTURE_FILE} does not describe a network"):
        run_here(trial)


@pytest.mark.parametrize("damaged", [ARCHITECTURE_FILE, WEIGHTS_FILE, RESULT_FILE])
def test_a_damaged_teacher_is_refused(damaged: str, tmp_path: Path, dense: Trial) -> None:
    for name in (ARCHITECTURE_FILE, WEIGHTS_FILE, RESULT_FILE):
        content = (dense.folder / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2] if name == damaged else content)
    trial = a_trial(tmp_path / "trial", teacher=tmp_path, distillation=Distillation())
    with pytest.raises(ValueError, match=damaged):
        run_here(trial)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", 11, "has 11 classes and 8-pixel images, but the data has 10 and 8"),
        ("image_size", 16, "has 10 classes and 16-pixel images, but the data has 10 and 8"),
    ],
)
def test_a_teacher_of_other_data_is_refused(field: str, value: int, message: str, tmp_path: Path, dense: Trial) -> None:
    fields = json.loads((dense.folder / ARCHITECTURE_FILE).read_text())
    (tmp_path / ARCHITECTURE_FILE).write_text(json.dumps(fields | {field: value}))
    trial = a_trial(tmp_path / "trial", teacher=tmp_path, distillation=Distillation())
    with pytest.raises(ValueError, match=message):
        run_here(trial)


def test_weights_of_another_network_are_no_start(tmp_path: Path, dense: Trial) -> None:
    space = SpaceConfig(name="search_spaces.cifar_resnet:resnet20")
    trial = a_trial(tmp_path, space=space, teacher=dense.folder, initialization="dense")
    with pytest.raises(ValueError, match=r"is of search_spaces\.tiny:tiny, so its weights do not fit"):
        run_here(trial)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    (tmp_path / "state.pt").write_bytes(b"no state at all")
    with pytest.raises(ValueError, match=r"state.pt cannot be read .* move it aside and run the same command again"):
        run_here(trial)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    torch.save([1, 2, 3], tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state.pt cannot be read .* move it aside and run the same command again"):
        run_here(trial)


def test_the_checkpoint_of_another_trial_is_refused(tmp_path: Path) -> None:
    first = a_trial(tmp_path)
    with pytest.raises(Killed):
        run(first, Workers(), Interrupting(state_file(first), 0, before_saving=False), quiet)
    with pytest.raises(ValueError, match="the checkpoint is of trial trial, not of other; move it aside"):
        run_here(a_trial(tmp_path, name="other"))


def test_a_diverging_retraining_stops_the_trial(tmp_path: Path) -> None:
    wild = Training(epochs=1, warmup_epochs=0, batch_size=256, learning_rate=1e38)
    with pytest.raises(ValueError, match="the training diverged; lower the learning rate"):
        run_here(a_trial(tmp_path, retrain=wild))
    assert not (tmp_path / RESULT_FILE).exists()


def test_a_batch_too_small_for_the_workers_is_refused(tmp_path: Path) -> None:
    small = Training(epochs=1, warmup_epochs=0, batch_size=4)
    trial = a_trial(tmp_path, retrain=small)
    with pytest.raises(ValueError, match="3 workers need at least 6 images a step, but a batch of training has 4"):
        run(trial, Workers(world=3), state_file(trial), quiet)
