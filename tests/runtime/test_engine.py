from __future__ import annotations

import contextlib
import copy
import gc
import threading
import time
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import kernels
from bitswitch.runtime import Engine
from bitswitch.runtime.tiles import tiles_bytes
from tests.runtime._networks import BITS, images, meta, mixed

X = images()
MAP = bs.Precision.of({"plain": 8, "b": 2, "up": 6}, default=4)
PRECISIONS = [*(bs.Precision.of(bits) for bits in BITS), MAP]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mixed()


def run_threads(work: list[Any]) -> None:
    """Run functions in threads and raise what the first of them raised."""
    errors: list[BaseException] = []

    def guarded(function: Any) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_eight_threads_run_while_a_ninth_switches(model: nn.Module, cache_bytes: int) -> None:
    engine = bs.deploy(model, cache_bytes=cache_bytes)
    expected = {precision: engine(X, precision=precision) for precision in PRECISIONS}
    assert len({tensor.numpy().tobytes() for tensor in expected.values()}) == len(PRECISIONS)
    begin = time.monotonic()
    seen: set[bs.Precision] = set()

    def going() -> bool:
        # On a busy machine a second may be too short for the switching thread to have its turn.
        return time.monotonic() < begin + (1 if len(seen) > 1 else 60)

    def follow() -> None:
        while going():
            found = engine(X)
            matches = [precision for precision, output in expected.items() if torch.equal(output, found)]
            assert matches, "an output is of no single precision"
            seen.update(matches)

    def choose(index: int) -> None:
        while going():
            precision = PRECISIONS[index % len(PRECISIONS)]
            assert torch.equal(engine(X, precision=precision), expected[precision])
            index += 1

    def switch() -> None:
        index = 0
        while going():
            bs.switch(engine, PRECISIONS[index % len(PRECISIONS)])
            index += 1

    run_threads([follow] * 6 + [lambda i=i: choose(i) for i in range(2)] + [switch])
    assert len(seen) > 1


def test_threads_may_deploy_copies_and_read_planes_at_once(model: nn.Module, tmp_path: Any) -> None:
    bs.switch(model, 8)
    bs.save(model, tmp_path)
    expected = bs.deploy(model)(X, precision=8)
    engine = bs.deploy(tmp_path, into=meta(), bits=2)

    def work() -> None:
        assert torch.equal(engine(X, precision=8), expected)

    run_threads([work] * 6)
    assert engine.network.get_submodule("plain").num_planes == 8


def test_copies_read_planes_one_after_the_other(
    model: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bs.switch(model, 8)
    bs.save(model, tmp_path)
    engine = bs.deploy(tmp_path, into=meta(), bits=2)
    twin = copy.deepcopy(engine)
    reader: Any = engine._reader
    read, both = type(reader).read_planes, threading.Barrier(2)

    def read_planes(self: Any, wanted: Any) -> Any:
        found = read(self, wanted)
        # Both would be here at once if nothing kept them apart.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return found

    monkeypatch.setattr(type(reader), "read_planes", read_planes)
    run_threads([lambda: bs.switch(engine, 8), lambda: bs.switch(twin, 6)])
    assert engine.network.get_submodule("plain").num_planes == 8
    expected = bs.deploy(model)
    for bits in (8, 6):
        assert torch.equal(engine(X, precision=bits), expected(X, precision=bits))
        assert torch.equal(twin(X, precision=bits), expected(X, precision=bits))


class Pause(nn.Module):
    """Does something that a trace must not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.action: Any = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isfinite().all()):
            self.action()
        return x


class Halting(nn.Module):
    """Two layers with a pause between them, in which a test switches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.pause = Pause()
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.pause(torch.relu(self.first(x))))


