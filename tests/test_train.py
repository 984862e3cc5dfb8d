"""The training loop: the same result resumed as uninterrupted, and with two workers as with one."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.tiny import tiny
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.distill import Distillation, DistilledTask
from tas_ray.methods.metapruning import MetaPruning
from tas_ray.methods.tas import Tas
from tas_ray.train import Classification, Group, Task, Training, accuracy, fit, placed, weights_of
from tas_ray.workers import Workers, read_state, write_state

CPU = torch.device("cpu")
THREE = Training(epochs=3, warmup_epochs=1, batch_size=200)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), CPU)


def train(
    task: Task,
    dataset: Dataset,
    training: Training,
    *,
    seed: int = 0,
    workers: Workers | None = None,
    state: dict[str, Any] | None = None,
    at_end: Callable[[int, dict[str, float], Callable[[], dict[str, Any]]], None] | None = None,
) -> list[dict[str, float]]:
    """Trains to the end and returns what was reported after each epoch."""
    reported: list[dict[str, float]] = []

    def end_of_epoch(epoch: int, metrics: dict[str, float], state: Callable[[], dict[str, Any]]) -> None:
        reported.append(metrics)
        if at_end is not None:
            at_end(epoch, metrics, state)

    fit(
        task,
        dataset,
        training,
        seed=seed,
        workers=workers or Workers(),
        state=state,
        end_of_epoch=end_of_epoch,
    )
    return reported


# Settings


@pytest.mark.parametrize(
    ("epoch", "fraction", "rate"),
    [
        *((0, 0.0, 0.0), (0, 0.5, 0.01), (2, 0.0, 0.04), (4, 0.5, 0.09), (5, 0.0, 0.1)),
        *((155, 0.0, 0.05), (155, 0.9, 0.05), (299, 0.0, 9.866e-5), (300, 0.0, 0.0), (304, 0.5, 0.0)),
    ],
)
def test_the_published_schedule_is_the_references(epoch: int, fraction: float, rate: float) -> None:
    # Of "300 epochs" with 5 of warm-up the reference runs 305, the last five at 0.
    training = Training(epochs=305, warmup_epochs=5, schedule="cosine-published")
    assert training.learning_rate_at(epoch, fraction) == pytest.approx(rate, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (150, 0.0853553), (300, 0.05), (599, 6.9e-7)])
@pytest.mark.parametrize("schedule", ["cosine", "cosine-published"])
def test_without_warm_up_both_schedules_are_one_cosine(epoch: int, rate: float, schedule: Any) -> None:
    training = Training(epochs=600, warmup_epochs=0, schedule=schedule)
    assert training.learning_rate_at(epoch, 0.0) == pytest.approx(rate, rel=1e-2 if rate < 1e-6 else 1e-6)


@pytest.mark.parametrize(
    ("schedule", "epochs", "rates"),
    [
        ("linear-published", 4, {0: 0.75, 1: 0.5, 2: 0.25, 3: 0.0}),
        ("linear", 4, {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25}),
        ("steps-published", 32, {0: 1.0, 6: 1.0, 7: 0.1, 14: 0.1, 15: 0.01, 23: 0.001, 30: 0.001}),
        ("steps", 32, {0: 1.0, 7: 1.0, 8: 0.1, 15: 0.1, 16: 0.01, 24: 0.001, 31: 0.001}),
    ],
)
def test_metaprunings_published_schedules_are_an_epoch_ahead(
    schedule: Any, epochs: int, rates: dict[int, float]
) -> None:
    training = Training(epochs=epochs, warmup_epochs=0, learning_rate=1.0, schedule=schedule)
    assert {epoch: training.learning_rate_at(epoch, 0.0) for epoch in rates} == pytest.approx(rates)
    within = training.learning_rate_at(1, 0.5)
    assert within == (0.625 if schedule == "linear" else training.learning_rate_at(1, 0.0))


def test_decay_can_spare_batch_norms_biases_and_depthwise_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 2))
    sgd = Training(decayed="weights", weight_decay=0.5).sgd(network)
    shapes = {group["weight_decay"]: [tuple(p.shape) for p in group["params"]] for group in sgd.param_groups}
    assert shapes == {0.5: [(8, 3, 3, 3), (2, 8)], 0.0: [(8,), (8,), (8,), (8, 1, 3, 3), (8,), (2,)]}


def test_the_cosine_falls_within_epochs_and_ends_at_nothing() -> None:
    training = Training(epochs=12, warmup_epochs=2)
    rates = [training.learning_rate_at(epoch, part / 4) for epoch in range(12) for part in range(4)]
    assert rates[:9] == pytest.approx([0.1 * step / 8 for step in range(9)])
    assert all(first > second for first, second in pairwise(rates[8:]))
    assert 0 < rates[-1] < 1e-3
    assert training.learning_rate_at(11, 1.0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "warmup_epochs": 0}, "at least one epoch behind its warm-up, not 0 epochs"),
        ({"epochs": 5}, "not 5 epochs with 5 of warm-up"),
        ({"warmup_epochs": -1}, "with -1 of warm-up"),
        ({"batch_size": 1}, "a batch has at least 2 images, not 1"),
        ({"learning_rate": 0.0}, "learning rate has to be positive, not 0.0"),
        ({"learning_rate": math.nan}, "learning rate has to be positive, not nan"),
        ({"momentum": 1.0}, r"momentum lies in \[0, 1\), not 1.0"),
        ({"label_smoothing": 1.0}, r"label smoothing lies in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_weights_are_trained_by_nesterov_sgd_with_decay_on_all_of_them() -> None:
    network = tiny().build(tiny().dense)
    group = weights_of(network, Training(), "train")
    (options,) = group.optimizer.param_groups
    assert {id(p) for p in options["params"]} == {id(p) for p in network.parameters()}
    assert (options["lr"], options["momentum"], options["nesterov"], options["weight_decay"]) == (0.1, 0.9, True, 5e-4)
    (plain,) = Training(momentum=0.0).sgd(network).param_groups
    assert not plain["nesterov"]


def test_automatic_precision_is_float32_on_a_cpu_and_bfloat16_on_a_gpu() -> None:
    devices = (CPU, torch.device("cuda", 0))
    assert [Training().dtype(device) for device in devices] == [torch.float32, torch.bfloat16]
    assert {Training(precision="float32").dtype(device) for device in devices} == {torch.float32}
    assert {Training(precision="bfloat16").dtype(device) for device in devices} == {torch.bfloat16}


# What a step sees


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbered(Dataset):
    """Images that are all zero, labelled by their number in the split; remembers how they were asked for."""

    asked: list[tuple[str, int, list[int], bool, int]]

    def batches(
        self, split: Any, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for step, indices in steps:
            self.asked.append((split, step, indices.tolist(), augment, seed))
            yield torch.zeros(len(indices), 3, 8, 8), indices

    def pixels(self, split: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8), indices


def numbered(train: int, search: int) -> Numbered:
    rows = {"train": torch.arange(train), "search": torch.arange(search), "test": torch.arange(7)}
    return Numbered(
        name="numbered",
        classes=10,
        image_size=8,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        fingerprint="",
        device=CPU,
        rows=rows,  # type: ignore[arg-type]
        asked=[],
    )


class Noting(Task):
    """Two groups of one number each; notes what it is called with."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(())) for _ in range(2))
        adam = torch.optim.Adam([self.second], lr=0.25)
        self._groups = (
            Group(
                name="first",
                split="train",
                parameters=[self.first],
                optimizer=training.sgd(nn.ParameterList([self.first])),
                learning_rate_at=training.learning_rate_at,
            ),
            Group(name="second", split="search", parameters=[self.second], optimizer=adam),
        )
        self.calls: list[tuple[str, int, int]] = []
        self.rates: list[float] = []
        self.epochs: list[tuple[int, int]] = []
        self.autocast = False

    @property
    def groups(self) -> Sequence[Group]:
        return self._groups

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epochs.append((epoch, epochs))

    def metrics(self) -> dict[str, float]:
        return {"noted": float(len(self.calls))}

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        own, other = (self.first, self.second) if group == "first" else (self.second, self.first)
        assert own.requires_grad
        assert not other.requires_grad
        assert other.grad is None
        self.calls.append((group, step, len(labels)))
        (group_of,) = [g for g in self.groups if g.name == group]
        self.rates.append(group_of.optimizer.param_groups[0]["lr"])
        self.autocast = torch.is_autocast_enabled("cpu")
        return own.square()


