"""Memory for the values of a run: places in one block, and blocks that wait for their next use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The kernels read and write whole vectors; what lies behind a buffer must at least exist.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Request:
    """A buffer of `size` bytes in use from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def place(requests: Mapping[Any, Request]) -> tuple[dict[Any, int], int]:
    """Return an offset for every buffer, and the size of the block.

    Those that are never in use together may share memory. Buffers are placed in the order of their size, each in the
    lowest gap between those in use at the same time.
    """
    offsets: dict[Any, int] = {}
    placed: list[tuple[int, int, Request]] = []
    total = 0
    for key, request in sorted(requests.items(), key=lambda item: (-item[1].size, item[1].first)):
        size = -(-max(request.size, 1) // _ALIGNMENT) * _ALIGNMENT
        offset = 0
        for start, end, other in sorted(placed, key=lambda item: item[0]):
            if other.last < request.first or request.last < other.first:
                continue
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[key] = offset
        placed.append((offset, offset + size, request))
        total = max(total, offset + size)
    return offsets, total + _ALIGNMENT


def _num_users(tensor: Tensor) -> int:
    """Return how many tensors share a tensor's memory, and what PyTorch itself adds to that."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


_ALONE = _num_users(torch.empty(1, device="cpu"))


def new_block(size: int) -> Tensor:
    """Return a float32 tensor of at least `size` bytes with any content, which calls in any mode may change."""
    # One of inference mode could not be changed outside of it, where the next call may be.
    with torch.inference_mode(False):
        return torch.empty(-(-size // 4), dtype=torch.float32, device="cpu")


class Arenas:
    """Blocks of memory, each for one run at a time. Those that are idle are kept: always one, more within a limit.

    Args:
        limit: returns the bytes that idle blocks may take together.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._idle: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """Return a float32 tensor of at least `size` bytes with any content."""
        with self._lock:
            # The last one is the most likely to be in the processor's caches.
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index].nbytes >= size:
                    return self._idle.pop(index)
        return new_block(size)

    def give(self, arena: Tensor) -> None:
        """Take a block back, unless something that a run has left behind has a view of it."""
        if _num_users(arena) > _ALONE:
            return
        with self._lock:
            self._idle.append(arena)
            while len(self._idle) > 1 and self.num_bytes > self._limit():
                self._idle.pop(0)

    @property
    def num_bytes(self) -> int:
        """Bytes of the blocks that are idle."""
        return sum(arena.nbytes for arena in self._idle)
