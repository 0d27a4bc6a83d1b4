from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import bitswitch as bs
from bitswitch.errors import (
    ArgumentError,
    CalibrationError,
    CheckpointError,
    MissingPlanesError,
    PrecisionError,
    PrepareError,
    UnknownLayerError,
)
from tests.runtime._networks import BITS, images, meta, mixed

X = images()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def outputs(model: nn.Module) -> dict[int, torch.Tensor]:
    found = {}
    for bits in BITS:
        bs.switch(model, bits)
        with torch.no_grad():
            found[bits] = model(X)
    return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mixed()


@pytest.fixture(scope="module")
def folder(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deploy") / "net"
    bs.switch(model, 8)
    bs.save(model, path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_last": 8},
        {"granularity": "channel"},
        {"granularity": {"[abc]": "group", "*": "channel"}, "group_size": 2},
        {"granularity": {"plain": "group", "grouped": "group", "up": "group"}, "group_size": 6},
        {"scale_parametrization": "raw"},
        {"midrise": (2,)},
        {"activation_bits": {8: 5, 2: 4}},
        {"activation_bits": {4: 8, 2: 8}, "midrise": (2,)},
        {"midrise": (4, 2), "granularity": "channel", "first_last": 8},
    ],
    ids=str,
)
def test_every_width_agrees_with_the_model(options: dict[str, Any], tmp_path: Path) -> None:
    model = mixed(**options)
    expected = outputs(model)
    engine = bs.deploy(model)
    bs.save(model, tmp_path)
    opened = bs.deploy(tmp_path, into=meta(), bits=2)
    assert opened.precision == bs.Precision.of(2)
    for bits in BITS:
        # Float sums around the integers differ in their order; in this network no code flips from it.
        close(engine(X, precision=bits), expected[bits])
        bs.switch(opened, bits)
        assert torch.equal(opened(X), engine(X, precision=bits))


def test_layers_have_widths_of_their_own(model: nn.Module) -> None:
    engine = bs.deploy(model)
    precision = {"plain": 8, "b": 2}
    with bs.at(model, precision, default=4), torch.no_grad():
        expected = model(X)
    with bs.at(engine, precision, default=4):
        close(engine(X), expected)
        assert engine.network.get_submodule("b").bits == 2
    close(engine(X, precision=bs.Precision.of(precision, 4)), expected)


def test_no_float_weight_is_left(model: nn.Module) -> None:
    engine = bs.deploy(model)
    large = {name for name, tensor in engine.network.named_parameters() if tensor.dim() > 1}
    assert large == {"stem.weight", "head.weight"}
    weights = [tuple(t.shape) for m in engine.modules() for t in m.__dict__.values() if isinstance(t, torch.Tensor)]
    assert weights == []


def test_the_model_stays_as_it_is(model: nn.Module) -> None:
    before = outputs(model)
    engine = bs.deploy(model, bits=4)
    engine(X, precision=2)
    bs.switch(model, 8)
    assert engine.precision == bs.Precision.of(4)
    after = outputs(model)
    assert all(torch.equal(before[bits], after[bits]) for bits in BITS)
    assert model.get_submodule("plain").weight.requires_grad


def test_the_network_of_an_engine_follows_its_switches(model: nn.Module) -> None:
    engine = bs.deploy(model)
    results = []
    for bits in BITS:
        bs.switch(engine, bits)
        results.append(engine.network(X))
        close(results[-1], outputs(model)[bits])
    assert not torch.equal(results[0], results[-1])


def test_tied_layers_share_their_planes(model: nn.Module, folder: Path) -> None:
    for engine in (bs.deploy(model), bs.deploy(folder, into=meta())):
        assert engine.network.get_submodule("b").stored is engine.network.get_submodule("c").stored


def test_a_loaded_model_reads_further_planes_from_its_folder(folder: Path) -> None:
    loaded = bs.load(folder, into=meta(), bits=2)
    engine = bs.deploy(loaded)
    assert engine.network.get_submodule("plain").num_planes == 3
    close(engine(X, precision=8), outputs(bs.load(folder, into=meta()))[8])
    assert engine.network.get_submodule("plain").num_planes == 8


