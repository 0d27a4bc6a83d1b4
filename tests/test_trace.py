"""What a traced run sees: who feeds whom, which inputs cannot be negative, and that nothing of the run remains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch._plan import weighted_nodes
from bitswitch._trace import Graph, trace
from bitswitch.layers.adapters import adapt
from tests.networks import images, residual


def traced(model: nn.Module, *inputs: Tensor) -> Graph:
    return trace(model, weighted_nodes(model), lambda network: network(*inputs))


def test_a_residual_network() -> None:
    graph = traced(residual(), images())
    assert graph.predecessors == {
        "stem": set(),
        "stem_bn": {"stem"},
        "conv1": {"stem_bn"},
        "bn1": {"conv1"},
        "conv2": {"bn1"},
        "bn2": {"conv2"},
        "project": {"stem_bn"},
        "project_bn": {"project"},
        "head": {"bn2", "project_bn"},
    }
    assert [n for n in ("stem", "conv1", "conv2", "project", "head") if graph.nonnegative[n]] == [
        "conv1",
        "conv2",
        "project",
        "head",
    ]


class Between(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))  # pyright: ignore[reportCallIssue]


def subtract_in_a_view(x: Tensor) -> Tensor:
    y = F.relu(x)
    y[:, :2].sub_(1)
    return y


def read_by_an_older_view(x: Tensor) -> Tensor:
    y = F.relu(x)
    view = y[:, :]
    y.sub_(1)
    return view


def assign_part(x: Tensor) -> Tensor:
    y = F.relu(x)
    y[:, 0] = x[:, 0]
    return y


@pytest.mark.parametrize(
    ("function", "nonnegative"),
    [
        (F.relu, True),
        (nn.ReLU(inplace=True), True),
        (nn.ReLU6(), True),
        (nn.Sigmoid(), True),
        (nn.Hardsigmoid(), True),
        (nn.Hardtanh(0.0, 2.0), True),
        (nn.Hardtanh(-1.0, 2.0), False),
        (lambda x: x.clamp(min=0), True),
        (lambda x: x.clamp(max=0), False),
        (nn.GELU(), False),
        (nn.SiLU(), False),
        (nn.LeakyReLU(), False),
        (nn.Tanh(), False),
        (lambda x: x, False),
        (lambda x: F.relu(x) + F.relu(-x), True),
        (lambda x: F.relu(x) + x, False),
        (lambda x: F.relu(x) - 1, False),
        (lambda x: F.relu(x) + 1, True),
        (lambda x: F.relu(x) + -1, False),
        (lambda x: F.relu(x) * 2, True),
        (lambda x: F.relu(x) * -2, False),
        (lambda x: -F.relu(x), False),
        (lambda x: F.relu(x) * torch.sigmoid(x), True),
        (lambda x: F.dropout(F.relu(x), 0.5), True),
        (lambda x: torch.cat([F.relu(x)[:, :2], F.relu(x)[:, 2:]], 1), True),
        (lambda x: torch.cat([F.relu(x)[:, :2], x[:, 2:]], 1), False),
        (lambda x: F.relu(x).view(-1, 2, 2).transpose(1, 2).flatten(1), True),
        (lambda x: F.max_pool1d(F.relu(x)[None], 1)[0], True),
        (lambda x: F.adaptive_avg_pool1d(F.relu(x), 4), True),
        (lambda x: F.layer_norm(F.relu(x), (4,)), False),
        (lambda x: F.relu(x).add_(x), False),
        (assign_part, False),
        (subtract_in_a_view, False),
        (read_by_an_older_view, False),
        (lambda x: torch.add(F.relu(x), F.relu(-x), alpha=-1), False),
        (lambda x: torch.add(F.relu(x), F.relu(-x), alpha=2), True),
        (lambda x: torch.mul(F.relu(x), other=-1.0), False),
        (lambda x: F.relu(x) * np.float32(-1), False),
        (lambda x: F.threshold(x, 0.5, 0.0), True),
        (lambda x: F.threshold(x, 0.5, -1.0), False),
        (lambda x: F.threshold(x, -1.0, 0.0), False),
        (lambda x: F.alpha_dropout(F.relu(x), 0.5), False),
    ],
)
def test_sign_of_what_reaches_the_next_layer(function: object, nonnegative: bool) -> None:
    model = Between(function)
    graph = traced(model, torch.randn(3, 4))
    assert graph.nonnegative["second"] is nonnegative
    assert graph.predecessors["second"] == {"first"}


def test_a_layer_used_twice_is_nonnegative_only_if_both_uses_are() -> None:
    class Twice(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.second(F.relu(self.first(x))))

    graph = traced(Twice(None), torch.randn(3, 4))
    assert graph.nonnegative["second"] is False
    assert graph.predecessors["second"] == {"first", "second"}


@pytest.mark.parametrize(
    ("function", "reads"),
    [
        (lambda x, w: F.linear(x, w.t()), True),
        (lambda x, w: x @ w, True),
        (lambda x, w: x + w.detach().abs().mean(), True),
        (lambda x, w: x + w.data[0], True),
        (lambda x, w: torch.cat([x, w]), True),
        (lambda x, w: x.to(w.dtype).to(w.device).to(w), False),
        (lambda x, w: x.type_as(w) * w.shape[0] * w.size(1) * w.dim() * w.numel() * len(w), False),
        (lambda x, w: x + torch.zeros_like(w)[0] + w.new_zeros(4), False),
        (lambda x, w: x * float(w.requires_grad and w.is_floating_point()), False),
    ],
)
def test_who_reads_a_weight_elsewhere(function: Callable[[Tensor, Tensor], Tensor], reads: bool) -> None:
    model = Between(None)
    model.function = lambda x: function(x, model.first.weight)
    graph = traced(model, torch.randn(3, 4))
    assert graph.read_elsewhere == ({"first"} if reads else set())
    model.tied = nn.Linear(4, 4)
    model.tied.weight = model.first.weight
    assert traced(model, torch.randn(3, 4)).read_elsewhere == ({"first", "tied"} if reads else set())


def test_a_layer_that_reads_the_weight_of_another() -> None:
    class Reads(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight + self.other[0].weight)

    model = Between(F.relu)
    model.second = Reads(4, 4)
    model.second.other = (model.first,)
    assert traced(model, torch.randn(3, 4)).read_elsewhere == {"first"}


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.TransformerDecoderLayer(4, 2, 8),
        nn.LSTM(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    ],
)
def test_modules_of_pytorch_read_no_weight_elsewhere(layer: nn.Module) -> None:
    model, x = nn.ModuleList([layer]), torch.randn(2, 3, 4)
    adapt(model)
    inputs = (x, x) if isinstance(layer, nn.TransformerDecoderLayer) else (x,)
    graph = trace(model, weighted_nodes(model), lambda network: network[0](*inputs))
    assert graph.read_elsewhere == set()


def test_nothing_of_the_run_remains() -> None:
    model = residual().train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traced(model, images())
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_exception_in_the_model_leaves_it_as_it_was() -> None:
    model = residual().train()
    with pytest.raises(RuntimeError):
        traced(model, torch.zeros(1, 5, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
