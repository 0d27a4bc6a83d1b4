"""Switchable layers: PyTorch's own layers, run at a bit-width of choice."""

from bitswitch.layers.base import SwitchableLayer, iter_layers
from bitswitch.layers.norm import PerWidthNorm

__all__ = ["PerWidthNorm", "SwitchableLayer", "iter_layers"]
