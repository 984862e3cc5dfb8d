"""The one training loop: any task, on one process or many, the same with and without Ray.

Every random draw is derived from the seed and the step, every learning rate from the epoch, so a state is the
module's and the optimizers' tensors and an epoch number. The batch size is the global one: each worker computes its
share and gradients are weighted sums, so a change of the number of workers changes neither batch nor learning rate.

Gradients are summed here and not by `DistributedDataParallel`: a supernet's step touches a drawn part of its
parameters, the same on every worker, and only that part has to travel.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tas_ray.data import Dataset, Split
from tas_ray.randomness import generator, seed_of
from tas_ray.workers import Workers

EVALUATION_BATCH = 1000
LEAST_IMAGES = 2
"""A last batch with fewer images for a worker is left out: BatchNorm cannot normalize one."""

Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "steps", "cosine-published", "linear-published", "steps-published"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one network is trained by SGD; the defaults are TAS's for CIFAR (specification, section 7)."""

    epochs: int = 305
    """Passes over the training data, warm-up included."""

    warmup_epochs: int = 5
    """Epochs in which the learning rate rises linearly from 0."""

    batch_size: int = 256
    """Images per step, over all workers."""

    learning_rate: float = 0.1
    """The highest learning rate, reached after the warm-up."""

    schedule: Schedule = "cosine"
    """How the rate falls behind the warm-up, step by step: by a `cosine` or `linear`ly to 0, or to a tenth at each
    quarter (`steps`). The published ones are constant within an epoch and fall too early: TAS's cosine reaches
    `warmup_epochs` too far, MetaPruning's line and steps are an epoch ahead; epochs at 0 train nothing."""

    momentum: float = 0.9
    """Momentum of SGD."""

    nesterov: bool = True
    """Nesterov's momentum (TAS), or the plain one (MetaPruning)."""

    weight_decay: float = 5e-4
    """L2 penalty (TAS: 1e-4 on ImageNet; MetaPruning: 4e-5 for MobileNets, 1e-4 for ResNet-50)."""

    decayed: Literal["all", "weights"] = "all"
    """What it acts on: every parameter, BatchNorm's among them (TAS), or the weights of linear layers and of
    convolutions that are not depthwise (as MetaPruning means it; its code decides by names and forgets some)."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""

    precision: Precision = "auto"
    """`bfloat16` computes convolutions and products so (autocast); `auto` does on GPUs, not on CPUs."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"a training has at least one epoch behind its warm-up, not {self.epochs} epochs "
                f"with {self.warmup_epochs} of warm-up"
            )
        if self.batch_size < LEAST_IMAGES:
            raise ValueError(f"a batch has at least {LEAST_IMAGES} images, not {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"the learning rate has to be positive, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum lies in [0, 1), not {self.momentum}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label smoothing lies in [0, 1), not {self.label_smoothing}")

    def learning_rate_at(self, epoch: int, fraction: float) -> float:
        """The learning rate at this fraction of an epoch counted from 0."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + fraction) / self.warmup_epochs
        behind, passed = self.epochs - self.warmup_epochs, epoch - self.warmup_epochs
        return self.learning_rate * _share(self.schedule, passed, fraction, behind, epoch >= behind)

    def sgd(self, module: nn.Module) -> torch.optim.SGD:
        """The optimizer of a module's parameters."""
        parameters = list(module.parameters())
        decayed = [p for p in parameters if self.decayed == "all" or _is_dense_weight(p)]
        spared = [p for p in parameters if self.decayed == "weights" and not _is_dense_weight(p)]
        return torch.optim.SGD(
            [{"params": decayed}] + ([{"params": spared, "weight_decay": 0.0}] if spared else []),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
        )

    def dtype(self, device: torch.device) -> torch.dtype:
        """What convolutions are computed in on this device."""
        if self.precision == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def _share(schedule: Schedule, passed: int, fraction: float, epochs: int, over: bool) -> float:
    """The share of the highest rate that is left after `passed` of `epochs` and a fraction of the next one."""
    done = (passed + fraction) / epochs
    match schedule:
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "linear":
            return 1 - done
        case "steps":
            return 0.1 ** int(4 * done)
        case "cosine-published":
            return 0.0 if over else (1 + math.cos(math.pi * passed / epochs)) / 2
        case "linear-published":
            return 1 - (passed + 1) / epochs
        case "steps-published":
            return 0.1 ** int(4 * (passed + 1) / epochs)


def _is_dense_weight(parameter: nn.Parameter) -> bool:
    """Whether it is the weight of a linear layer or of a convolution that mixes channels."""
    return parameter.dim() == 2 or (parameter.dim() == 4 and parameter.shape[1] > 1)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that one optimizer updates, on batches of one split of the data."""

    name: str
    split: Split
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    learning_rate_at: Callable[[int, float], float] | None = None
    """The learning rate at an epoch and a fraction of it; None leaves the optimizer's."""


class Task(nn.Module, ABC):
    """What is trained: a module whose forward is the loss of one group of its parameters.

    `fit` runs one epoch over the split of the first group, in a new order each time; each of its batches is
    followed by a batch of every other group, drawn at random from that group's split.
    """

    @property
    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """The optimizers and what they update; the same objects at every call."""

    @abstractmethod
    def forward(
        self,
        group: str,
        images: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"],
        step: int,
    ) -> Float[Tensor, ""]:
        """The mean loss of the batch, to be differentiated by the parameters of `group`."""

    def gradients(self, group: Group) -> Sequence[Tensor]:
        """What workers sum after the backward pass, before the optimizer's step; the same shapes on every worker."""
        return [p.grad for p in group.parameters if p.grad is not None]

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, with the number of epochs in all."""

    def metrics(self) -> dict[str, float]:
        """What there is to report of the epoch just run, beside the loss."""
        return {}


EndOfEpoch = Callable[[int, dict[str, float], Callable[[], dict[str, Any]]], None]
"""Called by `fit` with the epochs done, the metrics, and a function that returns the state to go on from."""


def fit(
    task: Task,
    dataset: Dataset,
    training: Training,
    *,
    seed: int,
    workers: Workers,
    state: Mapping[str, Any] | None,
    end_of_epoch: EndOfEpoch,
) -> None:
    """Trains `task` to the end, from `state` if there is one.

    Args:
        seed: decides the order of the data and its augmentation.
        state: what an earlier call's `end_of_epoch` was given, on the same task and data.

    Raises:
        ValueError: the loss is not finite any more, or the state belongs to another task.
    """
    groups = task.groups
    start = _restore(task, state) if state else 0
    _check_batch(dataset, training, groups[0], workers)
    for epoch in range(start, training.epochs):
        began = time.monotonic()
        task.train()
        task.start_epoch(epoch, training.epochs)
        loss = _epoch(task, dataset, training, epoch, seed=seed, workers=workers)
        _average_buffers(task, workers)
        metrics = {
            "epoch": float(epoch + 1),
            "epochs": float(training.epochs),
            "seconds": time.monotonic() - began,
            "loss": loss,
            **task.metrics(),
        }
        end_of_epoch(epoch + 1, metrics, lambda done=epoch + 1: _state(task, done))  # type: ignore[misc]


def _check_batch(dataset: Dataset, training: Training, group: Group, workers: Workers) -> None:
    images = dataset.size(group.split)
    most = min(images, training.batch_size)
    if most < LEAST_IMAGES * workers.world:
        raise ValueError(
            f"{workers.world} workers need at least {LEAST_IMAGES * workers.world} images a step, but a batch of "
            f"{group.split} has {most}: use fewer workers or a larger batch"
        )


def _epoch(task: Task, dataset: Dataset, training: Training, epoch: int, *, seed: int, workers: Workers) -> float:
    groups = task.groups
    batches = _order(dataset.size(groups[0].split), training.batch_size, workers, seed, epoch)
    first_step = epoch * math.ceil(dataset.size(groups[0].split) / training.batch_size)
    streams = []
    for group in groups:
        steps: Iterable[tuple[int, Tensor]] = enumerate(batches, start=first_step)
        if group is not groups[0]:
            steps = _drawn(group, batches, first_step, dataset.size(group.split), seed)
        draws = seed_of(seed, group.name, workers.rank)
        streams.append(dataset.batches(group.split, _mine(steps, workers), augment=True, seed=draws))
    total = torch.zeros((), device=workers.device)
    dtype = training.dtype(workers.device)
    for number, batch in enumerate(batches):
        share = len(batch[workers.rank :: workers.world]) / len(batch)
        for group, stream in zip(groups, streams, strict=True):
            if group.learning_rate_at is not None:
                rate = group.learning_rate_at(epoch, number / len(batches))
                for options in group.optimizer.param_groups:
                    options["lr"] = rate
            images, labels = next(stream)
            loss = train_step(task, group, images, labels, first_step + number, share, dtype, workers)
            if group is groups[0]:
                total += loss
    workers.sum_([total])
    mean = total.item() / len(batches)
    if not math.isfinite(mean):
        raise ValueError(
            f"the loss of epoch {epoch + 1} is {mean}: the training diverged; lower the learning rate "
            f"({training.learning_rate}) or use float32"
        )
    return mean


def train_step(
    task: Task,
    group: Group,
    images: Tensor,
    labels: Tensor,
    step: int,
    share: float,
    dtype: torch.dtype,
    workers: Workers,
) -> Tensor:
    """One optimizer step; returns this worker's part of the mean loss."""
    for other in task.groups:
        for parameter in other.parameters:
            parameter.requires_grad_(other is group)
            parameter.grad = None
    with torch.autocast(workers.device.type, dtype, enabled=dtype != torch.float32):
        loss = task(group.name, images, labels, step) * share
    loss.backward()
    workers.sum_(task.gradients(group))
    group.optimizer.step()
    return loss.detach()


def _order(size: int, batch_size: int, workers: Workers, seed: int, epoch: int) -> list[Tensor]:
    """The epoch's global batches of indices, all images once; a last one too small for every worker is left out."""
    order = torch.randperm(size, generator=generator("cpu", "order", seed, epoch))
    batches = list(order.split(batch_size))
    if len(batches[-1]) < LEAST_IMAGES * workers.world:
        batches.pop()
    return batches


def _mine(steps: Iterable[tuple[int, Tensor]], workers: Workers) -> Iterator[tuple[int, Tensor]]:
    """This worker's share of every global batch."""
    return ((step, batch[workers.rank :: workers.world]) for step, batch in steps)


def _drawn(
    group: Group, batches: Sequence[Tensor], first_step: int, size: int, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """As many random batches of the same lengths, images drawn with replacement."""
    for step, batch in enumerate(batches, start=first_step):
        yield step, torch.randint(size, (len(batch),), generator=generator("cpu", group.name, seed, step))


def _average_buffers(task: Task, workers: Workers) -> None:
    """Running statistics become the mean of all workers'; constants, which no state keeps, stay as they are."""
    if workers.world == 1:
        return
    kept = task.state_dict().keys()
    buffers = [b for name, b in task.named_buffers() if name in kept and b.is_floating_point()]
    workers.sum_(buffers)
    for buffer in buffers:
        buffer.div_(workers.world)


def _state(task: Task, epochs_done: int) -> dict[str, Any]:
    return {
        "epochs_done": epochs_done,
        "module": task.state_dict(),
        "optimizers": {group.name: group.optimizer.state_dict() for group in task.groups},
    }


def _restore(task: Task, state: Mapping[str, Any]) -> int:
    """Loads `state` into the task and its optimizers and returns the number of epochs done."""
    try:
        task.load_state_dict(state["module"])
        for group in task.groups:
            group.optimizer.load_state_dict(state["optimizers"][group.name])
        return int(state["epochs_done"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint is of another training ({error}); "
            "move it aside and run the same command again to start this part anew"
        ) from error


class Classification(Task):
    """A network trained on labels alone, by cross-entropy."""

    def __init__(self, network: nn.Module, training: Training, split: Split) -> None:
        super().__init__()
        self.network = network
        self.smoothing = training.label_smoothing
        self._groups = (weights_of(network, training, split),)

    @property
    def groups(self) -> Sequence[Group]:
        """See `Task.groups`."""
        return self._groups

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """See `Task.forward`."""
        return F.cross_entropy(self.network(images), labels, label_smoothing=self.smoothing)


def weights_of(network: nn.Module, training: Training, split: Split) -> Group:
    """The group of all parameters of a network, trained by SGD on this split."""
    return Group(
        name="weights",
        split=split,
        parameters=list(network.parameters()),
        optimizer=training.sgd(network),
        learning_rate_at=training.learning_rate_at,
    )


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` on the device, its convolutions channels last: the fastest layout on GPUs, and far so on CPUs."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def accuracy(
    network: nn.Module, dataset: Dataset, split: Split, workers: Workers, precision: Precision = "auto"
) -> float:
    """The share of a split's images that `network` classifies rightly, without augmentation."""
    order = torch.arange(dataset.size(split))
    dtype = Training(precision=precision).dtype(workers.device)
    right = torch.zeros((), device=workers.device)
    steps = _mine(enumerate(order.split(EVALUATION_BATCH)), workers)
    network.eval()
    with torch.inference_mode(), torch.autocast(workers.device.type, dtype, enabled=dtype != torch.float32):
        for images, labels in dataset.batches(split, steps, augment=False, seed=0):
            if len(labels):
                right += (network(images).argmax(1) == labels).sum()
    workers.sum_([right])
    return right.item() / len(order)
