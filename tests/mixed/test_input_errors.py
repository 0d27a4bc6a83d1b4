"""Errors of the inputs, and the objective that counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.layers.base import float_forward
from bitswitch.mixed import hessian_trace, input_errors
from bitswitch.mixed.objective import perturbation
from tests.networks import images, residual


def loss_fn(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), logits


def test_against_the_definition() -> None:
    model = bs.prepare(residual(), bits=(8, 4, 2), example_inputs=images())
    bs.calibrate(model, [images(16)])
    found = input_errors(model, [images(8), images(4, 1)])
    layer: Any = model.get_submodule("project")
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with float_forward(model), torch.no_grad():
        model.eval()(torch.cat([images(8), images(4, 1)]))
    handle.remove()
    with torch.no_grad():
        expected = float((layer.input_quantizer(seen[0], 2) - seen[0]).square().sum()) / 12
    assert found["project"][2] == pytest.approx(expected, rel=1e-4)
    assert found["project"][8] < found["project"][4] < found["project"][2]
    data = [(images(16), torch.arange(16) % 10)]
    traces = hessian_trace(model, loss_fn, data, inputs=True, min_probes=8)
    with_inputs, without = perturbation(model, traces, found), perturbation(model, traces)
    added = traces.inputs["project"].value / traces.inputs["project"].size * found["project"][2]
    assert with_inputs["project"][2] - without["project"][2] == pytest.approx(added, rel=1e-6)
    with pytest.raises(ConfigError, match="inputs=True"):
        perturbation(model, dict(traces), found)
    with pytest.raises(ConfigError, match="at least one batch"):
        input_errors(model, [])
    for single in (images(), {"x": images()}):
        with pytest.raises(ArgumentError, match="into a list"):
            input_errors(model, single)
        with pytest.raises(ArgumentError, match="into a list"):
            hessian_trace(model, loss_fn, single)


class Wrapped(nn.Module):
    """Calls its layers by keyword and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.first(input=x))
        return {"loss": None, "logits": (self.third(input=F.relu(self.second(input=x))),)}


def test_outputs_in_containers_and_inputs_by_keyword() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Wrapped()
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(network, bits=(4, 2), example_inputs=x)
    bs.calibrate(model, [x])
    found = input_errors(model, [x[:8], x[8:]])
    with torch.no_grad(), float_forward(model):
        inputs = F.relu(network.first(x))
        quantizer: Any = model.get_submodule("second.input_quantizer")
        expected = float((quantizer(inputs, 2) - inputs).square().sum()) / 12
    assert found["second"][2] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ConfigError, match="first dimension is the batch"):
        input_errors(model, [x], forward=lambda network, batch: network(batch)["logits"][0].sum())
