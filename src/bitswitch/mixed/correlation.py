"""How well a proxy orders SubNets: rank correlation with what was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bitswitch.errors import ConfigError
from bitswitch.mixed.measurements import Measured

# With fewer SubNets of one average width their order says nothing.
_FEWEST_IN_GROUP = 5
_FEWEST = 4


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ between what a proxy predicts and what was measured; 1 if the order is the same.

    Attributes:
        rho: over all SubNets. The more bits, the better: any proxy that knows this much is well above zero.
        low: lower end of the 95 % interval of ρ.
        high: its upper end.
        within: mean of ρ over groups of SubNets with one average width, weighted by their sizes: what the proxy knows
            beyond the number of bits. None if no group is large enough.
        count: number of SubNets.
    """

    rho: float
    low: float
    high: float
    within: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields; what is not finite becomes None."""
        return {key: value if value is None or math.isfinite(value) else None for key, value in asdict(self).items()}


def rank_correlations(
    measured: Iterable[Measured], proxies: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> dict[str, RankCorrelation]:
    """Return how well each proxy orders SubNets, and how well the plain average width does, as "average bits".

    Take SubNets that were not chosen by a proxy or by their score, such as those of `random_subnets`.

    Args:
        measured: SubNets with their scores, the larger the better.
        proxies: {name: {layer that stores a weight: {width: value}}}, as `perturbation` and `weighted_bits` return
            them: the smaller the sum over the layers, the better.

    Raises:
        ConfigError: there are fewer than four SubNets.
    """
    rows = list(measured)
    if len(rows) < _FEWEST:
        raise ConfigError(f"a rank correlation needs at least {_FEWEST} SubNets; got {len(rows)}")
    scores = np.array([row.score for row in rows])
    predicted = {name: np.array([-_value(row, table) for row in rows]) for name, table in proxies.items()}
    predicted["average bits"] = np.array([row.subnet.cost.average_bits for row in rows])
    groups: dict[float, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[round(row.subnet.cost.average_bits, 9)].append(index)
    found = {}
    for name, values in predicted.items():
        rho = _spearman(values, scores)
        low, high = _interval(rho, len(rows))
        found[name] = RankCorrelation(rho, low, high, _within(values, scores, list(groups.values())), len(rows))
    return found


def _value(row: Measured, table: Mapping[str, Mapping[int, float]]) -> float:
    widths = dict(row.subnet.precision.layers)
    return sum(values[widths[name]] for name, values in table.items())


def _spearman(predicted: np.ndarray, scores: np.ndarray) -> float:
    """Return Spearman's ρ; NaN if one of them is constant, about which scipy would warn."""
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return math.nan
    return float(spearmanr(predicted, scores).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _interval(rho: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Bonett and Wright (2000): normal in artanh ρ with variance (1 + ρ²/2)/(n − 3)."""
    if not abs(rho) < 1:
        return rho, rho
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _within(predicted: np.ndarray, scores: np.ndarray, groups: list[list[int]]) -> float | None:
    weighted, total = 0.0, 0
    for members in groups:
        rho = _spearman(predicted[members], scores[members]) if len(members) >= _FEWEST_IN_GROUP else math.nan
        if not math.isnan(rho):
            weighted += len(members) * rho
            total += len(members)
    return weighted / total if total else None
