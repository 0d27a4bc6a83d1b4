"""Carry the BatchNorm statistics of a float network over to its quantized widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitswitch.layers.norm import PerWidthNorm, norm_key

Moments = tuple[Tensor, Tensor]


def _moments(x: Tensor) -> Moments | None:
    """Return mean and variance of every channel, float32, or None of nothing."""
    if x.numel() == 0:
        return None
    channels_last = x.float().movedim(1, -1).reshape(-1, x.shape[1])
    return channels_last.mean(0), channels_last.var(0, unbiased=False)


def active_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorms of the active widths that keep statistics, in the order of the network."""
    norms = [m.norms[m.key] for m in network.modules() if isinstance(m, PerWidthNorm)]
    return [norm for norm in norms if isinstance(norm, _BatchNorm) and norm.running_mean is not None]


@contextmanager
def _before_each(norms: list[_BatchNorm], action: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call action(index of the norm, its input) before each of their forward passes."""
    handles = []
    for index, norm in enumerate(norms):

        def hook(_norm: nn.Module, args: tuple[Any, ...], index: int = index) -> None:
            action(index, args[0])

        handles.append(norm.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_moments(network: nn.Module, run: Callable[[], None]) -> list[list[Moments | None]]:
    """Return mean and variance of what each active BatchNorm is given, call by call, while `run` runs the network.

    A call without a single value has None.
    """
    norms = active_norms(network)
    seen: list[list[Moments | None]] = [[] for _ in norms]
    with _before_each(norms, lambda index, x: seen[index].append(_moments(x))):
        run()
    return seen


def shift_statistics(network: nn.Module, float_moments: list[list[Moments | None]], run: Callable[[], None]) -> None:
    """Move the running statistics of the active width by what quantization changes.

    With μ, σ² the moments that a BatchNorm sees at this width and μ_f, σ_f² those that it saw in the float network on
    the same data, the running mean moves by μ − μ_f and the running variance by the factor σ² / σ_f². So a width that
    computes what the float network does keeps its statistics, whatever data is used; estimating them anew would import
    the difference between these data and those of training. Each BatchNorm uses its own new statistics at once, so that
    those after it see what they will see later.

    Args:
        network: a prepared model in evaluation mode, at the width in question; its statistics are those of the float
            network.
        float_moments: from `record_moments` on the float network, with the same `run`.
        run: runs the network on the data.
    """
    norms = active_norms(network)
    original = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # pyright: ignore[reportOptionalMemberAccess]
    totals = [(torch.zeros_like(mean), torch.zeros_like(var)) for mean, var in original]
    calls, moves = [0] * len(norms), [0] * len(norms)

    def move(index: int, x: Tensor) -> None:
        norm, (mean, var) = norms[index], original[index]
        of_float, new = float_moments[index][calls[index]], _moments(x)
        calls[index] += 1
        if of_float is None or new is None:
            return
        (float_mean, float_var), (new_mean, new_var) = of_float, new
        moved = mean + (new_mean - float_mean), var * ((new_var + norm.eps) / (float_var + norm.eps))
        moves[index] += 1
        for total, running, value in zip(totals[index], (norm.running_mean, norm.running_var), moved, strict=True):
            assert running is not None
            running.copy_(value)
            total += value

    with _before_each(norms, move):
        run()
    for norm, total, count in zip(norms, totals, moves, strict=True):
        if count:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(total[0] / count)
            norm.running_var.copy_(total[1] / count)


def spread_statistics(network: nn.Module) -> None:
    """Give every pair of widths of transitional BatchNorms what the pair of equal widths has."""
    for norm in network.modules():
        if isinstance(norm, PerWidthNorm) and norm.is_transitional:
            for key, own in norm.norms.items():
                bits = int(key.split("-")[0])
                own.load_state_dict(norm.norms[norm_key(bits, bits)].state_dict())
