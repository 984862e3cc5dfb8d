import pytest
import torch

from tas_ray.distill import Distillation, DistilledTask
from tas_ray.train import Training

STUDENT = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, -1.0]])
LABELS = torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("alpha", "temperature", "expected"),
    [(0.0, 4.0, 1.0744586), (0.9, 4.0, 1.8814951), (0.5, 4.0, 1.5228122), (0.9, 1.0, 1.3051730)],
)
def test_the_loss_has_the_golden_values(alpha, temperature, expected):
    loss = Distillation(alpha=alpha, temperature=temperature).loss(STUDENT, TEACHER, LABELS)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_label_smoothing_is_spread_over_all_classes():
    loss = Distillation(alpha=0.0).loss(STUDENT, TEACHER, LABELS, label_smoothing=0.1)
    assert loss.item() == pytest.approx(1.1244586, abs=1e-6)


def test_a_student_that_equals_its_teacher_has_nothing_left_to_learn_from_it():
    student = TEACHER.clone().requires_grad_()
    loss = Distillation(alpha=1.0).loss(student, TEACHER, LABELS)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-6)


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"alpha": 1.1}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=r"alpha is a weight|temperature has to be positive"):
        Distillation(**bad)


class Pixels(torch.nn.Module):
    """Classifies images by one linear layer; drops half of it while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.linear(images.flatten(1)))


def test_the_task_is_the_loss_against_a_teacher_in_evaluation_mode():
    torch.manual_seed(0)
    student, teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), Pixels()
    task = DistilledTask(student, teacher, Distillation(), Training(label_smoothing=0.1), "training").train()
    images, labels = torch.randn(8, 3, 2, 2), torch.randint(3, (8,))
    target = teacher.linear(images.flatten(1))
    expected = Distillation().loss(student(images), target, labels, label_smoothing=0.1)
    assert task("weights", images, labels, 0).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_teacher_is_neither_trained_nor_saved():
    student, teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), Pixels()
    task = DistilledTask(student, teacher, Distillation(), Training(), "training")
    assert set(task.state_dict()) == {"network.1.weight", "network.1.bias"}
    assert {id(p) for p in task.groups[0].parameters} == {id(p) for p in student.parameters()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