def test_planes_that_are_missing_are_named_and_nothing_changes(model: nn.Module, folder: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    for file in folder.iterdir():
        if not file.name.startswith(("plane-5", "plane-6", "plane-7")):
            (partial / file.name).write_bytes(file.read_bytes())
    engine = bs.deploy(partial, into=meta(), bits=4)
    expected = engine(X)
    for precision in (8, 6, bs.Precision.of({"a": 8}, 4)):
        with pytest.raises(MissingPlanesError, match="plane-5-"):
            bs.switch(engine, precision)
        with pytest.raises(MissingPlanesError):
            engine(X, precision=precision)
    assert engine.precision == bs.Precision.of(4)
    assert torch.equal(engine(X), expected)
    assert {layer.num_planes for _, layer in _layers(engine)} == {5}
    with pytest.raises(MissingPlanesError, match="plane-7-"):
        bs.deploy(partial, into=meta())
    # As soon as the files are there, the engine reads them.
    for file in folder.iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    bs.switch(engine, 8)
    close(engine(X), outputs(model)[8])


def _layers(engine: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in engine.named_modules() if hasattr(module, "stored")]


def test_a_model_saved_for_a_low_width_stays_there(tmp_path: Path) -> None:
    bs.save(mixed(), tmp_path, precision=2)
    engine = bs.deploy(tmp_path, into=meta())
    assert engine.precision == bs.Precision.of(2)
    with pytest.raises(MissingPlanesError):
        bs.switch(engine, 4)


def test_precisions_are_checked_first(model: nn.Module, folder: Path) -> None:
    engine = bs.deploy(model)
    for source, options in ((model, {}), (folder, {"into": meta()})):
        with pytest.raises(PrecisionError, match="not prepared for 3 bits"):
            bs.deploy(source, bits=3, **options)
    with pytest.raises(PrecisionError):
        engine(X, precision=3)
    with pytest.raises(UnknownLayerError, match="plain"):
        bs.switch(engine, {"plan": 4}, default=2)
    with pytest.raises(ArgumentError):
        bs.switch(engine, "4")  # pyright: ignore[reportArgumentType]
    assert engine.precision.default in BITS


def test_widths_without_common_integers_are_refused(tmp_path: Path) -> None:
    model = mixed(shared=False)
    with pytest.raises(PrepareError, match="no common integers"):
        bs.deploy(model)
    bs.save(model, tmp_path)
    with pytest.raises(PrepareError, match="no common integers"):
        bs.deploy(tmp_path, into=meta())


def test_float_inputs_need_to_be_asked_for(tmp_path: Path) -> None:
    model = mixed(activations=False)
    with pytest.raises(PrepareError, match="plain, depth, grouped.*dynamic=True"):
        bs.deploy(model)
    engine = bs.deploy(model, dynamic=True)
    for bits, expected in outputs(model).items():
        close(engine(X, precision=bits), expected, 0.05)
    bs.save(model, tmp_path)
    assert torch.equal(bs.deploy(tmp_path, into=meta(), dynamic=True)(X, precision=4), engine(X, precision=4))


def test_arguments_are_checked(model: nn.Module, folder: Path) -> None:
    with pytest.raises(ArgumentError, match="into="):
        bs.deploy(folder)
    with pytest.raises(ArgumentError, match="into="):
        bs.deploy(model, into=meta())
    with pytest.raises(ArgumentError, match="model or the folder"):
        bs.deploy(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="cache_bytes"):
        bs.deploy(model, cache_bytes=-1)
    with pytest.raises(PrepareError, match="not prepared"):
        bs.deploy(nn.Linear(2, 2))
    with pytest.raises(PrepareError, match="engine"):
        bs.deploy(bs.deploy(model))
    with pytest.raises(CheckpointError, match="architecture"):
        bs.deploy(folder, into=nn.Linear(2, 2))


def test_scales_must_be_there() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = bs.prepare(net, example_inputs=torch.zeros(1, 4))
    with pytest.raises(CalibrationError, match="calibrate"):
        bs.deploy(model)


def test_a_buffer_that_checkpoints_do_not_have_needs_a_value(tmp_path: Path) -> None:
    class WithTable(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
            self.register_buffer("table", torch.zeros(2), persistent=False)

    model = bs.prepare(WithTable(), example_inputs=torch.zeros(1, 4))
    bs.calibrate(model, [torch.randn(8, 4)])
    bs.save(model, tmp_path)
    with torch.device("meta"):
        into = WithTable()
    with pytest.raises(PrepareError, match="'table'.*persistent=False"):
        bs.load(tmp_path, into=into)
    into.table = torch.zeros(2)
    assert bs.load(tmp_path, into=into)(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"first_last": 8}], ids=str)
def test_loading_into_the_meta_device_is_loading(options: dict[str, Any], tmp_path: Path) -> None:
    model = mixed(**options)
    bs.save(model, tmp_path)
    loaded = bs.load(tmp_path, into=meta())
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded).values(), outputs(model).values(), strict=True))
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    if options.get("shared", True):
        bs.unfreeze(loaded)
    loaded(X).sum().backward()


def test_verbs_that_need_float_weights_refuse_an_engine(model: nn.Module, tmp_path: Path) -> None:
    engine = bs.deploy(model)
    for act in (
        lambda: bs.save(engine, tmp_path),
        lambda: bs.calibrate(engine, [X]),
        lambda: bs.unfreeze(engine),
        lambda: bs.JointTrainer(engine, lambda m, b: m(b).sum(), total_steps=1),
    ):
        with pytest.raises(PrepareError, match="engine"):
            act()
    with pytest.raises(PrepareError, match="prepared already"):
        bs.prepare(engine)
    layer = engine.network.get_submodule("plain")
    with pytest.raises(PrepareError, match="read-only"):
        layer.weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(PrepareError, match="trainable"):
        layer.unfreeze()


