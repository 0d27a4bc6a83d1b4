"""BatchNorm statistics of one precision, estimated anew on a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitswitch._batch_norm import active_norms
from bitswitch._calibrate import check_batches, default_forward
from bitswitch.errors import CalibrationError
from bitswitch.layers.modes import in_mode
from bitswitch.layers.table import state_of, unwrap
from bitswitch.precision import Precision
from bitswitch.switching import at

Forward = Callable[[nn.Module, Any], Any]


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    precision: int | Mapping[str, int] | Precision | None = None,
    *,
    forward: Forward | None = None,
) -> None:
    """Replace the BatchNorm statistics that a precision uses by those of some batches.

    A SuperNet's BatchNorms saw every layer at many combinations of widths; a few hundred training images give the
    statistics of one. The BatchNorms run in training mode, all else in evaluation mode; each running mean and variance
    becomes the plain mean over the batches. They are those of the widths (or pairs of widths) of this precision, and
    other precisions that use the same ones see the change: keep it for one SubNet, or use `reestimated`.

    Args:
        model: a prepared model, trainable or loaded; its mode and precision are restored.
        batches: what `forward` takes: training examples, augmented as in training; the same ones in every process.
        precision: of which the statistics are; the active one by default.
        forward: calls the model on one batch. By default a tensor or the first item of a tuple is passed as it is, and
            a mapping as keyword arguments.

    Raises:
        CalibrationError: there are no batches, or a BatchNorm is given NaN or infinite values; the statistics are
            then those of before, as after any other exception.
        PrepareError: the model is not prepared, or is an engine.
        PrecisionError, UnknownLayerError: the model cannot run at the precision.
        ArgumentError: `batches` is a tensor or a mapping.
    """
    check_batches(batches)
    forward = forward or default_forward
    network = unwrap(model)
    wanted = state_of(network).precision if precision is None else Precision.of(precision)
    with at(network, wanted), in_mode(network, training=False):
        norms = active_norms(network)
        before = [_statistics(norm) for norm in norms]
        empty = True
        try:
            with _averaging(norms):
                for batch in batches:
                    forward(network, batch)
                    empty = False
            if empty:
                raise CalibrationError("BatchNorm statistics need at least one batch")
            _settle(network, norms, before)
        except BaseException:
            _restore(norms, before)
            raise


@contextmanager
def reestimated(
    model: nn.Module,
    precision: int | Mapping[str, int] | Precision,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
) -> Iterator[nn.Module]:
    """Run a model at a precision with statistics of its own inside the context; afterwards all is as it was.

    Args:
        model: as for `reestimate_batch_norm`.
        precision: as for `bitswitch.switch`.
        batches: as for `reestimate_batch_norm`.
        forward: as for `reestimate_batch_norm`.

    Yields:
        The model, at the precision.

    Raises:
        As `reestimate_batch_norm`, before the context is entered.
    """
    network = unwrap(model)
    state_of(network)
    with at(network, precision):
        norms = active_norms(network)
        before = [_statistics(norm) for norm in norms]
        reestimate_batch_norm(network, batches, forward=forward)
        try:
            yield model
        finally:
            _restore(norms, before)


def _statistics(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in norm._buffers.items() if tensor is not None}


@torch.no_grad()
def _restore(norms: list[_BatchNorm], statistics: list[dict[str, Tensor]]) -> None:
    for norm, tensors in zip(norms, statistics, strict=True):
        for name, tensor in tensors.items():
            norm.get_buffer(name).copy_(tensor)


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let norms forget their statistics and take the plain mean of what they see inside the context."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


def _settle(network: nn.Module, norms: list[_BatchNorm], before: list[dict[str, Tensor]]) -> None:
    """Give norms that did not run their statistics back, and refuse what is not finite."""
    names = {module: name for name, module in network.named_modules()}
    for norm, statistics in zip(norms, before, strict=True):
        if not int(norm.get_buffer("num_batches_tracked")):
            _restore([norm], [statistics])
        if not all(bool(norm.get_buffer(name).isfinite().all()) for name in ("running_mean", "running_var")):
            raise CalibrationError(f"the BatchNorm {names[norm]!r} was given values that are NaN or infinite")
