"""Which widths train on a mini-batch: all of them, or the lowest one and another in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Turns = Literal["all", "rotate"]
TURNS: tuple[Turns, ...] = get_args(Turns)


def widths_at(turns: Turns, bits: Sequence[int], step: int) -> tuple[int, ...]:
    """Return the widths that train in a step, highest first.

    The lowest width is the hardest to train and has every batch under "rotate" too; the other widths, which are close
    to the float network from the beginning, share the batches evenly.

    Args:
        turns: "all" (the paper's) or "rotate".
        bits: all widths, highest first.
        step: number of the step, from 0.

    >>> [widths_at("rotate", (8, 6, 4, 2), step) for step in range(4)]
    [(8, 2), (6, 2), (4, 2), (8, 2)]
    """
    *others, lowest = bits
    if turns == "all" or not others:
        return tuple(bits)
    return others[step % len(others)], lowest


def widths_a_batch(turns: Turns, bits: Sequence[int]) -> int:
    """Return how many widths train on a mini-batch.

    >>> widths_a_batch("all", (8, 6, 4, 2)), widths_a_batch("rotate", (8, 6, 4, 2))
    (4, 2)
    """
    return len(widths_at(turns, bits, 0))
