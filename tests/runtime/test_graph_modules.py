"""Networks whose graph must compute what they compute module by module."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.runtime import Engine
from tests.runtime.graph_networks import calibrated


def agree(network: nn.Module, x: Tensor) -> Engine:
    """Deploy a network in both ways, compare them on fresh inputs, and return the one that has a graph."""
    model = calibrated(network, x, bits=(8, 4), first_last=8)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    for seed in range(2):
        given = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        expected = modules(given.clone())
        error = float((engine(given) - expected).abs().max() / expected.abs().max())
        # A sum in another order may flip a code; what is left out or done twice is far outside.
        assert error < 0.02
    return engine


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", [1, 0])
def test_float_convolutions_pad_as_they_say(padding: int) -> None:
    stem = nn.Conv2d(3, 8, 3, padding=padding, padding_mode="reflect")
    network = nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = calibrated(network, torch.randn(4, 3, 6, 6), bits=(8, 4))
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(engine(x), modules(x), rtol=1e-3, atol=1e-3)
    assert ("float convolution 0 + 1" in engine.plan) == (padding == 0)


def test_convolutions_of_more_products_than_kernels_sum_run_alone() -> None:
    network = nn.Sequential(nn.Conv2d(2, 7300, 1), nn.ReLU(), nn.Conv2d(7300, 2, 3))
    assert "alone: 2" in agree(network, torch.randn(2, 2, 3, 3)).plan


@pytest.mark.parametrize(("length", "features"), [(16, 16), (12, 16)])
def test_batch_norm_over_another_dimension_than_features_is_not_folded(length: int, features: int) -> None:
    norm = nn.BatchNorm1d(length)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(nn.Linear(6, features), norm, nn.ReLU(), nn.Linear(features, 4))
    agree(network, torch.randn(8, length, 6))


def test_batch_norm_over_features_is_folded() -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    assert "linear 0 + 1" in agree(network, torch.randn(8, 6)).plan


class Changing(nn.Module):
    """Changes a value in place between two layers, and reads it again under another name."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.change(x, self.branch(x)))


def adds_to_itself(x: Tensor, y: Tensor) -> Tensor:
    skip = x
    x += y
    return F.relu(x) + skip


def keeps_it_in_a_list(x: Tensor, y: Tensor) -> Tensor:
    kept = [x]
    x *= y
    return torch.stack([*kept, x]).sum(0)


def scales_a_part(x: Tensor, y: Tensor) -> Tensor:
    part = x[:, :4]
    part *= 0.25
    return x + y


def changes_a_view(x: Tensor, y: Tensor) -> Tensor:
    view = x.view(1, *x.shape)
    view -= 1
    return x + y


def changes_a_transpose(x: Tensor, y: Tensor) -> Tensor:
    turned = x.mT
    turned **= 2
    return x + y


def changes_what_a_method_returns(x: Tensor, y: Tensor) -> Tensor:
    x.mT.add_(1)
    x.diagonal(dim1=2, dim2=3).add_(1)
    x.data.mul_(2)
    x.ravel().neg_()
    return x + y


def changes_in_a_function(x: Tensor, y: Tensor) -> Tensor:
    F.relu(torch.movedim(x, 1, 3), inplace=True)
    return x + y


