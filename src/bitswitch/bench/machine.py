"""What a figure was measured on: processor, threads, instruction set, speed of the memory."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bitswitch.kernels import instruction_set, native

_BANDWIDTH_BYTES = 512 << 20
_STREAMS = (1, 4)


@dataclass(frozen=True)
class Machine:
    """What figures were measured on.

    Attributes:
        processor: its name.
        cores: that this process may run on.
        threads: of PyTorch, and so of the kernels.
        instruction_set: of the kernels, or "reference".
        torch: version of PyTorch.
        read_gb_per_s: reading from memory with all threads, by the number of streams a thread reads; empty if it was
            not measured.
    """

    processor: str
    cores: int
    threads: int
    instruction_set: str
    torch: str
    read_gb_per_s: dict[int, float]

    def __str__(self) -> str:
        parts = [
            self.processor,
            f"{self.threads} threads on {self.cores} cores",
            f"kernels: {self.instruction_set}",
            f"PyTorch {self.torch}",
        ]
        if self.read_gb_per_s:
            speeds = (
                f"{speed:.1f} GB/s with {streams} stream{'s' if streams > 1 else ''} a thread"
                for streams, speed in self.read_gb_per_s.items()
            )
            parts.append("reads " + ", ".join(speeds))
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "read_gb_per_s": {str(key): value for key, value in self.read_gb_per_s.items()}}


def machine(*, bandwidth: bool = True) -> Machine:
    """Describe this machine.

    Args:
        bandwidth: measure how quickly memory is read, which takes half a second and 512 MiB.
    """
    return Machine(
        _processor(),
        _cores(),
        torch.get_num_threads(),
        instruction_set(),
        torch.__version__,
        read_bandwidth() if bandwidth else {},
    )


def read_bandwidth(num_bytes: int = _BANDWIDTH_BYTES, *, repeat: int = 5) -> dict[int, float]:
    """Measure how quickly all threads together read memory that is in no cache of theirs.

    Args:
        num_bytes: size of the buffer; it must be larger than the caches.
        repeat: readings, of which the best counts: what disturbs can only make it slower.

    Returns:
        {streams that each thread reads at a time: GB/s}. Without compiled kernels one stream only, by PyTorch's sum.
    """
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32)
    size = buffer.numel() * 4
    if native is None:
        return {1: max(_sum_speed(buffer, size) for _ in range(repeat))}
    measure = native.read_bandwidth
    return {n: max(measure(buffer.data_ptr(), size, n) for _ in range(repeat)) for n in _STREAMS}


def _sum_speed(buffer: torch.Tensor, size: int) -> float:
    begin = time.perf_counter()
    buffer.sum()
    return size / (time.perf_counter() - begin) / 1e9


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
