"""Integer execution: networks that run on the stored integers, with no float weights."""

from bitswitch.runtime.engine import Engine

__all__ = ["Engine"]
