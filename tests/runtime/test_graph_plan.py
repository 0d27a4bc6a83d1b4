"""Tracing networks, and the plans that come of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.runtime.graph.arena import Request, place
from bitswitch.runtime.graph.describe import describe_plan
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, MeanNode, PoolNode, TorchNode
from bitswitch.runtime.graph.parts import choose_head, requests_with_head
from bitswitch.runtime.graph.plan import Plan, make_plan
from bitswitch.runtime.graph.purity import UntraceableError
from bitswitch.runtime.graph.shapes import _share
from bitswitch.runtime.graph.trace import trace_network
from tests.networks import images, residual


def plan_of(network: nn.Module, x: Tensor, **options: object) -> Plan:
    model = bs.prepare(network, bits=(8, 4), example_inputs=x, **options)  # pyright: ignore[reportArgumentType]
    return make_plan(trace_network(model), model)


def test_residual_block_is_fused() -> None:
    plan = plan_of(residual(), images())
    stem, conv1, conv2, project, mean, head = plan.nodes
    assert isinstance(stem, FloatConvNode)
    assert stem.norm == "stem_bn"
    assert stem.clamp == (0.0, torch.inf)
    assert isinstance(conv1, ConvNode)
    assert (conv1.layer, conv1.norm, conv1.clamp) == ("conv1", "bn1", (0.0, torch.inf))
    assert isinstance(conv2, ConvNode)
    assert (conv2.layer, conv2.norm, conv2.residual, conv2.clamp) == ("conv2", "bn2", None, None)
    assert isinstance(project, ConvNode)
    # The later of two layers adds the result of the other, and clamps.
    assert (project.layer, project.residual, project.clamp) == ("project", conv2.name, (0.0, torch.inf))
    assert isinstance(mean, MeanNode)
    assert not mean.keep
    assert isinstance(head, TorchNode)
    assert plan.code_readers == {conv1.name: (conv2.name,)}
    assert conv1.name not in plan.float_values
    assert {stem.name, conv2.name, project.name, mean.name} <= plan.float_values
    assert "integer convolution conv1 + bn1, clamp 0 … inf" in "\n".join(describe_plan(plan, {}))


def test_first_and_last_layers_at_8_bits_are_integer_too() -> None:
    plan = plan_of(residual(), images(), first_last=8)
    assert isinstance(plan.nodes[0], ConvNode)
    assert isinstance(plan.nodes[-1], LinearNode)
    assert plan.code_readers[plan.nodes[0].name] == (plan.nodes[1].name, plan.nodes[3].name)


class Branches(nn.Module):
    """Every way for a layer not to be followed by what it could compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.drop, self.relu = nn.MaxPool2d(3, 2, 1), nn.Dropout(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.relu(self.first(x)))
        y = self.conv(x)
        # Read twice: neither the BatchNorm nor the addition can be part of the convolution.
        y = self.norm(y) + y
        y += x
        return self.last(self.pool(F.hardtanh(y, -2.0, 3.0)))


def test_what_is_read_twice_is_kept() -> None:
    plan = plan_of(Branches().eval(), images(), first_last=8)
    kinds = [type(node) for node in plan.nodes]
    assert kinds == [ConvNode, ConvNode, TorchNode, TorchNode, TorchNode, TorchNode, PoolNode, ConvNode]
    assert isinstance(plan.nodes[1], ConvNode)
    assert (plan.nodes[1].norm, plan.nodes[1].residual) == (None, None)
    # `y += x` reads a value and makes a new one.
    assert all("iadd" not in str(node.operation.target) for node in plan.nodes if isinstance(node, TorchNode))
    assert plan.code_readers[plan.nodes[6].name] == (plan.nodes[7].name,)
    assert plan.nodes[6].name not in plan.float_values


