"""Search: the widths that minimise the expected perturbation within budgets, proven optimal (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from bitswitch.errors import ConfigError
from bitswitch.mixed._budgets import NAMES
from bitswitch.mixed.cost import LatencyTable, measure_costs
from bitswitch.mixed.objective import Objective, resolve_objective
from bitswitch.mixed.space import SearchSpace, SubNet
from bitswitch.precision import Precision

Budget = float | Sequence[float] | np.ndarray | None


def search(
    model: nn.Module,
    sensitivity: Mapping[str, float],
    *,
    average_bits: Budget = None,
    weighted_bits: Budget = None,
    weight_bytes: Budget = None,
    bitops: Budget = None,
    latency: Budget = None,
    layer_bits: Mapping[str, Collection[int] | int] | None = None,
    example_inputs: Any = None,
    latency_table: LatencyTable | None = None,
    objective: Objective | Mapping[str, Mapping[int, float]] = "perturbation",
    num_solutions: int = 1,
) -> list[SubNet]:
    """Return the precisions that hurt least within budgets (Algorithm 2, arXiv:2502.01199), each a proven optimum.

    A budget is a number, or a sequence or array for as many searches. Several budgets hold together; sequences must be
    equally long and are taken side by side. Layers that share a weight get one width.

    Args:
        model: a prepared model.
        sensitivity: of its layers: a `Sensitivity` from `hessian_trace`, or any mapping from layer names to traces.
        average_bits: largest plain mean width over the layers that have a choice, the paper's budget. This one alone is
            solved by a dynamic programme that answers all its budgets in one pass.
        weighted_bits: largest mean width weighted by the layers' numbers of weights.
        weight_bytes: largest size of the network's weights as `bitswitch.summary` counts it, layers that stay float
            included.
        bitops: largest number of multiplications × weight width × input width on `example_inputs`, over the quantized
            layers.
        latency: largest sum of the seconds in `latency_table`.
        layer_bits: widths that some layers are limited to, by name or pattern, such as {"layer1.*": (8, 4)}.
        example_inputs: for `bitops`, as for `bitswitch.prepare`.
        latency_table: {layer: {width: seconds}} for `latency`.
        objective: "perturbation" (HAWQ-V2's Σ (t_l/n_l)·‖Ŵ_l − W_l‖²), "weighted-bits" (Σ −(t_l/n_l)·b_l), or a table
            {layer: {width: value}} of your own; it is minimised.
        num_solutions: also return the next best ones within each budget.

    Returns:
        For each budget in order its best SubNets, best first. A SubNet that is the best within several budgets comes
        once, so positions in the list need not be those of the budgets; `SearchSpace.solve` answers one at a time.

    Raises:
        InfeasibleError: no precision is within a budget; the message names the smallest feasible one.
        ConfigError: there is no budget, one is malformed, or the sensitivity is unusable or of another model.
        UnknownLayerError, PrecisionError: a layer or width of `layer_bits` does not exist.
        PrepareError: the model is not prepared.

    >>> import torch
    >>> import bitswitch as bs
    >>> net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())))
    >>> model = bs.prepare(net, bits=(8, 4, 2), example_inputs=torch.zeros(1, 8))
    >>> [subnet] = search(model, {"2": 9.0, "4": 1.0}, average_bits=6, objective="weighted-bits")
    >>> print(subnet.precision, subnet.cost.average_bits)
    2=8,4=4 6.0
    """
    given = {
        "average_bits": average_bits,
        "weighted_bits": weighted_bits,
        "weight_bytes": weight_bytes,
        "bitops": bitops,
        "latency": latency,
    }
    if type(num_solutions) is not int or num_solutions < 1:
        raise ConfigError(f"num_solutions must be a positive integer; got {num_solutions!r}")
    budgets = side_by_side({name: value for name, value in given.items() if value is not None})
    costs = measure_costs(model, example_inputs, latency_table=latency_table)
    space = SearchSpace(costs, resolve_objective(model, sensitivity, objective), layer_bits)
    found: dict[Precision, SubNet] = {}
    for budget in budgets:
        for subnet in space.solve(budget, num_solutions):
            found.setdefault(subnet.precision, subnet)
    return list(found.values())


def side_by_side(given: Mapping[str, float | Sequence[float] | np.ndarray]) -> list[dict[str, float]]:
    """Return the budgets of each search: sequences side by side, single numbers in all of them.

    Raises:
        ConfigError: there are none, or sequences differ in length.
    """
    if not given:
        raise ConfigError(f"give at least one budget: {', '.join(NAMES)}")
    given = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in given.items()}
    sequences = {name: list(v) for name, v in given.items() if isinstance(v, Sequence) and not isinstance(v, str)}
    lengths = {len(values) for values in sequences.values()}
    if len(lengths) > 1 or 0 in lengths:
        shown = ", ".join(f"{name} has {len(values)}" for name, values in sequences.items())
        raise ConfigError(f"budgets that are sequences must be equally long and not empty: {shown}")
    count = lengths.pop() if lengths else 1
    return [
        {name: sequences[name][i] if name in sequences else value for name, value in given.items()}  # pyright: ignore
        for i in range(count)
    ]
