"""Knowledge distillation for joint training: from a float teacher, or from the highest width to the others.

The paper reports results with distillation without saying which (arXiv:2502.01199, Table 1); both forms are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.layers.modes import in_mode
from bitswitch.training.losses import LossFn, evaluate_loss

# exp of what is below is 0 in float32.
_LOG_ZERO = -104.0


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """Return T² · mean KL(softmax(teacher/T) ‖ softmax(student/T)), in float32.

    The factor T² keeps the size of the gradient independent of the temperature (Hinton et al., arXiv:1503.02531).

    Args:
        student: logits of the student.
        teacher: logits of the teacher, of the same shape; no gradient flows into them. Where they give a class no
            chance at all, as −∞ does for masked classes, nothing is added.
        temperature: T > 0.
        dim: the dimension of the classes; the mean is over all others.

    Raises:
        ArgumentError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ArgumentError(
            f"teacher and student logits must have one shape; got {tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        log_student = F.log_softmax(student.float() / temperature, dim)
        log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim)
        pointwise = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        # 0 · log 0 = 0, also where the student's is −∞: masked classes have logits of −∞, or very low ones.
        pointwise = pointwise.masked_fill(log_teacher < _LOG_ZERO, 0.0)
        return pointwise.sum(dim).mean() * temperature**2


@dataclass(frozen=True)
class Distillation:
    """What teaches the widths, and how strongly: loss = task_weight · task + weight · T² · KL(teacher ‖ student).

    Attributes:
        teacher: a float network that takes the same batches, or "self": the detached output of the highest width on
            each batch teaches the other widths, which needs no second network; the highest width then learns from the
            task alone.
        weight: weight of the divergence.
        temperature: T by which both logits are divided.
        task_weight: weight of the task's own loss for the widths that have a teacher.
        dim: the dimension of the classes in the logits; 1 for images of logits.
    """

    teacher: nn.Module | Literal["self"]
    weight: float = 1.0
    temperature: float = 1.0
    task_weight: float = 1.0
    dim: int = -1

    def __post_init__(self) -> None:
        if self.teacher != "self" and not isinstance(self.teacher, nn.Module):
            raise ArgumentError(f"teacher must be 'self' or an nn.Module; got {self.teacher!r}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive; got {self.temperature}")
        if self.weight < 0 or self.task_weight < 0:
            raise ConfigError(f"weights must not be negative; got {self.weight} and task_weight={self.task_weight}")

    def teacher_logits(self, loss_fn: LossFn, batch: Any) -> Tensor | None:
        """Return the float teacher's logits for a batch, or None if the network teaches itself.

        The teacher runs in evaluation mode without gradients; afterwards its modules are in the modes that they had.

        Raises:
            ArgumentError: `loss_fn` does not return logits.
        """
        if not isinstance(self.teacher, nn.Module):
            return None
        teacher = self.teacher
        with in_mode(teacher, training=False), torch.no_grad():
            return require_logits(evaluate_loss(loss_fn, teacher, batch)[1])

    def combine(self, task: Tensor, logits: Tensor | None, teacher: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (total loss, divergence); the divergence is None for a width that has no teacher.

        Args:
            task: scalar loss of the task.
            logits: logits of the width that trains.
            teacher: logits that teach it, or None.

        Raises:
            ArgumentError: there are no logits, or their shape is not that of the teacher's.
        """
        student = require_logits(logits)
        if teacher is None:
            return task, None
        distance = divergence(student, teacher, self.temperature, self.dim)
        return self.task_weight * task + self.weight * distance, distance


def require_logits(logits: Tensor | None) -> Tensor:
    """Return `logits`.

    Raises:
        ArgumentError: they are None.
    """
    if logits is None:
        raise ArgumentError(
            "distillation needs logits: let loss_fn(model, batch) return (loss, logits), not the loss alone"
        )
    return logits
