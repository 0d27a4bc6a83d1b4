"""Means and standard errors of estimates that every batch has its own probes for, over one process or many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class Moments:
    """Running mean and sum of squared deviations (Welford) of the probes of one batch.

    Args:
        num_examples: of the batch: its weight.
        size: number of estimates in a probe.
    """

    def __init__(self, num_examples: int, size: int) -> None:
        self.num_examples = num_examples
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.squares = torch.zeros(size, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in one probe."""
        self.count += 1
        difference = values.double() - self.mean
        self.mean += difference / self.count
        self.squares += difference * (values.double() - self.mean)


@dataclass(frozen=True)
class Estimate:
    """Estimates over all batches.

    Attributes:
        values: weighted means over the batches.
        errors: their standard errors.
        num_examples: over all batches.
    """

    values: list[float]
    errors: list[float]
    num_examples: int

    def largest_relative_error(self) -> float:
        """Return the largest standard error relative to its estimate; infinite while there is none."""
        ratios = [
            math.inf if not math.isfinite(e) else (e / abs(v) if v else 0.0 if e == 0 else math.inf)
            for v, e in zip(self.values, self.errors, strict=True)
        ]
        return max(ratios, default=0.0)


def merged(moments: list[Moments]) -> Estimate:
    """Return the estimate over all batches of all processes.

    With batches b of weight w_b = N_b / N, P probes each and sample variances s_b² over these, the estimate is
    Σ w_b·mean_b and the square of its standard error Σ w_b²·s_b² / P.
    """
    sums = summed(torch.stack([_sums(moment) for moment in moments]).sum(0))
    total = sums[2, 0]
    return Estimate((sums[0] / total).tolist(), (sums[1].sqrt() / total).tolist(), int(total))


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor on the CPU over all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return torch.stack(parts).sum(0)


def _sums(moment: Moments) -> Tensor:
    weight = moment.num_examples
    if moment.count > 1:
        variance = moment.squares / (moment.count - 1) / moment.count
    else:
        variance = torch.full_like(moment.mean, math.inf)
    return torch.stack([weight * moment.mean, weight**2 * variance, torch.full_like(moment.mean, weight)])
