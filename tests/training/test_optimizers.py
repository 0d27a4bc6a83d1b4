from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _training_networks import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.training._scales import ScaleRule, Scales
from bitswitch.training.optimizers import Rate, ScaleOptimizer, adam, clip, non_negative


class ByHand:
    """Adam without weight decay on numbers, with a rate given at every step."""

    def __init__(self, value: float) -> None:
        self.value, self.t, self.m, self.v = value, 0, 0.0, 0.0

    def step(self, gradient: float, lr: float) -> None:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        self.value -= lr * (self.m / (1 - 0.9**self.t)) / (math.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


GRADIENTS = st.one_of(st.none(), st.floats(-2, 2, width=32).filter(lambda g: abs(g) > 1e-3))
STEPS = st.lists(
    st.lists(st.tuples(GRADIENTS, st.sampled_from([0.1, 0.02, 0.0])), min_size=3, max_size=3), min_size=1, max_size=6
)


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_every_parameter_moves_at_its_own_rate_or_not_at_all(steps: list[list[tuple[float | None, float]]]) -> None:
    parameters = [nn.Parameter(torch.tensor(float(i))) for i in range(3)]
    by_hand = [ByHand(float(i)) for i in range(3)]
    optimizer = ScaleOptimizer({p: f"p{i}" for i, p in enumerate(parameters)})
    for step in steps:
        for parameter, (gradient, _) in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        before = [float(p.detach()) for p in parameters]
        optimizer.step(Rate(p, lr) for p, (_, lr) in zip(parameters, step, strict=True))
        for number, (gradient, lr) in zip(by_hand, step, strict=True):
            if gradient is not None:
                number.step(gradient, lr)
        after = [float(p.detach()) for p in parameters]
        assert after == pytest.approx([number.value for number in by_hand], abs=1e-5)
        assert all(a == b for a, b, (g, _) in zip(after, before, step, strict=True) if g is None)


def test_separate_moments_do_not_remember_each_other() -> None:
    parameter = nn.Parameter(torch.tensor(0.0))
    optimizer = ScaleOptimizer({parameter: "p"})
    parameter.grad = torch.tensor(100.0)
    optimizer.step([Rate(parameter, 0.0, "2")])
    parameter.grad = torch.tensor(-0.01)
    optimizer.step([Rate(parameter, 0.1, "8")])
    assert parameter.item() == pytest.approx(0.1, rel=1e-4)  # Adam's first step, against its own gradient only
    assert sorted(optimizer.state()[0]) == [f"{w}/p/{k}" for w in "28" for k in ("exp_avg", "exp_avg_sq", "step")]


def test_adam_is_fused_on_the_cpu() -> None:
    assert adam([nn.Parameter(torch.zeros(2))], 0.1).param_groups[0]["fused"]
    assert not adam([nn.Parameter(torch.zeros(2, device="meta"))], 0.1).param_groups[0]["fused"]


def test_clip_and_checks() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip([parameter], 1.0, read=True).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="lr"):
            non_negative("lr", value)


class Tied(nn.Module):
    """Two layers in the middle that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.a(self.first(x).relu()).relu()).relu())


def test_layers_that_share_a_scale_are_one_with_the_lowest_eta() -> None:
    inputs = torch.randn(8, 4)
    model = bs.prepare(Tied(), bits=(8, 4, 2), example_inputs=inputs)
    bs.calibrate(model, [inputs])
    scales = Scales(model)
    for a, b in ((8, 2), (2, 8), (4, 4)):
        model.zero_grad(set_to_none=True)
        model.a.bits, model.b.bits = a, b
        model(inputs).square().sum().backward()
        used = scales.in_use()
        assert [(layer.bits, layer.eta) for layer in used] == [(min(a, b), {2: 0.001, 4: 0.01}[min(a, b)])]
        rates = ScaleRule("factor", False, False).rates(1.0, used, 0.5, scales)
        assert {
            scales.names[rate.parameter]: rate.lr for rate in rates if "weight" in scales.names[rate.parameter]
        } == {next(n for n in scales.names.values() if "weight" in n): pytest.approx(0.5 * used[0].eta)}
        assert len(rates) == len(scales.names)


def test_layers_without_a_gradient_do_not_count() -> None:
    model: Any = make_model()
    scales = Scales(model)
    assert scales.in_use() == []
    model.conv2(torch.rand(1, 4, 6, 6)).sum().backward()
    assert [layer.name for layer in scales.in_use()] == ["conv2"]
