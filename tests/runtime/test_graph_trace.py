"""What a trace cannot see, and what is then done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.runtime import Engine
from tests.runtime.graph_networks import calibrated


def both(network: nn.Module, x: Tensor) -> tuple[Engine, Engine]:
    """Deploy a network with a graph, if it has one, and module by module."""
    model = calibrated(network, x, bits=(8, 4), first_last=8)
    return bs.deploy(model), bs.deploy(model, fuse=False)


def agree(network: nn.Module, x: Tensor) -> Engine:
    """Compare both ways to run a network, and return the first."""
    engine, modules = both(network, x)
    torch.testing.assert_close(engine(x.clone()), modules(x.clone()), rtol=1e-3, atol=1e-3)
    return engine


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Body(nn.Module):
    """Three convolutions, with a part that networks below run by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def twice(self, x: Tensor) -> Tensor:
        return 2 * Body.forward(self, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.body(x))


class Silent(Body):
    """Refuses without a word what a trace gives it."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise AssertionError
        return super().forward(x)


def test_a_network_may_refuse_without_a_word() -> None:
    engine = agree(Silent(), torch.randn(2, 3, 5, 5))
    assert engine.plan == "module by module: torch.fx cannot trace it: AssertionError"


def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(Body):
    """Takes further arguments behind a decorator, as networks of transformers do."""

    @decorated
    def forward(self, x: Tensor, a: Any = None, b: Any = None, c: Any = None, **others: Any) -> Tensor:
        return super().forward(x)


def test_decorated_forwards_are_named() -> None:
    reason = "its forward takes *args or **kwargs behind a decorator"
    assert agree(Decorated(), torch.randn(2, 3, 5, 5)).plan == f"module by module: torch.fx cannot trace it: {reason}"


def test_hooks_of_the_network_itself_are_run() -> None:
    network = Body()
    network.register_forward_pre_hook(lambda module, args: (args[0] * 5,))
    assert agree(network, torch.randn(2, 3, 5, 5)).plan == "module by module: the network has hooks"


def test_a_forward_of_the_network_itself_is_run() -> None:
    network: Any = Body()
    network.forward = network.twice
    engine = agree(network, torch.randn(2, 3, 5, 5))
    assert engine.plan == "module by module: the network has a forward of its own, not that of its class"


class Tapped(Body):
    """Passes its inner values through modules that do nothing by themselves."""

    def __init__(self, tap: nn.Module) -> None:
        super().__init__()
        self.tap = tap

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.tap(self.body(x)))


@pytest.mark.parametrize("tap", [nn.Identity(), nn.Dropout(), nn.Sequential(nn.ReLU())], ids=["none", "dropout", "own"])
def test_hooks_of_modules_are_run(tap: nn.Module) -> None:
    calls: list[Any] = []
    tap.register_forward_hook(lambda module, args, out: calls.append(out) or out * 3)
    engine = agree(Tapped(tap), torch.randn(2, 3, 5, 5))
    assert engine.plan.startswith("as a graph: 3 of 3")
    assert all(type(value) is Tensor for value in calls)


def test_hooks_of_normalisations_are_run() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 5, 5)
    model: Any = calibrated(network, x, bits=(8, 4), first_last=8)
    model[1].register_forward_hook(lambda module, args, out: out * 2)
    torch.testing.assert_close(bs.deploy(model)(x), bs.deploy(model, fuse=False)(x), rtol=1e-3, atol=1e-3)


class Collecting(Body):
    """Returns what hooks have collected."""

    def __init__(self) -> None:
        super().__init__()
        self.collected: dict[str, Tensor] = {}
        self.b.register_forward_hook(lambda module, args, out: self.collected.update(b=out))

    def forward(self, x: Tensor) -> list[Tensor]:
        super().forward(x)
        return list(self.collected.values())


def test_what_hooks_have_collected_is_returned() -> None:
    x = torch.randn(2, 3, 5, 5)
    network = Collecting()
    model: Any = calibrated(network, x, bits=(8, 4), first_last=8)
    model.collected.clear()
    engine = bs.deploy(model)
    assert engine.plan.startswith("module by module")


class Noise(nn.Module):
    """Adds noise, of a size that does not depend on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(8, 1, 1)


