"""How often each integer code occurs in a checkpoint, at every width that its files can be opened at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitswitch.checkpoint.info import CheckpointInfo
from bitswitch.checkpoint.reader import read_codes
from bitswitch.errors import ConfigError
from bitswitch.precision import Precision
from bitswitch.rounding import second_round


def count_codes(info: CheckpointInfo) -> dict[str, dict[int, Tensor]]:
    """Count the codes of every layer with bit planes.

    Args:
        info: of the checkpoint.

    Returns:
        {layer: {width: int64 counts of the codes -2^(width-1), …, 2^(width-1) - 1}}, highest width first. Layers
        without bit planes are left out: those that are pinned to one width of several, and all if no scale is shared.

    Raises:
        ConfigError: no width can be opened.
        CheckpointError: a file is damaged.
    """
    if not info.bits_available:
        raise ConfigError(f"{info.folder}: no width can be opened; missing are {', '.join(info.problems)}")
    config = info.config
    needed = config.needed(Precision.of(info.bits_available[0]).resolve(config.table.available))
    codes = {name: tensor for name, tensor in read_codes(info.folder, config, needed).items() if tensor.numel()}
    midrise = config.options.midrise
    return {
        name: _counts(tensor, config.table[name].bits, info.bits_available, midrise) for name, tensor in codes.items()
    }


def sum_counts(counts: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
    """Add the counts of several layers, width by width."""
    widths = sorted({bits for own in counts for bits in own}, reverse=True)
    return {bits: torch.stack([own[bits] for own in counts if bits in own]).sum(0) for bits in widths}


def _counts(codes: Tensor, own: Sequence[int], available: Sequence[int], midrise: tuple[int, ...]) -> dict[int, Tensor]:
    """Count the codes of a layer at those of its own widths that can be opened; its first one is stored."""
    widths = [bits for bits in own if bits in available] if len(own) > 1 else own
    return {bits: _count(codes, own[0], bits, midrise) for bits in widths}


def _count(codes: Tensor, stored_bits: int, bits: int, midrise: tuple[int, ...]) -> Tensor:
    rounded = second_round(codes, stored_bits, bits, midrise).flatten().long()
    return torch.bincount(rounded + 2 ** (bits - 1), minlength=2**bits)
