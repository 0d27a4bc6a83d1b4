"""Trace estimates against dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.mixed import Sensitivity, hessian_trace
from tests.networks import images, residual

NUM_TRIALS = 200
NUM_PROBES = 30
NUM_CLASSES = 16


class Small(nn.Module):
    """A network small enough for a dense Hessian."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


def loss_fn(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), logits


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = (x.flatten(1) @ torch.randn(16, NUM_CLASSES, generator=generator, dtype=torch.float64)).argmax(1)
    return [(x[:64], y[:64]), (x[64:], y[64:])]


@pytest.fixture(scope="module")
def small(batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a network that has learned a little: before that its Hessian is mostly noise around zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Small().double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        for batch in batches:
            optimizer.zero_grad()
            loss_fn(network, batch)[0].backward()
            optimizer.step()
    optimizer.zero_grad()
    return network.eval()


def dense(model: nn.Module, batches: list[tuple[Tensor, Tensor]], name: str, method: str) -> float:
    """Return the trace of the dense matrix of the mean loss over all examples with respect to one layer's weight."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    key = f"{name}.weight"

    def logits(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {key: weight}, (x,))

    weight = model.get_parameter(key).detach()
    if method == "hessian":
        matrix = torch.autograd.functional.hessian(lambda w: F.cross_entropy(logits(w), y), weight)
        assert isinstance(matrix, Tensor)
        return float(matrix.reshape(weight.numel(), weight.numel()).trace())
    jacobian = torch.autograd.functional.jacobian(logits, weight)
    assert isinstance(jacobian, Tensor)
    jacobian = jacobian.reshape(len(x), NUM_CLASSES, -1)
    p = logits(weight).softmax(1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return float(torch.einsum("nck,ncd,ndk->", jacobian, curvature, jacobian).detach()) / len(x)


@pytest.mark.parametrize("method", ["hessian", "gauss-newton"])
def test_estimates_agree_with_the_dense_trace(small: nn.Module, batches: list[Any], method: Any) -> None:
    found = [
        hessian_trace(
            small,
            loss_fn,
            batches,
            method=method,
            relative_error=1e-9,
            min_probes=NUM_PROBES,
            max_probes=NUM_PROBES,
            seed=s,
        )
        for s in range(NUM_TRIALS)
    ]
    for name in ("conv", "hidden", "head"):
        exact = dense(small, batches, name, method)
        estimates = np.array([s[name] for s in found])
        errors = np.array([s.layers[name].error for s in found])
        assert np.mean(np.abs(estimates - exact) <= 2 * errors) >= 0.9, name
        # So many probes that the mean of all trials is known to 0.4 %.
        assert np.sqrt(np.mean(errors**2) / NUM_TRIALS) <= 0.004 * exact, name
        assert abs(estimates.mean() - exact) <= 0.01 * exact, name
    assert found[0].num_examples == 96


def test_stops_at_the_relative_error(small: nn.Module, batches: list[Any]) -> None:
    loose = hessian_trace(small, loss_fn, batches, method="gauss-newton", relative_error=0.2, max_probes=4000)
    tight = hessian_trace(small, loss_fn, batches, method="gauss-newton", relative_error=0.05, max_probes=4000)
    assert max(t.error / t.value for t in tight.layers.values()) <= 0.05
    assert loose.num_probes < tight.num_probes < 4000


def test_float_and_prepared_models_agree_and_stay_as_they_are() -> None:
    network = residual()
    model = bs.prepare(network, bits=(8, 2), example_inputs=images())
    data = [(images(8), torch.arange(8) % 10)]
    own = hessian_trace(network, loss_fn, data, max_probes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bs.switch(model, 2)
    model.train()
    assert dict(hessian_trace(model, loss_fn, data, max_probes=4)) == pytest.approx(dict(own), rel=1e-4)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for p in model.parameters())


def test_inputs(small: nn.Module, batches: list[Any]) -> None:
    found = hessian_trace(small, loss_fn, batches, method="gauss-newton", inputs=True, min_probes=400, max_probes=400)
    hidden = torch.tanh(small.get_submodule("norm")(small.get_submodule("conv")(torch.cat([b[0] for b in batches]))))
    hidden = hidden.flatten(1).detach()

    def tail(h: Tensor) -> Tensor:
        return small.get_submodule("head")(torch.tanh(small.get_submodule("hidden")(h)))

    total = 0.0
    for row in hidden:
        jacobian = torch.autograd.functional.jacobian(tail, row)
        assert isinstance(jacobian, Tensor)
        p = tail(row).softmax(0)
        total += float(torch.einsum("ck,cd,dk->", jacobian, p.diag() - p.outer(p), jacobian).detach())
    assert found.inputs["hidden"].size == 16
    assert abs(found.inputs["hidden"].value - total / len(hidden)) <= 3 * found.inputs["hidden"].error
    assert set(found.inputs) == {"conv", "hidden", "head"}
    assert batches[0][0].grad is None


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, inner: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(h + torch.tanh(self.inner(h if inner is None else inner)))


@pytest.mark.parametrize("method", ["hessian", "gauss-newton"])
def test_the_trace_of_an_input_is_that_through_its_layer_alone(method: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Shortcut().double()
        x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,))
    hidden = torch.tanh(network.first(x)).detach()
    exact = 0.0
    for row, inner, label in zip(x, hidden, y, strict=True):

        def logits(h: Tensor, row: Tensor = row) -> Tensor:
            return network(row[None], h[None])[0]

        def loss(h: Tensor, label: Tensor = label) -> Tensor:
            return F.cross_entropy(logits(h), label)

        if method == "hessian":
            matrix: Any = torch.autograd.functional.hessian(loss, inner)
            exact += float(matrix.trace()) / len(x)
        else:
            jacobian: Any = torch.autograd.functional.jacobian(logits, inner)
            p = logits(inner).softmax(0)
            exact += float(torch.einsum("ck,cd,dk->", jacobian, p.diag() - p.outer(p), jacobian).detach()) / len(x)
    found = hessian_trace(network, loss_fn, [(x, y)], method=method, inputs=True, min_probes=600, max_probes=600)
    assert abs(found.inputs["inner"].value - exact) <= 3 * found.inputs["inner"].error < 2 * exact


class Experts(nn.Module):
    """Every row goes through the expert that its route names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        with torch.no_grad():
            self.experts[0].get_parameter("weight").mul_(10)

    def forward(self, x: Tensor, routes: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        y = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            rows = (routes == index).nonzero()[:, 0]
            if len(rows):
                y = y.index_put((rows,), expert(h[rows]))
        return self.head(torch.tanh(y))


def test_layers_that_do_not_run_on_every_batch_keep_their_traces() -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits = model(batch[0], batch[1])
        return F.cross_entropy(logits, batch[2]), logits

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Experts()
        x, y, routes = torch.randn(8, 3), torch.randint(3, (8,)), torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])
    options: Any = {"inputs": True, "min_probes": 300, "max_probes": 300}
    whole = hessian_trace(network, loss, [(x, routes, y)], **options).inputs
    parts = hessian_trace(network, loss, [(x[:4], routes[:4], y[:4]), (x[4:], routes[4:], y[4:])], **options).inputs
    assert list(parts) == list(whole) == ["first", "head", "experts.0", "experts.1", "experts.2"]
    for name, trace in parts.items():
        assert abs(trace.value - whole[name].value) <= 3 * (trace.error**2 + whole[name].error ** 2) ** 0.5, name
        assert trace.size == whole[name].size, name
    # Of an example of four elements, two rows of eight, four of eight, two of eight.
    assert [parts[f"experts.{i}"].size for i in range(3)] == [1, 2, 1]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(x)[0]
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("method", ["hessian", "gauss-newton"])
def test_recurrent_and_attention_layers(method: Any) -> None:
    data = [(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)]
    found = hessian_trace(Recurrent(), loss_fn, data, method=method, max_probes=4)
    assert {"rnn", "attention.q_proj", "attention.out_proj", "head"} <= set(found)
    assert found.layers["rnn"].size == 4 * 5 * (4 + 5)
    assert all(found[name] != 0 for name in found)