def halting(*, fuse: bool = True) -> tuple[Engine, Halting, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = bs.prepare(Halting(), BITS, force="*", example_inputs=x)
    bs.calibrate(model, [x])
    engine = bs.deploy(model, fuse=fuse)
    network = engine.network
    assert isinstance(network, Halting)
    return engine, network, x


either = pytest.mark.parametrize("fuse", [True, False], ids=["graph", "modules"])


@either
def test_a_call_ends_at_the_precision_that_it_began_with(fuse: bool) -> None:
    engine, network, x = halting(fuse=fuse)
    expected = engine(x, precision=8)
    network.pause.action = lambda: bs.switch(engine, 2)
    assert torch.equal(engine(x, precision=8), expected)
    bs.switch(engine, 8)
    assert torch.equal(engine(x), expected)
    assert engine.precision == bs.Precision.of(2)


@either
def test_calls_inside_calls_have_precisions_of_their_own(fuse: bool) -> None:
    engine, network, x = halting(fuse=fuse)
    pure = {bits: engine(x, precision=bits) for bits in BITS}
    inner: list[Tensor] = []

    def call() -> None:
        network.pause.action = lambda: None
        inner.append(engine(x, precision=2))

    network.pause.action = call
    assert torch.equal(engine(x, precision=8), pure[8])
    assert torch.equal(inner[0], pure[2])


@either
def test_after_an_error_the_thread_is_back_at_the_live_precision(fuse: bool) -> None:
    engine, network, x = halting(fuse=fuse)

    def fail() -> None:
        raise RuntimeError("stop")

    network.pause.action = fail
    with pytest.raises(RuntimeError, match="stop"):
        engine(x, precision=2)
    assert network.first.bits == 8
    with pytest.raises(RuntimeError, match="stop"), bs.at(engine, 2):
        engine(x)
    assert engine.precision == bs.Precision.of(8)


def test_a_layer_outside_a_call_runs_at_the_live_precision() -> None:
    engine, network, x = halting()
    bs.switch(engine, 4)
    found = network.first(x)
    bs.switch(engine, 8)
    assert not torch.equal(network.first(x), found)


@pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")
def test_kernels_run_on_as_many_threads_as_pytorch() -> None:
    x = torch.randn(4, 8)
    model = bs.prepare(nn.Sequential(nn.Linear(8, 8)), BITS, force="*", example_inputs=x)
    bs.calibrate(model, [x])
    engine, native, before = bs.deploy(model), kernels.native, torch.get_num_threads()
    assert native is not None
    found: list[int] = []
    try:
        torch.set_num_threads(3)
        engine(x)
        run_threads([lambda: (engine(x), found.append(native.max_threads()))])
    finally:
        torch.set_num_threads(before)
    assert found == [3]


def test_no_gradients_are_recorded(model: nn.Module) -> None:
    engine = bs.deploy(model)
    assert not engine(X.clone().requires_grad_()).requires_grad
    assert torch.is_grad_enabled()


def test_what_is_derived_stays_within_the_limit(model: nn.Module) -> None:
    engine = bs.deploy(model, cache_bytes=2000)
    for precision in PRECISIONS * 2:
        bs.switch(engine, precision)
        engine(X)
        assert engine.cache.num_bytes <= 2000
    expected = {precision: engine(X, precision=precision) for precision in PRECISIONS}
    engine.cache.limit = 0
    assert engine.cache.num_bytes == 0
    assert all(torch.equal(engine(X, precision=precision), y) for precision, y in expected.items())
    assert not engine._recent


def test_precisions_come_back_as_they_were(model: nn.Module) -> None:
    engine = bs.deploy(model)
    engine(X)
    before = engine._live
    bs.switch(engine, 2)
    bs.switch(engine, 8)
    assert engine._live is before


def test_an_abandoned_engine_is_freed(model: nn.Module) -> None:
    engine = bs.deploy(model)
    engine(X, precision=2)
    stored = weakref.ref(engine.network.get_submodule("plain").stored)
    del engine
    gc.collect()
    assert stored() is None


def test_switching_copies_no_weight() -> None:
    engine, network, x = halting()
    addresses = network.first.stored.plane_addresses(8)
    for bits in BITS:
        bs.switch(engine, bits)
        engine(x)
    assert network.first.stored.plane_addresses(8) == addresses
    assert engine.cache.num_bytes == 2 * len(BITS) * (8 + 8) * 4


def test_the_plan_says_how_the_network_runs(model: nn.Module) -> None:
    engine = bs.deploy(model)
    assert engine.plan
    assert str(bs.summary(engine)).endswith(engine.plan.splitlines()[0])


def test_keyword_arguments_reach_the_network() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, *, factor: float = 1.0) -> dict[str, Tensor]:
            return {"y": self.layer(x) * factor}

    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(Scaled(), BITS, force="layer", example_inputs=x)
    bs.calibrate(model, [x])
    engine = bs.deploy(model)
    torch.testing.assert_close(engine(x, factor=2.0)["y"], 2 * engine(x=x, precision=8)["y"])


@pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")
@pytest.mark.parametrize("traced", [True, False])
def test_many_rows_use_kept_tiles_where_those_of_all_layers_fit(traced: bool) -> None:
    class Untraceable(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.sum() < torch.inf else input

    layers = [nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)]
    net = nn.Sequential(*layers) if traced else Untraceable(*layers)
    x = torch.randn(50, 20)
    network = bs.prepare(net, bits=(8, 4), example_inputs=x, first_last=8)
    bs.calibrate(network, [x])
    all_tiles = tiles_bytes(40, 20) + tiles_bytes(30, 40) + tiles_bytes(5, 30)
    keeps, lacks = bs.deploy(network), bs.deploy(network, cache_bytes=all_tiles - 1)
    for bits in (8, 4):
        for rows in (1, 8, 9, 50):
            assert torch.equal(keeps(x[:rows], precision=bits), lacks(x[:rows], precision=bits))
    kept = {key[1:] for key in keeps.cache._items if key[0] == "tiles"}
    assert kept == {("0", 8), ("2", 8), ("2", 4), ("4", 8)}
    assert not any(key[0] == "tiles" for key in lacks.cache._items)


def test_an_engine_takes_its_own_state_back(model: nn.Module) -> None:
    engine = bs.deploy(model)
    expected = engine(X)
    around = nn.Sequential(engine, nn.ReLU())
    around.load_state_dict(around.state_dict())
    engine.load_state_dict(engine.state_dict())
    assert torch.equal(engine(X), expected)
    assert not any(name.endswith("planes") for name in engine.state_dict())


class _Head(nn.Module):
    """Reads the weight of another layer once it is told to: where it did so from the start, that would stay float."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.reads = False

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.table.weight) if self.reads else x


def test_copies_read_weights_at_their_precision() -> None:
    table = nn.Embedding(10, 8)
    tokens = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(table, nn.Linear(8, 8), nn.ReLU(), _Head(table))
    model = bs.prepare(network, BITS, force="*", example_inputs=tokens)
    bs.calibrate(model, [tokens])
    head: Any = model.get_submodule("3")
    head.reads = True
    engine = bs.deploy(model)
    copied = copy.deepcopy(engine)
    for bits in BITS:
        bs.switch(engine, bits)
        bs.switch(copied, bits)
        assert copied(tokens).shape == (2, 5, 10)
        assert torch.equal(copied(tokens), engine(tokens))
