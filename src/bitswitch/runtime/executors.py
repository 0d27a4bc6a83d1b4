"""The choice of how an engine runs its network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitswitch.layers.table import ModelState
from bitswitch.runtime.configuration import Executor, ModuleExecutor
from bitswitch.runtime.stored import StoredWeight


def choose_executor(network: nn.Module, state: ModelState, weights: Mapping[str, StoredWeight]) -> Executor:
    """Return the fastest executor that can run a network.

    Args:
        network: the network, with integer layers.
        state: what is known of it.
        weights: stored weights by layer.
    """
    return ModuleExecutor(network)
