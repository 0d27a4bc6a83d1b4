"""Large batches in parts: how many samples at once, and from where in a network on it may be more of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitswitch.runtime.graph.arena import Request
from bitswitch.runtime.graph.nodes import ConvNode, MeanNode, Node, PoolNode
from bitswitch.runtime.graph.plan import Plan

# Buffers that should stay in the processor's caches: a batch that takes more is run in parts where that is the same.
PART_BYTES = 16 << 20
# Parts whose results the rest of a network takes together, so that weights, which are large there, come once for all.
_PARTS_TOGETHER = 4


@dataclass(frozen=True)
class Head:
    """The first nodes of a plan, which run on a few samples after the other before the rest runs on all of them.

    Attributes:
        nodes: how many they are.
        samples: that they run on at once.
        batch: all samples.
        whole: keys of the buffers that hold all samples although these nodes write them.
    """

    nodes: int
    samples: int
    batch: int
    whole: frozenset[Any]


def samples_of_part(count: int, size: int, threads: int) -> int:
    """Return how many samples of a batch are run at once.

    Kernels split work between threads by samples first, so as many samples as threads, or a multiple, share it evenly.

    Args:
        count: samples of the batch.
        size: bytes of its buffers.
        threads: that run it.
    """
    fitting = max(1, count * PART_BYTES // size)
    fitting = min(count, max(threads, fitting - fitting % threads))
    parts = -(-count // fitting)
    # Parts of the same size, as far as threads allow.
    return min(count, -(-count // (parts * threads)) * threads)


def choose_head(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]], requests: Mapping[Any, Request], size: int, threads: int
) -> Head | None:
    """Return the nodes to run on a few samples at once, if the values of others are so much smaller.

    Args:
        plan: the plan.
        shapes: of its values, with the whole batch.
        requests: its buffers, with the whole batch.
        size: bytes of a block of them.
        threads: that run it.
    """
    batches = {shapes[name][0] if shapes[name] else 0 for _, name in plan.arguments}
    if size <= PART_BYTES or len(batches) != 1:
        return None
    (batch,) = batches
    samples = samples_of_part(batch, size, threads) if batch else batch
    if samples == batch:
        return None
    room = PART_BYTES * batch // min(batch, _PARTS_TOGETHER * samples)
    used = bytes_in_use(requests, len(plan.nodes))
    nodes = max((i + 1 for i, total in enumerate(used) if total > room), default=0)
    head, rest = plan.nodes[:nodes], plan.nodes[nodes:]
    if not head or not rest or not all(_is_by_sample(node, shapes, batch) for node in head):
        return None
    whole = frozenset(key for key, request in requests.items() if request.first < nodes <= request.last)
    return Head(nodes, samples, batch, whole)


def _is_by_sample(node: Node, shapes: Mapping[str, tuple[int, ...]], batch: int) -> bool:
    """Whether a kernel computes every sample from one of each input."""
    kernel = isinstance(node, (ConvNode, PoolNode)) or (isinstance(node, MeanNode) and node.keep)
    return kernel and all(len(shapes[name]) == 4 and shapes[name][0] == batch for name in (*node.inputs, node.name))


def bytes_in_use(requests: Mapping[Any, Request], steps: int) -> list[int]:
    """Return the bytes of the buffers in use at every step."""
    return [sum(item.size for item in requests.values() if item.first <= i <= item.last) for i in range(steps)]


def requests_with_head(requests: Mapping[Any, Request], head: Head) -> dict[Any, Request]:
    """Return buffers where those of the head hold as many samples as it runs on, and the rest is kept meanwhile."""
    found = dict(requests)
    for key, request in requests.items():
        if key in head.whole:
            found[key] = Request(request.size, 0, request.last)
        elif request.last < head.nodes:
            found[key] = Request(request.size // head.batch * head.samples, request.first, request.last)
    return found