CHANGES = [
    adds_to_itself,
    keeps_it_in_a_list,
    scales_a_part,
    changes_a_view,
    changes_a_transpose,
    changes_what_a_method_returns,
    changes_in_a_function,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_in_place_reach_every_name(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    agree(Changing(change), torch.randn(4, 3, 5, 5))


def adds_without_another_name(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return F.relu(y, inplace=True)


def normalises(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(y + x)


def adds_to_a_size(x: Tensor, y: Tensor) -> Tensor:
    height = bound = x.shape[2]
    height -= 1
    return (x + y)[:, :, :height] * bound


UNSEEN = [adds_without_another_name, normalises, adds_to_a_size]


@pytest.mark.parametrize("change", UNSEEN, ids=lambda change: change.__name__)
def test_changes_in_place_that_nothing_else_sees_keep_the_graph(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    plan = agree(Changing(change), torch.randn(4, 3, 5, 5)).plan
    assert plan.startswith("as a graph: 3 of 3")
    assert "branch + value first" in plan


class Counting(Changing):
    """Adds what it sees to a buffer."""

    def __init__(self) -> None:
        super().__init__(torch.add)
        self.register_buffer("total", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.get_buffer("total").add_(x.mean((0, 2, 3))[:, None, None])


def test_changes_of_a_buffer_are_not_lost() -> None:
    agree(Counting(), torch.randn(4, 3, 5, 5))


class Named(NamedTuple):
    """A result with names."""

    first: Tensor
    rest: list[Tensor]


class Counted(dict[str, Tensor]):
    """A dict of its own type."""


class Returning(nn.Module):
    """Returns its result in a container."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(F.relu(self.last(self.first(x))))


CONTAINERS = [
    pytest.param(lambda y: {"y": y, "all": [y, (y,)]}, True, id="dict"),
    pytest.param(lambda y: [y, {"y": y}], True, id="list"),
    pytest.param(lambda y: OrderedDict(y=y, all=[y]), True, id="OrderedDict"),
    pytest.param(lambda y: Named(y, [y]), True, id="NamedTuple"),
    pytest.param(lambda y: Counted(y=y), False, id="own"),
]


@pytest.mark.parametrize(("wrap", "fused"), CONTAINERS)
def test_containers_are_those_of_the_network(wrap: Callable[[Tensor], Any], fused: bool) -> None:
    x = torch.randn(4, 3, 5, 5)
    model = calibrated(Returning(wrap), x, bits=(8, 4), first_last=8)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    assert engine.plan.startswith("as a graph") == fused
    found, expected = engine(x), modules(x)

    def compare(one: Any, other: Any) -> None:
        assert type(one) is type(other)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
            return
        assert len(one) == len(other)
        pairs = [(one[k], other[k]) for k in other] if isinstance(other, dict) else zip(one, other, strict=True)
        for a, b in pairs:
            compare(a, b)

    compare(found, expected)


@dataclass
class Result:
    """A result that is no container."""

    y: Tensor


class Wrapping(nn.Module):
    """Cannot be traced, and returns an object, or keeps what it has seen."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.keeps = keeps
        self.seen: list[Tensor] = []

    def forward(self, y: Tensor) -> Any:
        if bool(y.isfinite().all()) and self.keeps:
            self.seen.append(y)
            return y
        return Result(y)


@pytest.mark.parametrize("wrap", [Result, Wrapping(keeps=False), Wrapping(keeps=True)], ids=["made", "got", "kept"])
def test_what_a_call_leaves_behind_stays_as_it_is(wrap: Callable[[Tensor], Any]) -> None:
    x, other = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    model: Any = calibrated(Returning(lambda y: y), x, bits=(8, 4), first_last=8)
    model.wrap = wrap
    engine = bs.deploy(model)
    found: Any = engine(x)
    assert engine.plan.startswith("as a graph: 2 of 2 calls of integer layers fused\n")
    network: Any = engine.network
    left = network.wrap.seen[-1] if isinstance(found, Tensor) else found.y
    kept = left.clone()
    engine(other)
    assert torch.equal(left, kept)


class Shifting(nn.Module):
    """Cannot be traced; changes its input in place, and draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1:
            x.sub_(0.5)
        return x + torch.rand(1)


def test_plans_are_made_without_a_trace() -> None:
    network = nn.Sequential(Shifting(), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = calibrated(network, torch.randn(4, 3, 5, 5), bits=(8, 4), first_last=8)
    x = torch.linspace(-3, 3, 300).view(4, 3, 5, 5)
    found: list[list[Tensor]] = []
    for fuse in (True, False):
        engine, given = bs.deploy(model, fuse=fuse), x.clone()
        torch.manual_seed(1)
        found.append([engine(given), given, torch.rand(1)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


class Flat(nn.Module):
    """Views its input as it can be viewed when it is contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


class OpaqueFlat(Flat):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.isfinite().all() else x


class Viewing(nn.Module):
    """A classifier that views the output of a convolution, as older code does."""

    def __init__(self, flat: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.flat, self.fc = flat, nn.Linear(8 * 25, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(torch.relu(self.conv1(x)))
        return self.fc(self.flat(torch.relu(x))), x


@pytest.mark.parametrize("flat", [Flat(), OpaqueFlat()])
@pytest.mark.parametrize("fuse", [True, False])
def test_values_can_be_viewed_as_in_the_network_itself(flat: nn.Module, fuse: bool) -> None:
    x = torch.randn(4, 3, 5, 5)
    model = calibrated(Viewing(flat), x, bits=(8, 4))
    engine = bs.deploy(model, fuse=fuse)
    found = engine(x)
    # What cannot be traced may change its input, so it cannot have a copy; it runs where nothing is fused.
    fused = fuse and not isinstance(flat, OpaqueFlat)
    assert ("as a graph: 1 of 1" in engine.plan and "ran module by module" not in engine.plan) == fused
    with torch.no_grad():
        expected = model(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.stride() == other.stride()
    assert engine(x)[1].view(4, -1).shape == (4, 200)
    for kind in (torch.contiguous_format, torch.channels_last):
        inner = torch.randn(4, 8, 5, 5).contiguous(memory_format=kind)
        assert engine.network.get_submodule("conv2")(inner).is_contiguous(memory_format=kind)


class OpaqueChange(nn.Module):
    """Cannot be traced, and changes its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1.0) if x.isfinite().all() else x


class Around(nn.Module):
    """Three convolutions, and an operation on what the second one gives, which the third and the output have too."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[1](self.convs[0](x).relu())
        y = self.change(x)
        return self.convs[2](x.relu()).mean((2, 3)) + x.sum((2, 3)) + y.sum()


@pytest.mark.parametrize(
    "change", [OpaqueChange(), lambda x: x * x.stride(1), lambda x: torch.as_strided(x, (8,), (1,))], ids=str
)
def test_what_depends_on_memory_is_that_of_the_network(change: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3, 6, 6)
    model = calibrated(Around(change), x, bits=(8, 4))
    with torch.no_grad():
        torch.testing.assert_close(bs.deploy(model)(x), model(x), rtol=1e-4, atol=1e-3)


class Centring(nn.Module):
    """Changes a value in place by a float64 buffer."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("mean", torch.full((4, 1, 1), 0.3, dtype=torch.float64))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(torch.relu(self.first(x)))
        return self.change(x, self.get_buffer("mean"))


@pytest.mark.parametrize("change", [operator.isub, operator.iadd, lambda x, y: x.sub_(y)], ids=str)
def test_changes_in_place_keep_the_type(change: Callable[[Tensor, Tensor], Any]) -> None:
    x = torch.randn(2, 3, 5, 5)
    engine = agree(Centring(change), x)
    assert engine.plan.startswith("as a graph: 2 of 2 calls of integer layers fused")
    assert engine(x).dtype is torch.float32


class Zeroing(nn.Module):
    """Cannot be traced, and changes a part of its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x


class Reading(nn.Module):
    """Reads a value before and after it has been changed, by layers whose codes may be made at once."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 1), *(nn.Conv2d(8, 8, 1) for _ in range(3))])
        self.zero, self.used = Zeroing(), used

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](torch.relu(self.convs[0](x)))
        z = self.zero(y)
        return self.convs[3](torch.relu(self.convs[2](y)) + (z if self.used else 0))


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_changes_that_a_trace_cannot_see_reach_every_reader(used: bool, inference: bool) -> None:
    with torch.inference_mode(inference):
        plan = agree(Reading(used=used), torch.randn(2, 3, 5, 5)).plan
    assert "ran module by module: zero changes its input in place (2)" in plan