def test_an_epoch_is_every_image_once_and_a_drawn_batch_for_each() -> None:
    data = numbered(train=70, search=50)
    training = Training(epochs=2, warmup_epochs=1, batch_size=20)
    task = Noting(training)
    train(task, data, training)
    sizes = [20, 20, 20, 10] * 2
    assert task.calls == [(name, s, size) for s, size in enumerate(sizes) for name in ("first", "second")]
    asked = {split: [indices for s, _, indices, _, _ in data.asked if s == split] for split in ("train", "search")}
    epochs = [list(chain(*batches)) for batches in (asked["train"][:4], asked["train"][4:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(70))
    assert epochs[0] != epochs[1] != list(range(70))
    assert [len(indices) for indices in asked["search"]] == sizes
    assert all(0 <= index < 50 for indices in asked["search"] for index in indices)
    assert len(set(chain(*asked["search"]))) > 40
    assert len({tuple(sorted(indices)) for indices in asked["search"]}) == 8
    assert [step for split, step, *_ in data.asked if split == "train"] == list(range(8))
    assert all(augment for *_, augment, _ in data.asked)


def test_other_seeds_have_another_order_of_images() -> None:
    orders = []
    for seed in (0, 0, 1):
        data = numbered(train=40, search=40)
        train(Noting(THREE), data, Training(epochs=1, warmup_epochs=0, batch_size=20), seed=seed)
        orders.append(data.asked)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0][2] != orders[2][0][2]
    assert orders[0][1][2] != orders[2][1][2]


def test_a_last_batch_of_one_image_is_left_out() -> None:
    training = Training(epochs=2, warmup_epochs=0, batch_size=20)
    task = Noting(training)
    train(task, numbered(train=41, search=50), training)
    assert [size for name, _, size in task.calls if name == "first"] == [20] * 4
    # The step numbers leave room for the batch, as they do for other numbers of workers.
    assert [step for name, step, _ in task.calls if name == "first"] == [0, 1, 3, 4]


def test_each_step_has_its_learning_rate_and_each_epoch_its_announcement() -> None:
    training = Training(epochs=3, warmup_epochs=1, batch_size=20)
    task = Noting(training)
    reported = train(task, numbered(train=40, search=40), training)
    expected = [training.learning_rate_at(epoch, part) for epoch in range(3) for part in (0.0, 0.5)]
    assert task.rates[::2] == pytest.approx(expected)
    assert set(task.rates[1::2]) == {0.25}
    assert task.epochs == [(0, 3), (1, 3), (2, 3)]
    assert [(m["epoch"], m["epochs"], m["noted"]) for m in reported] == [(1, 3, 4), (2, 3, 8), (3, 3, 12)]
    assert all(m["seconds"] >= 0 for m in reported)
    assert reported[0]["loss"] == 1.0 > reported[1]["loss"]  # the warm-up's first step moves nothing


@pytest.mark.parametrize(("precision", "cast"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_losses_are_computed_in_the_precision_asked_for(precision: Any, cast: bool) -> None:
    training = Training(epochs=1, warmup_epochs=0, batch_size=20, precision=precision)
    task = Noting(training)
    train(task, numbered(train=20, search=20), training)
    assert task.autocast == cast


# What is computed


def test_a_network_learns(digits: Dataset) -> None:
    space = tiny()
    network = space.build(space.dense)
    training = Training(epochs=4, warmup_epochs=1, batch_size=64)
    before = accuracy(network, digits, "test", Workers())
    reported = train(Classification(network, training, "training"), digits, training)
    assert before < 0.25
    assert accuracy(network, digits, "test", Workers()) > 0.8
    assert reported[-1]["loss"] < 0.7 < reported[0]["loss"]


def test_the_classification_loss_smooths_labels() -> None:
    network = nn.Flatten()
    task = Classification(nn.Sequential(network, nn.Linear(12, 3)), Training(label_smoothing=0.1), "train")
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    logits = task.network(images)
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert task("weights", images, labels, 0).item() == pytest.approx(expected.item(), rel=1e-5)


class Knows(nn.Module):
    """Answers with the label it was told, wrongly for every tenth image."""

    def __init__(self, dataset: Dataset, split: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        order = torch.arange(dataset.size(split))
        (batch,) = dataset.batches(split, [(0, order)], augment=False, seed=0)
        self.answers = {image.numpy().tobytes(): int(label) for image, label in zip(*batch, strict=True)}
        self.wrong = {image.numpy().tobytes() for image in batch[0][::10]}

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        keys = [image.numpy().tobytes() for image in images]
        answers = torch.tensor([(self.answers[key] + (key in self.wrong)) % 10 for key in keys])
        return self.scale * F.one_hot(answers, 10)


@pytest.mark.parametrize("split", ["test", "training"])
def test_accuracy_is_the_share_of_images_without_augmentation(digits: Dataset, split: Any) -> None:
    size = digits.size(split)
    expected = (size - len(range(0, size, 10))) / size
    assert accuracy(Knows(digits, split), digits, split, Workers()) == pytest.approx(expected, abs=1e-9)


def test_networks_are_laid_out_channels_last() -> None:
    network = placed(nn.Conv2d(3, 4, 3), CPU)
    assert next(network.parameters()).is_contiguous(memory_format=torch.channels_last)


# Resumed as uninterrupted


def classification() -> Task:
    space = tiny()
    return Classification(space.build(space.smallest, seed=1), THREE, "training")


def distillation() -> Task:
    space = tiny()
    teacher = space.build(space.dense, seed=2)
    return DistilledTask(space.build(space.smallest, seed=1), teacher, Distillation(), THREE, "training")


def search() -> Task:
    space = tiny(published=True)
    method = Tas(search=THREE, learning_rate=0.02)
    return method.task(space, space.budget(0.5), seed=5)


def generation() -> Task:
    method = MetaPruning(supernet=replace(THREE, nesterov=False), hidden=8, hidden_alone=8)
    return method.task(tiny(), seed=5)


TASKS = [classification, distillation, search, generation]


@pytest.mark.parametrize("make", TASKS)
def test_a_training_resumed_after_any_epoch_ends_bit_for_bit_as_without_a_break(
    make: Callable[[], Task], digits: Dataset, tmp_path: Path
) -> None:
    whole = make()

    def keep(epoch: int, metrics: dict[str, float], state: Callable[[], dict[str, Any]]) -> None:
        write_state(state(), tmp_path / f"{epoch}.pt")

    placed(whole, CPU)
    reported = train(whole, digits, THREE, seed=3, at_end=keep)
    for epoch in (1, 2, 3):
        resumed = make()
        placed(resumed, CPU)
        rest = train(resumed, digits, THREE, seed=3, state=read_state(tmp_path / f"{epoch}.pt"))
        assert [without_time(m) for m in rest] == [without_time(m) for m in reported[epoch:]]
        assert_equal(resumed.state_dict(), whole.state_dict())
        for ours, theirs in zip(resumed.groups, whole.groups, strict=True):
            assert_equal(ours.optimizer.state_dict(), theirs.optimizer.state_dict())


def without_time(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def assert_equal(first: Any, second: Any, where: str = "state") -> None:
    """Nested states are the same, every bit of them."""
    assert type(first) is type(second), where
    if isinstance(first, Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        for number, (one, two) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, two, f"{where}.{number}")
    else:
        assert first == second, where


def test_a_state_of_another_training_is_refused(digits: Dataset) -> None:
    states: list[dict[str, Any]] = []
    once = Training(epochs=1, warmup_epochs=0, batch_size=600)
    train(classification(), digits, once, at_end=lambda epoch, metrics, state: states.append(state()))
    wider = Classification(tiny().build(tiny().dense), once, "training")
    for task, state in ((wider, states[0]), (search(), states[0]), (classification(), {"epochs_done": 1})):
        with pytest.raises(ValueError, match=r"(?s)the checkpoint is of another training .* move it aside"):
            train(task, digits, once, state=state)


# Refusals


@pytest.mark.parametrize("rate", [1e30, math.inf])
def test_a_diverging_training_stops_and_says_what_to_do(rate: float, digits: Dataset) -> None:
    training = Training(epochs=3, warmup_epochs=0, batch_size=100, learning_rate=rate)
    task = Classification(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), training, "train")
    with pytest.raises(
        ValueError, match=r"the loss of epoch 1 is (nan|inf): the training diverged; lower the learning"
    ):
        train(task, digits, training)


@pytest.mark.parametrize(("batch", "images", "most"), [(6, 100, 6), (100, 7, 7)])
def test_too_few_images_for_the_workers_are_refused(batch: int, images: int, most: int) -> None:
    training = Training(epochs=1, warmup_epochs=0, batch_size=batch)
    with pytest.raises(
        ValueError, match=f"4 workers need at least 8 images a step, but a batch of train has {most}: use fewer"
    ):
        train(Noting(training), numbered(images, images), training, workers=Workers(world=4))


# Several workers


class TwoLosses(Task):
    """A small network without BatchNorm, and the weights that mix its two heads: as bilevel as TAS."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(54, 10) for _ in range(2))
        self.mixture = nn.Parameter(torch.zeros(2))
        self.double()
        adam = torch.optim.Adam([self.mixture], lr=0.01)
        weights = nn.ModuleList([self.body, self.heads])
        self._groups = (
            weights_of(weights, training, "train"),
            Group(name="architecture", split="search", parameters=[self.mixture], optimizer=adam),
        )

    @property
    def groups(self) -> Sequence[Group]:
        return self._groups

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        features = self.body(images.double())
        mixed = sum(w * head(features) for w, head in zip(self.mixture.softmax(0), self.heads, strict=True))
        return F.cross_entropy(mixed, labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unaugmented(Dataset):
    """A dataset as it is: augmentation differs with the worker."""

    whole: Dataset

    def batches(
        self, split: Any, steps: Iterable[tuple[int, Tensor]], *, augment: bool, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self.whole.batches(split, steps, augment=False, seed=seed)

    def pixels(self, split: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.pixels(split, indices)


def unaugmented() -> Unaugmented:
    whole = load(DataConfig(), CPU)
    shared = {
        name: getattr(whole, name)
        for name in ("name", "classes", "image_size", "mean", "std", "fingerprint", "device", "rows")
    }
    return Unaugmented(whole=whole, **shared)


UNEVEN = Training(epochs=2, warmup_epochs=1, batch_size=99, learning_rate=0.05)


def train_both(workers: Workers) -> dict[str, Any]:
    """Trains without BatchNorm and searches by TAS; what came out on this worker."""
    data = unaugmented()
    task = TwoLosses(UNEVEN)
    reported = train(task, data, UNEVEN, workers=workers)
    supernet = search()
    start = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    searched = train(supernet, data, THREE, workers=workers)
    pruning_net = generation()
    generated = train(pruning_net, data, THREE, workers=workers)
    space = tiny()
    share = accuracy(space.build(space.dense, seed=4), data, "test", workers)
    return {
        "plain": task.state_dict(),
        "losses": [metrics["loss"] for metrics in reported],
        "search": supernet.state_dict(),
        "still": [name for name, p in supernet.named_parameters() if torch.equal(p, start[name])],
        "search_losses": [metrics["loss"] for metrics in searched],
        "pruning_net": pruning_net.state_dict(),
        "generated_losses": [metrics["loss"] for metrics in generated],
        "accuracy": share,
    }


def train_as_rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(train_both(Workers(rank=rank, world=world)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers had in the end."""
    folder = tmp_path_factory.mktemp("workers")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=train_as_rank, args=(rank, 2, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one_worker() -> dict[str, Any]:
    return train_both(Workers())


def test_two_workers_train_as_one_does(two_workers: list[dict[str, Any]], one_worker: dict[str, Any]) -> None:
    for outcome in two_workers:
        for name, expected in one_worker["plain"].items():
            torch.testing.assert_close(outcome["plain"][name], expected, rtol=1e-9, atol=1e-11)
        assert outcome["losses"] == pytest.approx(one_worker["losses"], rel=1e-5)
        assert outcome["accuracy"] == pytest.approx(one_worker["accuracy"])


def test_workers_that_search_together_hold_the_same_supernet(
    two_workers: list[dict[str, Any]], one_worker: dict[str, Any]
) -> None:
    first, second = (outcome["search"] for outcome in two_workers)
    assert_equal(first, second)
    assert two_workers[0]["still"] == two_workers[1]["still"]
    assert not {"width_logits", "depth_logits"} & set(two_workers[0]["still"])
    # BatchNorm sees half the images on each of two workers: close to one worker's search, not equal.
    assert two_workers[0]["search_losses"] == pytest.approx(one_worker["search_losses"], rel=0.2)
    assert two_workers[0]["search_losses"] != one_worker["search_losses"]


def test_workers_that_exchange_corners_hold_the_same_pruning_net(
    two_workers: list[dict[str, Any]], one_worker: dict[str, Any]
) -> None:
    first, second = (outcome["pruning_net"] for outcome in two_workers)
    assert_equal(first, second)
    assert two_workers[0]["generated_losses"] == pytest.approx(one_worker["generated_losses"], rel=0.2)
    assert two_workers[0]["generated_losses"] != one_worker["generated_losses"]
