"""Latency, switch time and training step of one network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.bench.timing import Timing, interleave

FLOAT, SIMULATED = "float32", "simulated"
# Threads of one library may spin for a moment after a call; the next in turn shall not pay for it.
_PAUSE = 0.005


@dataclass(frozen=True)
class SwitchTiming:
    """What a change of width costs.

    Attributes:
        switch: the call of `bitswitch.switch` itself.
        first_call: the first answer after it.
    """

    switch: Timing
    first_call: Timing

    def to_json(self) -> dict[str, Any]:
        """Return both."""
        return {"switch": self.switch.to_json(), "first_call": self.first_call.to_json()}


def latency(
    engine: nn.Module,
    x: Tensor,
    bits: Sequence[int],
    others: Mapping[str, Callable[[], object]] | None = None,
    *,
    repeat: int = 15,
    burst: int = 1,
    pause: float = _PAUSE,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Time an engine at each width, and others beside it, in turn.

    Args:
        engine: made by `bitswitch.deploy`.
        x: input, with the batch.
        bits: widths.
        others: calls to compare with, by name.
        repeat: rounds, see `interleave`.
        burst: measurements of a call in a round.
        pause: seconds to wait before the calls of one of them.
        seconds: limit of time.

    Returns:
        The time of a call, by name; a width is called "8 bits".
    """
    widths = {f"{width} bits": width for width in bits}

    def call() -> object:
        with torch.inference_mode():
            return engine(x)

    def before(name: str) -> None:
        if name in widths:
            bs.switch(engine, widths[name])

    runners: dict[str, Callable[[], object]] = {**dict.fromkeys(widths, call), **(others or {})}
    return interleave(runners, repeat=repeat, burst=burst, pause=pause, seconds=seconds, before=before)


def float_call(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a call of a float network without gradients."""

    def call() -> object:
        with torch.inference_mode():
            return network(x)

    return call


def switching(
    engine: nn.Module, x: Tensor, bits: Sequence[int], *, repeat: int = 15, seconds: float | None = None
) -> dict[int, SwitchTiming]:
    """Time the change to each width from the one before it in the list, and the first answer after it.

    Args:
        engine: made by `bitswitch.deploy`; its `cache_bytes` decide whether this is the cached or the uncached time.
        x: input of the first answer.
        bits: at least two widths.
        repeat: rounds; one more, the first, does not count.
        seconds: end after the round in which this time has passed, but not before three rounds; None for no limit.

    Returns:
        What it costs, by the width that was switched to.
    """
    switches: dict[int, list[float]] = {width: [] for width in bits}
    calls: dict[int, list[float]] = {width: [] for width in bits}
    start = time.perf_counter()
    with torch.inference_mode():
        for turn in range(repeat + 1):
            for width in bits:
                begin = time.perf_counter()
                bs.switch(engine, width)
                switched = time.perf_counter()
                engine(x)
                switches[width].append(switched - begin)
                calls[width].append(time.perf_counter() - switched)
            if seconds is not None and turn >= 3 and time.perf_counter() - start > seconds:
                break
    return {width: SwitchTiming(Timing.of(switches[width][1:]), Timing.of(calls[width][1:])) for width in bits}


def training(
    network: nn.Module,
    model: nn.Module,
    x: Tensor,
    bits: Sequence[int],
    *,
    repeat: int = 9,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Time a training step of the float network and of the prepared one at each width, in turn.

    A step is forward, backward and Adam; the loss is the mean square of the outputs, so that no labels are needed.

    Args:
        network: float network.
        model: the same network, prepared and calibrated.
        x: input, with the batch.
        bits: widths.
        repeat: rounds, see `interleave`.
        seconds: limit of time.

    Returns:
        The time of a step by name: "float32", "8 bits", …
    """
    widths = {f"{width} bits": width for width in bits}
    step = _step(model, x)
    return interleave(
        {FLOAT: _step(network, x), **dict.fromkeys(widths, step)},
        repeat=repeat,
        seconds=seconds,
        before=lambda name: bs.switch(model, widths[name]) if name in widths else None,
    )


def _step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    network.train()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        _first_tensor(network(x)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
