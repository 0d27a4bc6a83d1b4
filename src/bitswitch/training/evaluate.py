"""Evaluation of one network at many precisions, in one pass over the data, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitswitch._calibrate import check_batches
from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.layers.table import EngineState, state_of, unwrap
from bitswitch.precision import Precision
from bitswitch.switching import switch
from bitswitch.training._modes import preserved
from bitswitch.training.distributed import share_buffers, sum_over_processes, world_size
from bitswitch.training.losses import device_of, logits_of, split_batch

Metric = Callable[[nn.Module, Any], tuple[Tensor | float, int]]
PrecisionLike = int | Mapping[str, int] | Precision


def accuracy(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Return (number of right answers, number of samples) on a batch (inputs, class indices)."""
    inputs, targets = split_batch(batch, device_of(model))
    logits = logits_of(model, inputs, "accuracy")
    _check_targets(logits, targets)
    return (logits.argmax(dim=1) == targets).sum(), targets.numel()


def top5(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Return (number of samples whose class is among the five largest logits, number of samples)."""
    inputs, targets = split_batch(batch, device_of(model))
    logits = logits_of(model, inputs, "top5")
    _check_targets(logits, targets)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (best == targets.unsqueeze(1)).any(dim=1).sum(), targets.numel()


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    # Shapes such as (N, 1) would be compared with every answer.
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(targets.shape) != expected:
        raise ArgumentError(
            f"class indices for logits of shape {tuple(logits.shape)} need the shape {expected}; "
            f"got {tuple(targets.shape)}"
        )


_NAMED: dict[str, Metric] = {"accuracy": accuracy, "top5": top5}


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    precisions: PrecisionLike | Iterable[PrecisionLike] | None = None,
    metric: Literal["accuracy", "top5"] | Metric = "accuracy",
    *,
    sharded: bool | None = None,
    autocast: torch.dtype | None = None,
) -> dict[int | Precision, float]:
    """Evaluate a prepared model at several precisions.

    Each batch is read once and run at every precision. The model runs in evaluation mode without gradients; afterwards
    it has the precision and its modules have the modes that they had.

    Args:
        model: a prepared model; wrappers are taken off, so that shards may differ in length.
        batches: what `metric` takes; pairs (inputs, class indices) for the metrics with a name.
        precisions: widths, mappings or precisions; by default all widths that the model was prepared for.
        metric: "accuracy", "top5", or a function (model, batch) → (sum over the samples, number of samples).
        sharded: whether every process of the group brings its own share of the data (`distributed.shard`); sums and
            counts are then added up over the processes before they are divided, so counts give exactly the unsharded
            result, and all processes use the running statistics of process 0 from then on, which are those that
            `save` stores there. By default True if there is a group, and then every process must call this function.
        autocast: run the forward passes under torch.autocast with this type.

    Returns:
        The mean of the metric for every precision: by width where a width was asked for, else by `Precision`.

    Raises:
        PrecisionError, UnknownLayerError: a precision that the model cannot run at; nothing has run then.
        ConfigError: an unknown metric, or no samples.
        ArgumentError: `batches` is a tensor or a mapping, or a metric with a name gets no pair of tensors or no logits.
    """
    check_batches(batches)
    function = _resolve(metric)
    network = unwrap(model)
    state = state_of(network, engines=True)
    if isinstance(precisions, (int, Mapping, Precision)):
        keys = [Precision.of(precisions)]  # pyright: ignore[reportArgumentType]  (an iterable of precisions is no mapping)
    else:
        keys = [Precision.of(item) for item in (state.bits if precisions is None else precisions)]
    named = network.get_submodule("network") if isinstance(state, EngineState) else network
    for precision in keys:
        state.table.resolve(precision, named)
    together = world_size() > 1 if sharded is None else sharded
    if together:
        share_buffers(network)
    totals = _totals(network, batches, keys, function, autocast)
    if together:
        totals = sum_over_processes(totals.to(device_of(network))).cpu()
    if keys and totals[0, 1] == 0:
        raise ConfigError("there are no samples to evaluate")
    means = (totals[:, 0] / totals[:, 1]).tolist()
    return {_key(precision): mean for precision, mean in zip(keys, means, strict=True)}


def _totals(
    model: nn.Module, batches: Iterable[Any], keys: list[Precision], metric: Metric, autocast: torch.dtype | None
) -> Tensor:
    """Return (sum, count) of every precision, float64 of shape (len(keys), 2) on the CPU: exact for counts."""
    kind = device_of(model).type
    sums: list[list[Tensor]] = [[] for _ in keys]
    counts = torch.zeros(len(keys), dtype=torch.float64)
    with preserved(model, training=False), torch.no_grad():
        for batch in batches:
            for i, precision in enumerate(keys):
                switch(model, precision)
                with torch.autocast(kind, autocast, enabled=autocast is not None):
                    value, count = metric(model, batch)
                # Kept on the device until the end, so that nothing waits for it in between.
                sums[i].append(torch.as_tensor(value).detach().reshape(()))
                counts[i] += count
    added = [
        torch.stack(items).cpu().double().sum() if items else torch.zeros((), dtype=torch.float64) for items in sums
    ]
    return torch.stack([torch.stack(added), counts], dim=1) if keys else counts.reshape(0, 2)


def _key(precision: Precision) -> int | Precision:
    return precision.default if precision.is_uniform and precision.default is not None else precision


def _resolve(metric: str | Metric) -> Metric:
    if isinstance(metric, str):
        if metric not in _NAMED:
            raise ConfigError(f"metric must be one of {tuple(_NAMED)} or a function; got {metric!r}")
        return _NAMED[metric]
    if not callable(metric):
        raise ArgumentError(f"metric must be a name or a function (model, batch) → (sum, count); got {metric!r}")
    return metric