def test_summary_and_evaluate_take_an_engine(model: nn.Module) -> None:
    engine = bs.deploy(model, bits=4)
    assert str(bs.summary(engine)).startswith(str(bs.summary(model)))
    batches = [(X, torch.tensor([0, 1, 2, 0]))]
    found = bs.evaluate(engine, batches)
    assert found == bs.evaluate(model, batches)
    assert engine.precision == bs.Precision.of(4)
    assert not engine.training


def test_copies_switch_on_their_own(model: nn.Module) -> None:
    engine = bs.deploy(model, bits=4)
    twin = copy.deepcopy(engine)
    bs.switch(twin, 2)
    assert engine.precision == bs.Precision.of(4)
    assert torch.equal(twin(X), engine(X, precision=2))
    assert torch.equal(twin(X, precision=4), engine(X))
    assert twin.network.get_submodule("a").stored is engine.network.get_submodule("a").stored


def test_pickling_says_what_to_do_instead(model: nn.Module) -> None:
    with pytest.raises(PrepareError, match=r"bitswitch\.save"):
        pickle.dumps(bs.deploy(model))


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Let PyTorch make other tensors by default, as while a network is built that is to have them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")]
)
def test_engines_do_not_depend_on_defaults(
    model: nn.Module, tmp_path: Path, fuse: bool, dtype: torch.dtype, device: str
) -> None:
    bs.save(model, tmp_path)
    expected = {bits: bs.deploy(model, fuse=fuse)(X, precision=bits) for bits in BITS}
    skeleton = meta()
    with defaults(dtype, device):
        engines = [bs.deploy(model, fuse=fuse), bs.deploy(tmp_path, into=skeleton, fuse=fuse)]
        inside = [{bits: engine(X, precision=bits) for bits in BITS} for engine in engines]
    after = [{bits: engine(X, precision=bits) for bits in BITS} for engine in engines]
    for found in (*inside, *after):
        assert all(torch.equal(found[bits], expected[bits]) for bits in BITS)


@pytest.mark.parametrize("fuse", [True, False])
def test_compiled_code_calls_engines_as_they_are(model: nn.Module, fuse: bool) -> None:
    engine = bs.deploy(model, bits=4, fuse=fuse)
    compiled = torch.compile(lambda x, bits: 2 * engine(x + 0, precision=bits), backend="eager")
    for bits in (4, 2):
        assert torch.equal(compiled(X, bits), 2 * engine(X, precision=bits))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    "trace",
    [
        torch.jit.trace,
        torch.export.export,
        lambda engine, args: make_fx(engine)(*args),
        lambda engine, args: make_fx(engine, pre_dispatch=True)(*args),
        lambda engine, args: engine(FakeTensorMode(allow_non_fake_inputs=True).from_tensor(*args)),
    ],
)
def test_engines_are_not_traced(model: nn.Module, trace: Callable[..., Any], fuse: bool) -> None:
    with pytest.raises(PrepareError, match="cannot be traced or exported"):
        trace(bs.deploy(model, fuse=fuse), (X,))


def test_engines_run_while_others_compile_or_count(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bs.deploy(model)
    expected = engine(X)
    with FlopCounterMode(display=False):
        assert torch.equal(engine(X), expected)
    # Of the process, so that it is true here while another thread compiles or exports.
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    assert torch.equal(engine(X), expected)


def test_engines_stay_on_the_cpu_in_float32(model: nn.Module) -> None:
    engine = bs.deploy(model)
    assert engine.to("cpu") is engine
    assert engine.float() is engine
    for move in (lambda: engine.to("meta"), engine.half, lambda: engine.to(torch.bfloat16), engine.double):
        with pytest.raises(PrepareError, match="CPU in float32"):
            move()
    with pytest.raises(PrepareError, match="CPU"):
        engine.to("cuda")
    with pytest.raises(PrepareError, match="CPU"):
        engine.cuda()
    assert not engine.train().training


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("options", [{"first_last": 8}, {"first_last": 8, "activations": False}], ids=str)
def test_inputs_on_other_devices_are_refused(fuse: bool, options: dict[str, Any]) -> None:
    engine = bs.deploy(mixed(**options), fuse=fuse, dynamic=True)
    with pytest.raises(ArgumentError, match="must be on the CPU, not on meta"):
        engine(X.to("meta"))


def test_the_weight_of_a_layer_can_be_looked_at(model: nn.Module) -> None:
    engine = bs.deploy(model, bits=4)
    bs.switch(model, 4)
    for name in ("plain", "grouped", "up", "b"):
        expected: Any = model.get_submodule(name)
        layer: Any = engine.network.get_submodule(name)
        assert torch.equal(layer.weight, expected.quantized_weight())
        assert torch.equal(layer.weight_codes(2), expected.weight_codes(2))
        assert isinstance(layer, type(expected).__mro__[2])


def test_wrapped_models_are_taken(model: nn.Module) -> None:
    bs.switch(model, 8)
    assert torch.equal(bs.deploy(nn.DataParallel(model))(X), bs.deploy(model)(X))
