from __future__ import annotations

import math

import pytest

from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.training import schedule


def test_cosine_goes_from_one_to_zero_and_stays() -> None:
    values = [schedule.cosine(step, 10) for step in range(13)]
    assert values[0] == 1.0
    assert values[10:] == [0.0, 0.0, 0.0]
    assert values[3] == pytest.approx((1 + math.cos(0.3 * math.pi)) / 2)
    assert values == sorted(values, reverse=True)


def test_names_and_functions() -> None:
    assert schedule.resolve("cosine") is schedule.cosine
    assert schedule.resolve("constant")(7, 10) == 1.0
    own = schedule.resolve(lambda step, total: step / total)
    assert own(5, 10) == 0.5


def test_errors() -> None:
    with pytest.raises(ConfigError, match="'linear'"):
        schedule.resolve("linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="name or a function"):
        schedule.resolve(3)  # pyright: ignore[reportArgumentType]
