"""All that is measured of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import bitswitch as bs
from bitswitch.bench.memory import Memory, measure_memory
from bitswitch.bench.networks import FLOAT, SIMULATED, SwitchTiming, float_call, latency, switching, training
from bitswitch.bench.subject import Subject
from bitswitch.bench.timing import Timing
from bitswitch.checkpoint import read_info

CACHED, UNCACHED = "cached", "uncached"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        batch: batch sizes.
        repeat: rounds.
        seconds: limit for the rounds of one table.
        float_network: measure PyTorch's float32 network beside the engine.
        simulated: measure the network as training computes it, quantized values in floats, at the largest width.
        memory: measure resident memory.
        training_batch: batch size of training steps; None leaves them out.
    """

    batch: tuple[int, ...] = (1, 16)
    repeat: int = 25
    seconds: float | None = 15.0
    float_network: bool = True
    simulated: bool = True
    memory: bool = True
    training_batch: int | None = None


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        subject: the network.
        execution: how the engine runs it.
        latency: by batch size, then by name: "float32", "simulated", "8 bits", …
        bytes_at: size of the files that a width needs.
        float_bytes: size of the same as float32.
        memory: resident memory by width; empty if it was not measured.
        switching: by "cached" and "uncached", then by the width that was switched to; empty for a single width.
        training: of a step, by name; empty if it was not measured.
        training_batch: inputs of a step.
    """

    subject: Subject
    execution: str
    latency: Mapping[int, Mapping[str, Timing]]
    bytes_at: Mapping[int, int]
    float_bytes: int
    memory: Mapping[int, Memory]
    switching: Mapping[str, Mapping[int, SwitchTiming]]
    training: Mapping[str, Timing]
    training_batch: int | None

    def to_json(self) -> dict[str, Any]:
        """Return everything; times in milliseconds, sizes in bytes."""
        return {
            "model": self.subject.name,
            "input_shape": list(self.subject.input_shape),
            "bits": list(self.subject.bits),
            "execution": self.execution,
            "latency": {str(batch): _plain(times) for batch, times in self.latency.items()},
            "file_bytes": {str(width): self.bytes_at[width] for width in self.subject.bits},
            "float_bytes": self.float_bytes,
            "resident_bytes": _plain(self.memory),
            "switching": {name: _plain(timings) for name, timings in self.switching.items()},
            "training": {"batch": self.training_batch, "steps": _plain(self.training)} if self.training else None,
        }


def measure(subject: Subject, settings: Settings, say: Callable[[str], object] = lambda what: None) -> Report:
    """Measure a network.

    Args:
        subject: the network.
        settings: what to measure.
        say: called with what is being measured.
    """
    info = read_info(subject.folder)
    times: dict[int, Mapping[str, Timing]] = {}
    for batch in settings.batch:
        say(f"latency, batch {batch}")
        times[batch] = _latency(subject, batch, settings)
    switches: dict[str, Mapping[int, SwitchTiming]] = {}
    for name, options in ((CACHED, {}), (UNCACHED, {"cache_bytes": 0})) if len(subject.bits) > 1 else ():
        say(f"switching, {name}")
        engine = subject.engine(**options)
        switches[name] = switching(
            engine, subject.inputs(1), subject.bits, repeat=settings.repeat, seconds=settings.seconds
        )
    memory: dict[int, Memory] = {}
    for width in subject.bits if settings.memory else ():
        say(f"memory at {width} bits")
        found = measure_memory(subject, width)
        if found is not None:
            memory[width] = found
    steps: Mapping[str, Timing] = {}
    if settings.training_batch is not None:
        say("training steps")
        steps = _training(subject, settings.training_batch, settings)
    return Report(
        subject,
        _execution(subject),
        times,
        info.bytes_at,
        info.float_bytes,
        memory,
        switches,
        steps,
        settings.training_batch,
    )


def _execution(subject: Subject) -> str:
    engine = subject.engine()
    # Whether a graph fits the inputs is known once it has run.
    engine(subject.inputs(1))
    return engine.plan.partition("\n")[0]


def _latency(subject: Subject, batch: int, settings: Settings) -> dict[str, Timing]:
    x = subject.inputs(batch)
    others = {FLOAT: float_call(subject.float_network(), x)} if settings.float_network else {}
    if settings.simulated:
        others[SIMULATED] = float_call(subject.simulated(), x)
    return latency(subject.engine(), x, subject.bits, others, repeat=settings.repeat, burst=3, seconds=settings.seconds)


def _training(subject: Subject, batch: int, settings: Settings) -> dict[str, Timing]:
    info = read_info(subject.folder)
    model = bs.load(subject.folder, into=subject.float_network(), bits=info.config.bits[0])
    bs.unfreeze(model)
    return training(
        subject.float_network(),
        model,
        subject.inputs(batch),
        subject.bits,
        repeat=settings.repeat,
        seconds=settings.seconds,
    )


def _plain(found: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value.to_json() for key, value in found.items()}
