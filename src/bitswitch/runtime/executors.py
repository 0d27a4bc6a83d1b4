"""The choice of how an engine runs its network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.configuration import Executor, ModuleExecutor
from bitswitch.runtime.graph.execute import GraphExecutor
from bitswitch.runtime.graph.purity import UntraceableError
from bitswitch.runtime.stored import StoredWeight


def choose_executor(
    network: nn.Module, weights: Mapping[str, StoredWeight], cache: DerivedCache, *, fuse: bool
) -> Executor:
    """Return the fastest executor that can run a network.

    Args:
        network: the network, with integer layers.
        weights: stored weights by layer.
        cache: of what is derived from them.
        fuse: whether to run it as a graph if it can be turned into one.
    """
    if not fuse:
        return ModuleExecutor(network, "fuse=False")
    try:
        return GraphExecutor(network, weights, cache)
    except UntraceableError as error:
        return ModuleExecutor(network, str(error))
