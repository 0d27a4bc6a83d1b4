"""Whole networks on the compiled kernels, against the same plan on references and against the trained network."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch import kernels
from bitswitch.layers.base import iter_layers
from bitswitch.layers.table import state_of
from bitswitch.models.resnet_cifar import resnet20_cifar
from bitswitch.runtime.graph import parts
from bitswitch.runtime.graph.geometry import ShapeError
from tests.networks import images, residual
from tests.runtime.graph_networks import OnGraph, calibrated

BITS = (8, 4, 3, 2)


class Block(nn.Module):
    """One random step of a random network."""

    def __init__(self, channels: int, out: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options
        groups = {"plain": 1, "grouped": 2, "depthwise": channels}[options["groups"]]
        out = channels if options["residual"] == "identity" or groups > 2 else out
        stride = 1 if options["residual"] == "identity" else options["stride"]
        kernel = options["kernel"]
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=options["bias"])
        self.norm = nn.BatchNorm2d(out) if options["norm"] else nn.Identity()
        self.down = nn.Conv2d(channels, out, 1, stride) if options["residual"] == "projection" else nn.Identity()
        self.pool = {"none": nn.Identity(), "max": nn.MaxPool2d(3, 2, 1), "ceil": nn.MaxPool2d(2, ceil_mode=True)}[
            options["pool"]
        ]
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.options["residual"] != "none":
            y = self.down(x) + y if self.options["swap"] else y + self.down(x)
        activation = self.options["activation"]
        if activation == "relu":
            y = F.relu(y)
        elif activation == "relu6":
            y = F.relu6(y)
        elif activation == "hardtanh":
            y = F.hardtanh(y, -0.5, 0.75)
        elif activation == "silu":
            y = F.silu(y)
        y = self.pool(y)
        return torch.cat([y, y[:, :2] * 2], 1) if self.options["concat"] else y


class Network(nn.Module):
    """A stem, random blocks, and a head."""

    def __init__(self, blocks: list[dict[str, Any]], head: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        channels, steps = 6, []
        for options in blocks:
            steps.append(Block(channels, options["out"], options))
            channels = steps[-1].out + (2 if options["concat"] else 0)
        self.blocks = nn.Sequential(*steps)
        self.squeeze = nn.Conv2d(channels, channels, 1) if head == "squeeze" else None
        self.head, self.classifier = nn.Linear(channels, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        if self.squeeze is not None:
            x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return self.classifier(F.relu(self.head(F.dropout(x.mean((2, 3)), training=self.training))))


BLOCKS = st.fixed_dictionaries(
    {
        "groups": st.sampled_from(["plain", "plain", "grouped", "depthwise"]),
        "out": st.sampled_from([2, 6, 18]),
        "stride": st.sampled_from([1, 2]),
        "kernel": st.sampled_from([1, 3, 5]),
        "bias": st.booleans(),
        "norm": st.booleans(),
        "residual": st.sampled_from(["none", "none", "identity", "projection"]),
        "swap": st.booleans(),
        "activation": st.sampled_from(["relu", "relu6", "hardtanh", "silu", "none"]),
        "pool": st.sampled_from(["none", "none", "none", "max", "ceil"]),
        "concat": st.booleans(),
    }
)


def mixed_map(model: nn.Module, data: st.DataObject) -> dict[str, int]:
    available = state_of(model).table.available
    return {name: data.draw(st.sampled_from(widths), label=name) for name, widths in available.items()}


@settings(max_examples=15)
@given(st.data())
def test_random_networks_equal_their_reference(isa: str, data: st.DataObject) -> None:
    blocks = data.draw(st.lists(BLOCKS, min_size=1, max_size=4))
    head = data.draw(st.sampled_from(["plain", "squeeze"]))
    torch.manual_seed(0)
    network = Network(blocks, head)
    size = data.draw(st.integers(9, 14))
    x = torch.randn(data.draw(st.integers(1, 7)), 3, size, size)
    options: dict[str, Any] = {
        "first_last": data.draw(st.sampled_from(["float", 8])),
        "granularity": data.draw(st.sampled_from(["tensor", "channel"])),
        "midrise": data.draw(st.sampled_from([(), (2,), (4, 3, 2)])),
        "activation_bits": data.draw(st.sampled_from([{}, {2: 4, 3: 8}, {8: 7}])),
    }
    graph = OnGraph(calibrated(network, torch.randn(8, 3, size, size), bits=BITS, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", data.draw(st.sampled_from([1 << 24, 30_000, 10_000, 3_000])))
        for precision in (8, 2, mixed_map(graph.model, data)):
            bound = graph.bind(precision, None)
            out = graph.run(bound, x)
            torch.testing.assert_close(out, graph.reference(bound, x), rtol=0, atol=0)
            # Again, in the buffers that the first run has left, and in another memory layout.
            again = graph.run(bound, x.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(again, out, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"first_last": 8}, {"midrise": (3, 2)}], ids=str)
def test_resnet20_agrees_with_the_trained_network(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    graph = OnGraph(calibrated(resnet20_cifar(), torch.randn(16, 3, 32, 32), bits=BITS, **options))
    x = torch.randn(8, 3, 32, 32)
    for precision in (8, 4, {"layer1.0.conv1": 8, "layer2.0.conv1": 2, "layer3.2.conv2": 4}):
        bound = graph.bind(precision, None if isinstance(precision, int) else 3)
        out = graph.run(bound, x)
        assert torch.equal(out, graph.reference(bound, x))
        with torch.no_grad():
            trained = graph.model(x)
        # Sums in another order flip some codes; a wrong scale would be far outside.
        assert float((out - trained).abs().mean() / trained.abs().mean()) < 0.02


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_networks_equal_their_reference(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
    graph = OnGraph(calibrated(network, torch.randn(4, 3, 64, 64), first_last=8))
    x = torch.randn(2, 3, 64, 64)
    for bits in (8, 2):
        bound = graph.bind(bits)
        assert torch.equal(graph.run(bound, x), graph.reference(bound, x))


class Broadcast(nn.Module):
    """Adds what has another shape, pools what has no batch, and takes an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor, scale: float = 1.0, other: Tensor | None = None) -> dict[str, Tensor]:
        x = F.relu(self.first(x))
        y = F.relu(x.amax((2, 3), keepdim=True) + self.conv(x))
        pooled = self.pool(y[0])[None]
        return {"out": self.last(pooled) * scale, "same": pooled} if other is None else {"other": other}


