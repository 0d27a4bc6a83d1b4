"""Learned quantizers of weights and activations, Eq. (1)–(5) and (13)–(14) of arXiv:2502.01199.

Forward passes round; backward passes use the straight-through estimator of LSQ. The gradient of a scale needs no pass
of its own over the data: with y the quantized tensor, x the input and g_x = g · [n < v < p] the gradient that reaches
it, Σ g·(code − v) over the inside and Σ g·n or Σ g·p over the outside are together (Σ g·y − Σ g_x·x) / s.
"""

from bitswitch.quantizers.activation import ActivationQuantizer
from bitswitch.quantizers.scales import Parametrization, PositiveScale, ZeroPoint
from bitswitch.quantizers.weight import GRANULARITIES, Granularity, WeightQuantizer

__all__ = [
    "GRANULARITIES",
    "ActivationQuantizer",
    "Granularity",
    "Parametrization",
    "PositiveScale",
    "WeightQuantizer",
    "ZeroPoint",
]