class Tokens(nn.Module):
    """Logits (N, T, C) of tokens that see those before them; T and C differ from each other and from N."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.rnn = nn.RNN(4, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


def token_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(batch)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()), logits


def token_case() -> tuple[nn.Module, list[Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tokens().double()
        with torch.no_grad():
            network.head.weight.mul_(4)
        return network, [torch.randint(5, (3, 4)), torch.randint(5, (3, 4))]


def test_classes_are_in_the_dimension_given() -> None:
    network, data = token_case()
    exact = 0.0
    for batch in data:
        for row in token_loss(network, batch)[1].flatten(0, 1).log_softmax(-1):
            for log_p in row:
                (gradient,) = torch.autograd.grad(log_p, network.get_parameter("head.weight"), retain_graph=True)
                exact += float(log_p.detach().exp() * gradient.square().sum()) / 18
    options: Any = {"min_probes": 2000, "max_probes": 2000}
    found = hessian_trace(network, token_loss, data, dim=-1, **options)
    assert abs(found["head"] - exact) <= 3 * found.layers["head"].error <= 0.1 * exact

    def transposed(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = token_loss(model, batch)
        return loss, logits.transpose(1, 2)

    def flat(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = token_loss(model, batch)
        return loss, logits.flatten(0, 1)

    few: Any = {"min_probes": 3, "max_probes": 3}
    expected = dict(hessian_trace(network, token_loss, data, dim=-1, **few))
    for other, dim in ((token_loss, 2), (transposed, 1), (transposed, -2), (flat, None), (flat, 1), (flat, -1)):
        assert dict(hessian_trace(network, other, data, dim=dim, **few)) == pytest.approx(expected), dim


def test_the_dimension_of_the_classes_is_never_guessed() -> None:
    network, data = token_case()
    with pytest.raises(ConfigError, match=r"shape \(3, 3, 5\); say which dimension .*: dim=-1 for \(N, T, C\)"):
        hessian_trace(network, token_loss, data)
    for dim in (0, -3, 3, -4):
        with pytest.raises(ConfigError, match=rf"dim={dim} cannot hold the classes of logits of the shape \(3, 3, 5\)"):
            hessian_trace(network, token_loss, data, dim=dim)
    with pytest.raises(ConfigError, match="dim must be an integer or None; got '1'"):
        hessian_trace(network, token_loss, data, dim="1")  # pyright: ignore[reportArgumentType]
    assert set(hessian_trace(network, token_loss, data, method="hessian", max_probes=2)) == {"embedding", "rnn", "head"}


def test_round_trip(small: nn.Module, batches: list[Any], tmp_path) -> None:
    found = hessian_trace(small, loss_fn, batches, max_probes=4, inputs=True)
    found.save(tmp_path / "trace.json")
    assert Sensitivity.load(tmp_path / "trace.json", small) == found


def test_errors(small: nn.Module, batches: list[Any]) -> None:
    for arguments, message in [
        ({"method": "guess"}, "method must be"),
        ({"relative_error": 0}, "relative_error"),
        ({"min_probes": 1}, "min_probes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            hessian_trace(small, loss_fn, batches, **arguments)
    with pytest.raises(ConfigError, match="no batches"):
        hessian_trace(small, loss_fn, [])
    with pytest.raises(ConfigError, match="NaN"):
        hessian_trace(small, lambda m, b: loss_fn(m, b)[0] * float("nan"), batches, method="hessian")
    with pytest.raises(bs.errors.ArgumentError, match="returns \\(loss, logits\\)"):
        hessian_trace(small, lambda m, b: loss_fn(m, b)[0], batches, method="gauss-newton")
    with pytest.raises(ConfigError, match="does not depend"):
        hessian_trace(small, lambda m, b: b[0].sum().requires_grad_(), batches, method="hessian")
