"""Layers whose classes someone else wrote: models with them can be pickled, as with torch.save."""

from __future__ import annotations

import copy
import io
import pickle
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.layers import PerWidthNorm, SwitchableLayer, derived
from bitswitch.layers.attention import ProjectedMultiheadAttention
from bitswitch.layers.derived import derived_class


class Scaled(nn.Linear):
    """A linear layer with a number of its own."""

    factor = 2.0


class Activated(nn.BatchNorm1d):
    """A BatchNorm with an activation inside."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Named(nn.MultiheadAttention):
    """An attention that keeps its forward."""


class Reducing(nn.Linear):
    """A layer that is pickled in a way of its own."""

    def __reduce_ex__(self, protocol: object) -> tuple[type[str], tuple[str]]:
        return str, ("reduced",)

    def __deepcopy__(self, memo: object) -> Reducing:
        return Reducing(self.in_features, self.out_features)


class Network(nn.Module):
    """All three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.linear = Scaled(16, 16)
        self.norm = Activated(16)
        self.attention = Named(16, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.linear(self.stem(x)))
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = bs.prepare(Network(), bits=(8, 4, 2), example_inputs=x)
    bs.calibrate(model, [x])
    return model.eval()


def kinds(model: nn.Module) -> list[str]:
    layers = (SwitchableLayer, PerWidthNorm, ProjectedMultiheadAttention)
    return [type(module).__name__ for module in model.modules() if isinstance(module, layers)]


def test_one_class_of_a_pair() -> None:
    assert derived_class(PerWidthNorm, Activated, "Name") is derived_class(PerWidthNorm, Activated, "Name")


def test_pickled_models_run_and_switch(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bs.switch(model, 4)
    assert {"SwitchableScaled", "PerWidthActivated", "ProjectedNamed"} <= set(kinds(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    # As in another process, where no such class has been made.
    monkeypatch.setattr(derived, "derived_class", cache(derived_class.__wrapped__))
    twin = torch.load(stream, weights_only=False)
    assert kinds(twin) == kinds(model)
    assert torch.equal(twin(x), model(x))
    for each in (model, twin):
        bs.switch(each, 2)
    assert torch.equal(twin(x), model(x))


def test_state_of_their_own_is_pickled(model: nn.Module) -> None:
    layer = model.get_submodule("linear")
    layer.__setattr__("factor", 3.0)
    assert pickle.loads(pickle.dumps(layer)).factor == copy.deepcopy(layer).factor == 3.0


def test_classes_that_reduce_themselves_are_left_to_it(x: Tensor) -> None:
    model = bs.prepare(nn.Sequential(nn.Linear(8, 8), Reducing(8, 8), nn.Linear(8, 3)), example_inputs=x)
    assert type(model[1]).__name__ == "SwitchableReducing"
    assert pickle.loads(pickle.dumps(model[1])) == "reduced"
