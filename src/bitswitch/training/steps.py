"""What a training step reports."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch.precision import Precision


@dataclass(frozen=True)
class WidthResult:
    """One width of one training step. Under DistributedDataParallel these are means over the processes.

    Attributes:
        precision: what was trained.
        loss: the loss that was minimised.
        task: the task's own part of it.
        distillation: the divergence from the teacher (before its weight), or None without a teacher.
        scale_gradient: mean over the layers of max|∇s^i|, the gradient of the raw weight scales; 0 if no weight scale
            has one, as where the pass skips all quantized layers.
        scaled_gradient: the same after ALRS: times λ_b / λ, λ that of the scales.
        scale_lr: λ_b of Eq. (6) with the η of the width that names this result. Layers that drew another width under a
            per-layer precision have the η of their own.
        gradient_norm: total norm of the gradients of all but the scales, before clipping; None if nothing but scales is
            trained. With the algorithm "accumulate" that of all widths added up, at the last of them, and None at the
            others.
    """

    precision: Precision
    loss: float
    task: float
    distillation: float | None
    scale_gradient: float
    scaled_gradient: float
    scale_lr: float
    gradient_norm: float | None


@dataclass(frozen=True)
class StepResult:
    """One training step, at every width or at those whose turn it was.

    Attributes:
        step: number of the step, from 0.
        lr: base learning rate λ of the step, that of the weights.
        widths: the widths in the order of training, highest first.
    """

    step: int
    lr: float
    widths: dict[int, WidthResult]

    @property
    def loss(self) -> float:
        """Mean of the loss over the widths."""
        return sum(width.loss for width in self.widths.values()) / len(self.widths)

    def scalars(self) -> dict[str, float]:
        """Return all numbers by names such as "loss/4", for logs."""
        values = {"lr": self.lr, "loss": self.loss}
        for bits, width in self.widths.items():
            for name in (
                "loss",
                "task",
                "distillation",
                "scale_gradient",
                "scaled_gradient",
                "scale_lr",
                "gradient_norm",
            ):
                value = getattr(width, name)
                if value is not None:
                    values[f"{name}/{bits}"] = value
        return values
