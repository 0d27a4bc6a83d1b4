"""Learned quantizers of weights and activations, Eq. (1)–(5) and (13)–(14) of arXiv:2502.01199.

Forward passes round; backward passes use the straight-through estimator of LSQ. On the CPU compiled kernels do both in
one pass over memory (`_fused.py`); elsewhere, and under torch.compile, plain formulas do (`_reference.py`).
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
