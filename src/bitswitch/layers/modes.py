"""Training and evaluation modes that come back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bitswitch.layers.table import unwrap


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Run a model in training or evaluation mode and give every module back the mode that it had, whatever happens.

    A network that is in training mode already keeps the modules that were set to evaluation inside it, such as
    BatchNorm that is meant to stay as it is. The mode of a wrapper around it says nothing: DistributedDataParallel is
    in training mode when it is made.
    """
    before = [] if training and unwrap(model).training else [(module, module.training) for module in model.modules()]
    if before:
        model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
