from __future__ import annotations

import pytest
import torch
from torch import nn

from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.training.distill import Distillation, divergence
from bitswitch.training.losses import CrossEntropy


def brute_force(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    q, p = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_and_its_gradient(temperature: float) -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    value = divergence(student, teacher, temperature)
    torch.testing.assert_close(value.double(), brute_force(student, teacher, temperature), rtol=1e-5, atol=1e-6)
    value.backward()
    # ∂/∂student of T²·KL is T·(softmax(s/T) − softmax(t/T)) / N.
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)) / 6
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-5, atol=1e-6)
    assert teacher.grad is None


def test_gradient_against_finite_differences() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    divergence(student, teacher, 2.0).backward()
    assert student.grad is not None
    for i in range(3):
        for j in range(4):
            nudge = torch.zeros(3, 4, dtype=torch.float64)
            nudge[i, j] = 1e-5
            up, down = (brute_force(student.detach().double() + s * nudge, teacher.double(), 2.0) for s in (1, -1))
            assert student.grad[i, j].item() == pytest.approx(float(up - down) / 2e-5, abs=1e-6)


def test_classes_in_another_dimension() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    moved = divergence(student.movedim(1, -1), teacher.movedim(1, -1))
    torch.testing.assert_close(divergence(student, teacher, dim=1), moved)


def test_an_equal_teacher_teaches_nothing() -> None:
    logits = torch.randn(4, 3)
    assert divergence(logits, logits).item() == 0.0


def test_masked_classes_add_nothing() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    mask = torch.tensor([False, True, False, False, True])
    masked = divergence(student.masked_fill(mask, -torch.inf), teacher.masked_fill(mask, -torch.inf))
    assert torch.equal(masked, divergence(student[:, ~mask], teacher[:, ~mask]))
    masked.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[:, mask] == 0).all()
    lowest = torch.finfo(torch.float32).min
    assert torch.equal(divergence(student.masked_fill(mask, -torch.inf), teacher.masked_fill(mask, lowest)), masked)
    # A class that the teacher alone has masked out does the student no harm.
    assert divergence(student, teacher.masked_fill(mask, -torch.inf)).isfinite()


def test_combine() -> None:
    task, student, teacher = torch.tensor(2.0), torch.randn(4, 3), torch.randn(4, 3)
    distillation = Distillation("self", weight=0.5, temperature=3.0, task_weight=0.25)
    total, distance = distillation.combine(task, student, teacher)
    assert distance is not None
    torch.testing.assert_close(total, 0.25 * task + 0.5 * brute_force(student, teacher, 3.0))
    total, distance = distillation.combine(task, student, None)
    assert (total is task, distance) == (True, None)


def test_teacher_runs_in_evaluation_mode_and_keeps_its_modes() -> None:
    seen: list[bool] = []

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.norm = nn.BatchNorm1d(2).eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.training or self.norm.training or torch.is_grad_enabled())
            return self.norm(self.linear(x))

    teacher = Teacher()
    logits = Distillation(teacher).teacher_logits(CrossEntropy(), (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)))
    assert logits is not None
    assert not logits.requires_grad
    assert seen == [False]
    assert (teacher.training, teacher.linear.training, teacher.norm.training) == (True, True, False)


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="return \\(loss, logits\\)"):
        Distillation(nn.Linear(3, 2)).teacher_logits(lambda m, b: m(b).sum(), torch.randn(2, 3))
    with pytest.raises(ArgumentError, match="one shape"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match=r"'self' or an nn\.Module"):
        Distillation("other")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="temperature"):
        Distillation("self", temperature=0.0)
    with pytest.raises(ConfigError, match="negative"):
        Distillation("self", weight=-1.0)
