"""Times of functions that are called in turn, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds that a call took.

    Attributes:
        median: of all measurements.
        fastest: of all measurements.
        slowest: of all measurements.
        count: measurements.
    """

    median: float
    fastest: float
    slowest: float
    count: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise measurements."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def to_json(self) -> dict[str, float | int]:
        """Return the fields, times in milliseconds."""
        return {
            "median_ms": self.median * 1e3,
            "fastest_ms": self.fastest * 1e3,
            "slowest_ms": self.slowest * 1e3,
            "count": self.count,
        }


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeat: int = 15,
    burst: int = 1,
    inner: int = 1,
    pause: float = 0.0,
    seconds: float | None = None,
    before: Callable[[str], object] | None = None,
) -> dict[str, Timing]:
    """Time functions in turn: a round calls each of them, and there are `repeat` rounds.

    In each round a function is called once untimed, which brings its data back into the caches and lets threads of
    other libraries fall asleep that would spin on the cores, and is then measured `burst` times.

    Args:
        functions: by name; what they return is dropped.
        repeat: rounds; one more, the first, warms up and does not count.
        burst: measurements of a function in a round.
        inner: calls that one measurement lasts; more than 1 for functions of a few microseconds.
        pause: seconds to wait before the calls of a function.
        seconds: end after the round in which this time has passed, but not before three rounds; None for no limit.
        before: called with a function's name before its turn, for what shall not be timed, such as a switch of widths.

    Returns:
        The time of one call, by name.

    >>> sorted(interleave({"a": lambda: None, "b": lambda: sum(range(99))}, repeat=3))
    ['a', 'b']
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for turn in range(repeat + 1):
        for name, function in functions.items():
            if pause:
                time.sleep(pause)
            if before is not None:
                before(name)
            function()
            measured = [_one(function, inner) for _ in range(burst)]
            if turn:
                taken[name] += measured
        if seconds is not None and turn >= 3 and time.perf_counter() - begin > seconds:
            break
    return {name: Timing.of(values) for name, values in taken.items()}


def _one(function: Callable[[], object], inner: int) -> float:
    begin = time.perf_counter()
    for _ in range(inner):
        function()
    return (time.perf_counter() - begin) / inner
