"""Networks on their graphs, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.layers.base import iter_layers
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.graph.execute import GraphExecutor
from bitswitch.runtime.graph.operands import Bound
from bitswitch.runtime.stored import StoredWeight


class OnGraph:
    """A prepared network on its graph."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        cache = DerivedCache(1 << 28)
        weights = {
            name: StoredWeight.from_codes(
                name,
                layer.weight_codes(layer.stored_bits),
                layer.stored_bits,
                None,
                cache,
                layer.weight_quantizer.midrise,
            )
            for name, layer in iter_layers(model)
        }
        self.executor = GraphExecutor(model, weights, cache)

    def bind(self, precision: Any, default: int | None = None) -> Bound:
        """Switch the network, and return the operands of the graph at the same precision."""
        bs.switch(self.model, precision, default)
        widths = {name: layer.bits for name, layer in iter_layers(self.model)}
        norms = {name: m.key for name, m in self.model.named_modules() if isinstance(m, PerWidthNorm)}
        return self.executor.bind(widths, norms)

    def run(self, bound: Bound, *args: Any, **kwargs: Any) -> Any:
        """Run on the compiled kernels."""
        return self.executor.run_bound(bound, args, kwargs)

    def reference(self, bound: Bound, *args: Any, **kwargs: Any) -> Any:
        """Run on the references."""
        return self.executor.run_bound(bound, args, kwargs, reference=True)


def calibrated(network: nn.Module, example: Tensor, **options: Any) -> nn.Module:
    """Return a network with BatchNorm statistics, prepared and calibrated on random inputs like the example."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(example.shape, generator=generator) for _ in range(2)]
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    model = bs.prepare(network.eval(), example_inputs=example, **options)
    bs.calibrate(model, batches)
    return model.eval()
