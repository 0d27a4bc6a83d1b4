"""Learning-rate schedules as functions (step, total_steps) → factor of the base learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from bitswitch.errors import ArgumentError, ConfigError

Schedule = Callable[[int, int], float]
ScheduleLike = Literal["cosine", "constant"] | Schedule


def cosine(step: int, total_steps: int) -> float:
    """Return (1 + cos(π · step / total_steps)) / 2: from 1 to 0 without warm-up, and 0 ever after.

    >>> cosine(0, 100), round(cosine(50, 100), 12), cosine(100, 100)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(step / total_steps, 1.0)))


def constant(step: int, total_steps: int) -> float:
    """Return 1 at every step."""
    return 1.0


_NAMED: dict[str, Schedule] = {"cosine": cosine, "constant": constant}


def resolve(schedule: ScheduleLike) -> Schedule:
    """Return the function that a name stands for, or the function itself.

    Raises:
        ConfigError: an unknown name.
        ArgumentError: neither a name nor callable.
    """
    if isinstance(schedule, str):
        if schedule not in _NAMED:
            raise ConfigError(f"schedule must be one of {tuple(_NAMED)} or a function; got {schedule!r}")
        return _NAMED[schedule]
    if not callable(schedule):
        raise ArgumentError(f"schedule must be a name or a function (step, total_steps) → factor; got {schedule!r}")
    return schedule