def test_shapes_that_kernels_do_not_take_are_left_to_pytorch() -> None:
    torch.manual_seed(0)
    graph = OnGraph(calibrated(Broadcast(), torch.randn(4, 3, 8, 8), first_last=8))
    bound, x = graph.bind(8), torch.randn(2, 3, 8, 8)
    out, expected = graph.run(bound, x), graph.reference(bound, x)
    assert out.keys() == {"out", "same"}
    assert torch.equal(out["out"], expected["out"])
    with torch.no_grad():
        trained = graph.model(x)
    assert torch.allclose(out["out"], trained["out"], atol=0.05)
    assert graph.run(bound, x=x, scale=1.0)["out"].equal(out["out"])
    with pytest.raises(ShapeError, match="'scale'"):
        graph.run(bound, x, 2.0)
    with pytest.raises(ShapeError, match="3 channels"):
        graph.run(bound, torch.randn(2, 5, 8, 8))


def test_outputs_are_not_views_of_buffers() -> None:
    graph = OnGraph(calibrated(residual(), images(8), bits=BITS, first_last=8))
    bound = graph.bind(8)
    first = graph.run(bound, images(3))
    kept = first.clone()
    graph.run(bound, images(3, seed=5))
    assert torch.equal(first, kept)


def test_threads_and_shapes_do_not_disturb_each_other() -> None:
    graph = OnGraph(calibrated(residual(), images(8), bits=BITS, first_last=8))
    bounds = {bits: graph.bind(bits) for bits in BITS}
    cases = [(bits, images(count, seed=count)) for bits in BITS for count in (1, 2, 5)]
    expected = [graph.reference(bounds[bits], x) for bits, x in cases]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for step in range(30):
            index = (offset + step) % len(cases)
            bits, x = cases[index]
            if not torch.equal(graph.run(bounds[bits], x), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_deployed_networks_run_as_graphs() -> None:
    model = calibrated(residual(), images(8), bits=BITS)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    assert engine.plan.startswith("as a graph: 3 of 3 calls of integer layers fused\n")
    assert modules.plan == "module by module: fuse=False"
    x = images(3)
    for bits in BITS:
        bs.switch(model, bits)
        with torch.no_grad():
            trained = model(x)
        for found in (engine(x, precision=bits), modules(x, precision=bits)):
            assert torch.allclose(found, trained, rtol=0.05, atol=0.05 * float(trained.abs().max()))
    assert all(layer.bits == 8 for _, layer in iter_layers(engine))


def test_calls_that_a_graph_cannot_run_are_said() -> None:
    engine = bs.deploy(calibrated(Broadcast(), torch.randn(4, 3, 8, 8), first_last=8))
    x = torch.randn(2, 3, 8, 8)
    # The addition broadcasts, and the pooling has no batch: PyTorch does both.
    engine(x)
    assert "for inputs of (2, 3, 8, 8) instead:\n" in engine.plan
    assert "ran module by module" not in engine.plan
    assert engine(x, other=x)["other"] is x
    torch.testing.assert_close(engine(x, 2.0)["out"], 2 * engine(x)["out"], rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match=r"takes 3 channels, not \(2, 5, 8, 8\)"):
        engine(torch.randn(2, 5, 8, 8))
    line = str(bs.summary(engine)).splitlines()[-1]
    assert "module by module: argument 'other' has another value than the graph was made for (1); argument" in line
    assert "channels" not in line


class Signed(nn.Module):
    """Layers of every kind that stand alone, and a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line, self.up = nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 4, 2)
        self.hooked, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.line(self.conv(x).flatten(2))).mean(2)
        return self.last(self.hooked(x))


def test_layers_alone_are_named() -> None:
    model = calibrated(Signed(), torch.randn(4, 3, 6, 6), bits=BITS, force="*")
    calls: list[Tensor] = []
    model.get_submodule("hooked").register_forward_hook(lambda layer, args, out: calls.append(out))
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    assert "2 of 5 calls of integer layers fused, alone: line, up, hooked" in str(bs.summary(engine))
    x = torch.randn(2, 3, 6, 6)
    calls.clear()
    torch.testing.assert_close(engine(x), modules(x))
    assert len(calls) > 1


def test_plans_and_idle_buffers_are_bounded() -> None:
    engine = bs.deploy(calibrated(residual(), images(8), bits=BITS), cache_bytes=1 << 20)
    executor: Any = engine._executor
    for count in range(20):
        engine(images(count % 13 + 1, seed=count), precision=4)
    if kernels.native is None:
        return
    assert len(executor._fitted) == 8
    assert 0 < executor.arenas.num_bytes <= 1 << 20
    engine.cache.limit = 0
    engine(images(2))
    engine(images(3))
    assert len(executor.arenas._idle) == 1


def test_a_precision_that_is_gone_takes_its_programs_with_it() -> None:
    engine = bs.deploy(calibrated(residual(), images(8), bits=BITS), cache_bytes=0)
    executor: Any = engine._executor
    for bits in BITS:
        engine(images(2), precision=bits)
    gc.collect()
    (fitted,) = executor._fitted.values()
    assert len(fitted.programs) <= 1


def test_engines_compute_in_float32_and_return_the_type_of_inputs() -> None:
    engine = bs.deploy(calibrated(residual(), images(8), bits=BITS))
    expected = engine(images(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine(images(3)), expected)
    double = engine(images(3).double())
    assert double.dtype is torch.float64
    assert torch.equal(double.float(), expected)


def test_calls_in_and_out_of_inference_mode_share_buffers() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(3, 4)
    engine = bs.deploy(calibrated(network, x, bits=BITS, first_last=8))
    with torch.inference_mode():
        expected = engine(x)
    executor: Any = engine._executor
    assert not any(block.is_inference() for block in executor.arenas._idle)
    assert torch.equal(engine(x), expected)


_ONES = torch.ones(4)


class Shifted(nn.Module):
    """Takes a tensor by default, behind an argument that it is called without and before one with a name only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None, offset: Tensor = _ONES, *, end: Tensor = _ONES) -> Tensor:
        y = self.last(torch.relu(self.first(x)))
        return (y if scale is None else y * scale) + offset + 2 * end


def test_arguments_reach_their_parameters() -> None:
    x, other = torch.randn(3, 4), torch.full((4,), 3.0)
    model = calibrated(Shifted(), x, bits=BITS, first_last=8)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    torch.testing.assert_close(engine(x), modules(x))
    torch.testing.assert_close(engine(x, offset=other, end=x), modules(x, offset=other, end=x))
    assert "ran module by module" not in engine.plan
    for args in ((x, other), (x, other, other)):
        torch.testing.assert_close(engine(*args), modules(*args))
    with pytest.raises(TypeError, match="too many positional arguments|positional arguments but"):
        engine(x, None, other, other)


def test_layers_inside_modules_that_run_in_pytorch_are_named() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = calibrated(nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 4)), torch.randn(2, 3, 4), first_last=8)
    inner = [name for name, _ in iter_layers(model) if name.startswith("1.")]
    plan = bs.deploy(model).plan
    assert plan.startswith(f"as a graph: 2 of {2 + len(inner)} calls of integer layers fused, alone: {inner[0]}, ")
    assert len(inner) > 2
