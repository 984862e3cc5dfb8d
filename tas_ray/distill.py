"""Knowledge distillation: a network learns a teacher's outputs beside the labels (TAS, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tas_ray.data import Split
from tas_ray.train import Group, Task, Training, weights_of


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a student follows its teacher; the defaults are TAS's for CIFAR (ImageNet: alpha 0.5)."""

    alpha: float = 0.9
    """Weight of the teacher's outputs; the labels have the rest."""

    temperature: float = 4.0
    """Divides both networks' logits before they are compared."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a weight in [0, 1], not {self.alpha}")
        if not self.temperature > 0:
            raise ValueError(f"the temperature has to be positive, not {self.temperature}")

    def loss(
        self,
        student: Float[Tensor, "batch classes"],
        teacher: Float[Tensor, "batch classes"],
        labels: Int[Tensor, " batch"],
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """`(1 - alpha) CE(student, labels) + alpha T^2 KL(teacher / T || student / T)`, means over the batch."""
        hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
        t = self.temperature
        soft = F.kl_div(
            F.log_softmax(student.float() / t, 1),
            F.log_softmax(teacher.float() / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.alpha) * hard + self.alpha * t**2 * soft


class DistilledTask(Task):
    """A student network trained by `Distillation` from a fixed teacher that sees the same augmented images."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        distillation: Distillation,
        training: Training,
        split: Split,
    ) -> None:
        super().__init__()
        self.network = network
        # In a tuple, so that it is no part of this module: not trained, not saved in checkpoints.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.distillation = distillation
        self.smoothing = training.label_smoothing
        self._groups = (weights_of(network, training, split),)

    @property
    def groups(self) -> Sequence[Group]:
        """See `Task.groups`."""
        return self._groups

    def forward(self, group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """See `Task.forward`."""
        with torch.no_grad():
            target = self._teacher[0](images)
        return self.distillation.loss(self.network(images), target, labels, label_smoothing=self.smoothing)