class InPlace(nn.Module):
    """Changes a value, which is read again, in place; and possibly a view of it."""

    def __init__(self, *, view: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.view(-1, 4) if self.view else x
        y.relu_()
        return self.last(self.middle(x) + x)


def test_later_readers_see_changes_in_place() -> None:
    plan = plan_of(InPlace(), torch.randn(3, 4))
    add = next(node for node in plan.nodes if node.name == "add")
    relu = next(node for node in plan.nodes if node.name == "relu_")
    assert relu.name in add.inputs
    with pytest.raises(UntraceableError, match="through a view"):
        plan_of(InPlace(view=True), torch.randn(3, 4))


class Loop(nn.Module):
    """A block whose number of steps depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().sum() > 100:
            x = x / 2
        return self.inner(x)


def test_modules_that_cannot_be_traced_are_opaque() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(Loop()), nn.Linear(4, 2))
    plan = plan_of(network, torch.randn(3, 4), force="*")
    assert [type(node) for node in plan.nodes] == [LinearNode, TorchNode, LinearNode]
    assert isinstance(plan.nodes[0], LinearNode)
    assert plan.nodes[0].clamp == (0.0, torch.inf)
    with pytest.raises(UntraceableError, match=r"torch\.fx cannot trace it"):
        plan_of(Loop(), torch.randn(3, 4), force="*")
    with pytest.raises(UntraceableError, match="single layer"):
        plan_of(nn.Linear(4, 4), torch.randn(3, 4), force="*")


def test_buffers_in_use_together_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        numbers = torch.randint(0, 20, (12, 3), generator=generator).tolist()
        requests = {i: Request(size * 50, a, a + length) for i, (size, a, length) in enumerate(numbers)}
        offsets, total = place(requests)
        for i, one in requests.items():
            assert offsets[i] % 64 == 0
            assert offsets[i] + one.size <= total
            for j, other in requests.items():
                apart = one.last < other.first or other.last < one.first
                assert i == j or apart or offsets[i] + one.size <= offsets[j] or offsets[j] + other.size <= offsets[i]
    one_at_a_time, total = place({i: Request(640, i, i) for i in range(10)})
    assert total <= 640 + 64
    assert set(one_at_a_time.values()) == {0}


def test_sums_take_the_place_of_summands_that_nobody_needs_after_them() -> None:
    conv = ConvNode("a", "a", "a", "x")
    first = ConvNode("b", "b", "b", "a", residual="a", addition="b")
    second = ConvNode("c", "c", "c", "b", residual="b", addition="c")
    kept = ConvNode("d", "d", "d", "c", residual="b", addition="d")
    plan = Plan((), (conv, first, second, kept), None, {}, frozenset("abcd"), ())
    requests = {("a", None): Request(64, 0, 1), ("b", None): Request(64, 1, 3), ("c", None): Request(64, 2, 3)}
    requests["d", None] = Request(64, 3, 4)
    assert _share(plan, requests) == {("b", None): ("a", None), ("d", None): ("a", None)}
    assert requests == {("a", None): Request(64, 0, 4), ("c", None): Request(64, 2, 3)}


def test_heads_end_where_values_become_small() -> None:
    wide, down, small = ConvNode("a", "a", "a", "x"), ConvNode("b", "b", "b", "a"), ConvNode("c", "c", "c", "b")
    plan = Plan((("x", "x"),), (wide, down, small), None, {}, frozenset("abc"), ())
    shapes = {"x": (16, 3, 8, 8), "a": (16, 3, 8, 8), "b": (16, 3, 4, 4), "c": (16, 3, 4, 4)}
    requests = {("a", None): Request(64 << 20, 0, 1), ("b", None): Request(8 << 20, 1, 2)}
    requests["c", None] = Request(8 << 20, 2, 3)
    head = choose_head(plan, shapes, requests, 72 << 20, 2)
    assert head is not None
    assert (head.nodes, head.samples, head.batch, head.whole) == (2, 2, 16, {("b", None)})
    expected = {("a", None): Request(8 << 20, 0, 1), ("b", None): Request(8 << 20, 0, 2)}
    assert requests_with_head(requests, head) == {**expected, ("c", None): requests["c", None]}
    # Nothing is too large; nothing becomes small; samples are not apart.
    assert choose_head(plan, shapes, requests, 16 << 20, 2) is None
    assert choose_head(plan, shapes, {("c", None): Request(64 << 20, 0, 3)}, 72 << 20, 2) is None
    assert choose_head(plan, {**shapes, "a": (1, 3, 8, 8)}, requests, 72 << 20, 2) is None