class Noisy(Body):
    """Adds noise by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.body(x) + torch.randn(8, 1, 1))


@pytest.mark.parametrize("network", [Noisy(), Tapped(Noise())], ids=["itself", "inner"])
def test_random_numbers_are_drawn_in_every_call(network: nn.Module) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = calibrated(network, x, bits=(8, 4), first_last=8)
    torch.manual_seed(1)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    found: list[Tensor] = []
    for deployed in (engine, modules):
        torch.manual_seed(2)
        found.append(torch.stack([deployed(x), deployed(x)]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert not torch.equal(found[0][0], found[0][1])
    assert engine.plan.startswith("as a graph: 3 of 3" if hasattr(network, "tap") else "module by module: torch.fx")


class Remembering(nn.Module):
    """Keeps something from call to call, in one of the ways to do so."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.first: Tensor | None = None
        self.seen: list[Tensor] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "number":
            self.calls += 1
            return x * self.calls
        if self.how == "buffer":
            self.count += 1
            return x * self.count
        if self.how == "list":
            self.seen.append(x.new_ones(()))
            return x * sum(self.seen)
        self.first = torch.ones_like(x[:1]) if self.first is None else self.first * 2
        return x + self.first


class RememberingBody(Remembering, Body):
    """Keeps something in the network itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(super().forward(self.body(x)))


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("how", ["number", "buffer", "list", "attribute"])
def test_what_modules_keep_from_call_to_call_changes(how: str, inner: bool) -> None:
    x = torch.randn(2, 3, 5, 5)
    model: Any = calibrated(Tapped(Remembering(how)) if inner else RememberingBody(how), x, bits=(8, 4), first_last=8)
    holder = model.tap if inner else model
    holder.calls, holder.first = 0, None
    holder.seen.clear()
    holder.count.zero_()
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    start = "as a graph: 3 of 3" if inner else "module by module: it keeps state from call to call"
    assert engine.plan.startswith(start)
    kept: Any = engine.network.get_submodule("tap") if inner else engine.network
    assert (kept.calls, kept.first, kept.seen, float(kept.count)) == (0, None, [], 0.0)
    # Plans for new shapes are made by running once more what is left to PyTorch.
    for samples in (2, 2, 1, 2, 1):
        torch.testing.assert_close(engine(x[:samples]), modules(x[:samples]), rtol=1e-3, atol=1e-3)


def asks_for_a_tensor(x: Tensor) -> Tensor:
    return x * 3 if isinstance(x, Tensor) else x


def asks_for_a_sequence(x: Any) -> Tensor:
    return x[0] if isinstance(x, Sequence) else x * 2


def asks_torch(x: Tensor) -> Tensor:
    return x * 3 if torch.is_tensor(x) else x


def catches_the_trace(x: Tensor) -> Tensor:
    try:
        factor = 1.0 if x.shape[0] > 1 else 2.0
    except ValueError:
        factor = 5.0
    return x * factor


def catches_a_length(x: Tensor) -> Tensor:
    try:
        return x * len(x)
    except RuntimeError:
        return x


class Function(nn.Module):
    """Runs a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class FunctionBody(Body):
    """Runs a function by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.body(x)))


ASKING = [asks_for_a_tensor, asks_for_a_sequence, asks_torch, catches_the_trace, catches_a_length]


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("function", ASKING, ids=lambda function: function.__name__)
def test_what_a_trace_does_not_know_is_not_made_up(function: Callable[[Tensor], Tensor], inner: bool) -> None:
    network = Tapped(Function(function)) if inner else FunctionBody(function)
    plan = agree(network, torch.randn(2, 3, 5, 5)).plan
    assert plan.startswith("as a graph: 3 of 3" if inner else "module by module: torch.fx cannot trace it")
    assert torch.is_tensor(torch.zeros(1))


def mentions_is_instance(x: Tensor) -> Tensor:
    size = 1 if isinstance(1, int) else 2
    return torch.where(x > 0, x, -1.0).reshape((x.shape[0], *x.shape[1:])) * size


def test_compiled_code_may_ask_for_classes() -> None:
    def shapes(x: Tensor) -> Tensor:
        return torch.reshape(torch.where(x > 0, x, 0), (x.shape[0], 8, 5, 5))

    assert agree(FunctionBody(shapes), torch.randn(2, 3, 5, 5)).plan.startswith("as a graph: 3 of 3")
    agree(FunctionBody(mentions_is_instance), torch.randn(2, 3, 5, 5))
