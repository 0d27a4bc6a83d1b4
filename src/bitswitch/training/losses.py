"""Loss functions loss_fn(model, batch) → loss or (loss, logits), the same one for training, teachers and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.errors import ArgumentError, ConfigError

LossFn = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter, or of the first buffer, or the CPU."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def split_batch(batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) on `device`.

    Raises:
        ArgumentError: the batch is not a pair of tensors.
    """
    pair = tuple(batch) if isinstance(batch, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(item, Tensor) for item in pair):
        kinds = ", ".join(type(item).__name__ for item in pair) or type(batch).__name__
        raise ArgumentError(f"a batch must be a pair of tensors (inputs, targets) here; got {kinds}. Pass a function")
    inputs, targets = pair
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def logits_of(model: nn.Module, inputs: Tensor, what: str) -> Tensor:
    """Return what the model computes.

    Args:
        model: the network.
        inputs: of one batch.
        what: the loss or metric that takes the result, for people.

    Raises:
        ArgumentError: the result is no tensor.
    """
    output = model(inputs)
    if not isinstance(output, Tensor):
        raise ArgumentError(
            f"{what} needs a model that returns a tensor of logits; this one returned {_describe(output)}. Pass a "
            "function of your own that takes the logits out of it"
        )
    return output


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of classes on batches (inputs, targets); computed in float32, also under autocast.

    Targets are class indices of shape (N, …) or class probabilities of the shape of the logits (N, C, …).

    Attributes:
        label_smoothing: share of the target probability that is spread evenly over all classes, 0 … 1.
        ignore_index: class index that does not count.
    """

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ConfigError(f"label_smoothing must lie between 0 and 1; got {self.label_smoothing}")

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return (loss, logits).

        Raises:
            ArgumentError: the batch is not a pair of tensors, or the model returns no tensor.
        """
        inputs, targets = split_batch(batch, device_of(model))
        logits = logits_of(model, inputs, "cross_entropy")
        with torch.autocast(inputs.device.type, enabled=False):
            loss = F.cross_entropy(
                logits.float(), targets, label_smoothing=self.label_smoothing, ignore_index=self.ignore_index
            )
        return loss, logits


def resolve(loss_fn: LossFn | Literal["cross_entropy"]) -> LossFn:
    """Return the loss function that a name stands for, or the function itself.

    Raises:
        ConfigError: an unknown name.
        ArgumentError: neither a name nor callable.
    """
    if loss_fn == "cross_entropy":
        return CrossEntropy()
    if isinstance(loss_fn, str):
        raise ConfigError(f"the only loss with a name is 'cross_entropy'; got {loss_fn!r}")
    if isinstance(loss_fn, nn.Module) or getattr(loss_fn, "__module__", None) == "torch.nn.functional":
        raise ArgumentError(
            "loss_fn is called as loss_fn(model, batch), not with logits and targets; wrap the criterion: "
            "lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    if not callable(loss_fn):
        raise ArgumentError(f"loss_fn must be 'cross_entropy' or a function (model, batch) → loss; got {loss_fn!r}")
    return loss_fn


def evaluate_loss(loss_fn: LossFn, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Call `loss_fn` and return (float32 scalar loss, logits or None).

    Raises:
        ArgumentError: it returned something other than a scalar tensor, or a pair of a scalar tensor and a tensor.
    """
    output: Any = loss_fn(model, batch)
    loss, logits = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not (logits is None or isinstance(logits, Tensor)):
        found = _describe(output)
        raise ArgumentError(
            f"loss_fn must return a scalar tensor, or (scalar tensor, logits tensor); it returned {found}"
        )
    return loss.float().reshape(()), logits


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(_describe(item) for item in value)})"
    return type(value).__name__
