"""What a traced run sees: who feeds whom, which inputs cannot be negative, and that nothing of the run remains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch._plan import weighted_nodes
from bitswitch._trace import Graph, trace
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
