"""Checkpoints: a network stored once, as bit planes of integers, and opened at any width.

FORMAT.md, beside this file, describes the files to the byte.
"""

from bitswitch._files import read_state, write_state
from bitswitch.checkpoint.config import CheckpointConfig, StoredWeight
from bitswitch.checkpoint.info import CheckpointInfo, checkpoint_bits_available, read_info
from bitswitch.checkpoint.load import load
from bitswitch.checkpoint.reader import verify
from bitswitch.checkpoint.save import save

__all__ = [
    "CheckpointConfig",
    "CheckpointInfo",
    "StoredWeight",
    "checkpoint_bits_available",
    "load",
    "read_info",
    "read_state",
    "save",
    "verify",
    "write_state",
]
