from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import checkpoint
from bitswitch.checkpoint import opening
from bitswitch.checkpoint.config import read_config
from bitswitch.errors import (
    ArgumentError,
    CheckpointError,
    MissingPlanesError,
    PrecisionError,
    PrepareError,
)
from bitswitch.layers import iter_layers
from bitswitch.layers.table import state_of
from bitswitch.mixed import extract

Make = Callable[..., nn.Module]
MIXED = bs.Precision.of({"grouped": 8, "up": 2, "a": 6}, default=4)


def assert_same(model: nn.Module, loaded: nn.Module, x: Tensor, precisions: tuple = (8, 6, 4, 2, MIXED)) -> None:
    for precision in precisions:
        bs.switch(model, precision)
        bs.switch(loaded, precision)
        layers = dict(iter_layers(loaded))
        for name, layer in iter_layers(model):
            assert layers[name].bits == layer.bits
            assert torch.equal(layers[name].weight_codes(), layer.weight_codes())
            assert torch.equal(layers[name].quantized_weight(), layer.quantized_weight())
        assert torch.equal(model(x), loaded(x))


OPTIONS = [
    {},
    {"granularity": "channel"},
    {"granularity": {"a": "group", "*": "tensor"}, "group_size": 3},
    {"first_last": 8},
    {"scale_parametrization": "raw"},
    {"activations": False},
    {"shared": False},
    {"bits": (4, 3, 2)},
    {"midrise": (4, 2)},
    {"activation_bits": {4: 6, 2: 8}},
    {"activation_bits": {2: 4}, "first_last": 8, "midrise": (2,)},
    {"bits": (2,), "midrise": (2,)},
    {"midrise": (6, 2), "shared": False},
    {"bits": (8,)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saved_and_loaded_is_bit_identical(options: dict, tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained(**options)
    bits = options.get("bits", (8, 6, 4, 2))
    checkpoint.save(model, tmp_path)
    checkpoint.verify(tmp_path)
    into = net()
    before = {name: tensor.clone() for name, tensor in into.state_dict().items()}
    loaded = checkpoint.load(tmp_path, into=into, bits=bits[-1])
    assert type(loaded) is type(into)
    assert not loaded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in into.state_dict().items())
    mixed = (MIXED,) if bits == (8, 6, 4, 2) else ()
    assert_same(model, loaded, x, (*bits[::-1], *mixed))
    if options.get("shared", True):
        assert all(layer.is_frozen for _, layer in iter_layers(loaded))
        assert loaded.c.codes is loaded.b.codes
    assert state_of(loaded).table.to_json() == state_of(model).table.to_json()
    assert state_of(loaded).options == state_of(model).options


def test_unfrozen_outputs_are_the_same_and_train(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, into=net(), bits=4)
    with pytest.raises(PrepareError, match="8 bits first"):
        bs.unfreeze(loaded)
    bs.switch(loaded, 8)
    bs.unfreeze(loaded)
    assert loaded.c.weight is loaded.b.weight
    assert_same(model, loaded, x)
    loaded(x).sum().backward()
    assert loaded.b.weight.grad is not None
    checkpoint.save(loaded, tmp_path / "again")
    assert_same(model, checkpoint.load(tmp_path / "again", into=net()), x)


def test_saving_is_deterministic_and_a_loaded_model_saves_the_same_files(
    tmp_path: Path, trained: Make, net: Make
) -> None:
    model = trained()
    for name in ("one", "two"):
        checkpoint.save(model, tmp_path / name, architecture={"name": "net"})
    loaded = checkpoint.load(tmp_path / "one", into=net())
    checkpoint.save(loaded, tmp_path / "three", architecture={"name": "net"})
    contents = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two", "three")]
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == 10


def test_only_the_planes_that_are_needed_are_read(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    aside = tmp_path / "aside"
    aside.mkdir()
    files = {i: next(tmp_path.glob(f"plane-{i}-*")) for i in (5, 6, 7)}
    for path in files.values():
        path.rename(aside / path.name)
    loaded = checkpoint.load(tmp_path, into=net(), bits=4)
    assert {layer.num_planes for _, layer in iter_layers(loaded)} == {5}
    assert_same(model, loaded, x, (4, 2, 4))
    info = checkpoint.read_info(tmp_path)
    assert info.bits_available == checkpoint.checkpoint_bits_available(tmp_path) == (4, 2)
    assert info.planes_missing == (5, 6, 7)
    assert set(info.missing) == {path.name for path in files.values()}

    with pytest.raises(MissingPlanesError) as caught:
        checkpoint.load(tmp_path, into=net(), bits=6)
    assert files[5].name in str(caught.value)
    assert files[6].name in str(caught.value)
    assert files[7].name not in str(caught.value)

    before = {name: layer.codes.clone() for name, layer in iter_layers(loaded)}
    for precision in (8, bs.Precision.of({"a": 6}, default=4)):
        with pytest.raises(MissingPlanesError, match=r"plane-5-\w{16}\.safetensors"):
            bs.switch(loaded, precision)
        assert all(torch.equal(before[n], layer.codes) and layer.bits == 4 for n, layer in iter_layers(loaded))
        assert {layer.num_planes for _, layer in iter_layers(loaded)} == {5}

    for path in files.values():
        (aside / path.name).rename(path)
    bs.switch(loaded, {"a": 6}, default=4)
    assert {n: layer.num_planes for n, layer in iter_layers(loaded)} == {"grouped": 5, "up": 5, "a": 7, "b": 5, "c": 5}
    assert_same(model, loaded, x)


def test_a_midrise_width_needs_no_plane_more_than_it_has_bits(
    tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained(midrise=(2,))
    checkpoint.save(model, tmp_path, precision=2)
    assert len(list(tmp_path.glob("plane-*"))) == 2
    loaded = checkpoint.load(tmp_path, into=net())
    assert {layer.num_planes for _, layer in iter_layers(loaded)} == {2}
    assert_same(model, loaded, x, (2,))
    for _, layer in iter_layers(loaded):
        levels = layer.quantized_weight() / (layer.weight_quantizer.scale.value() * 2.0**5)
        assert set(levels.flatten().tolist()) <= {-3.0, -1.0, 1.0, 3.0}
    with pytest.raises(MissingPlanesError):
        bs.switch(loaded, 4)


def test_a_damaged_plane_stops_a_switch_and_changes_nothing(
    tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, into=net(), bits=4)
    path = next(tmp_path.glob("plane-7-*"))
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="plane-7.*altered"):
        bs.switch(loaded, 8)
    assert {(layer.bits, layer.num_planes) for _, layer in iter_layers(loaded)} == {(4, 5)}
    bs.switch(loaded, 6)
    assert_same(model, loaded, x, (6, 4, 2))


def test_planes_of_another_checkpoint_are_never_mixed_in(tmp_path: Path, trained: Make, net: Make) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, into=net(), bits=2)
    with torch.no_grad():
        for _, layer in iter_layers(model):
            layer.weight.add_(torch.randn_like(layer.weight) * 0.1)
    checkpoint.save(model, tmp_path)
    with pytest.raises(MissingPlanesError, match="plane-3"):
        bs.switch(loaded, 8)


def test_pinned_layers_do_not_need_the_low_planes(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained(first_last=8)
    checkpoint.save(model, tmp_path)
    for i in (5, 6, 7):
        next(tmp_path.glob(f"plane-{i}-*")).unlink()
    assert_same(model, checkpoint.load(tmp_path, into=net(), bits=4), x, (4, 2))
    assert checkpoint.checkpoint_bits_available(tmp_path) == (4, 2)


class TestSubNets:
    def test_a_layer_is_left_out_of_the_planes_that_it_does_not_need(
        self, tmp_path: Path, trained: Make, net: Make, x: Tensor
    ) -> None:
        model = trained()
        precision = bs.Precision.of({"grouped": 4, "up": 2}, default=6)
        checkpoint.save(model, tmp_path, precision=precision)
        config = checkpoint.verify(tmp_path)
        assert {n: w.planes for n, w in config.weights.items()} == {"grouped": 5, "up": 3, "a": 7, "b": 7}
        assert len(config.planes) == 7
        loaded = checkpoint.load(tmp_path, into=net())
        assert state_of(loaded).precision == precision
        assert_same(model, loaded, x, (precision, 2, precision))
        assert checkpoint.checkpoint_bits_available(tmp_path) == (2,)
        with pytest.raises(MissingPlanesError, match=r"'grouped' needs 7 .* saved with 5"):
            bs.switch(loaded, 6)
        with pytest.raises(MissingPlanesError, match="saved with"):
            checkpoint.load(tmp_path, into=net(), bits=8)

    def test_tied_layers_keep_what_either_needs(self, tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
        model = trained()
        precision = bs.Precision.of({"b": 2, "c": 6}, default=4)
        checkpoint.save(model, tmp_path, precision=precision)
        assert_same(model, checkpoint.load(tmp_path, into=net()), x, (precision,))

    def test_a_partly_opened_model_keeps_what_it_has(self, tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
        model = trained()
        checkpoint.save(model, tmp_path / "full")
        part = checkpoint.load(tmp_path / "full", into=net(), bits=4)
        checkpoint.save(part, tmp_path / "part")
        assert len(list((tmp_path / "part").glob("plane-*"))) == 5
        assert_same(model, checkpoint.load(tmp_path / "part", into=net()), x, (4, 2))
        with pytest.raises(MissingPlanesError, match="needs 8 bit planes"):
            checkpoint.save(part, tmp_path / "more", precision=8)
        assert not (tmp_path / "more").exists()

    def test_the_planes_it_came_from_are_not_deleted(self, tmp_path: Path, trained: Make, net: Make) -> None:
        model = trained()
        checkpoint.save(model, tmp_path)
        before = sorted(path.name for path in tmp_path.iterdir())
        part = checkpoint.load(tmp_path, into=net(), bits=4)
        with pytest.raises(CheckpointError, match="would delete the others"):
            checkpoint.save(part, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        bs.switch(part, 8)
        checkpoint.save(part, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_planes_behind_a_missing_one_are_not_deleted(self, tmp_path: Path, trained: Make, net: Make) -> None:
        checkpoint.save(trained(), tmp_path)
        next(tmp_path.glob("plane-5*")).unlink()
        before = sorted(path.name for path in tmp_path.iterdir())
        part = checkpoint.load(tmp_path, into=net(), bits=4)
        with pytest.raises(CheckpointError, match="would delete the others"):
            checkpoint.save(part, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    @pytest.mark.parametrize("copied", [False, True])
    def test_planes_that_are_elsewhere_fit_again(
        self, copied: bool, tmp_path: Path, trained: Make, net: Make, x: Tensor
    ) -> None:
        model = trained()
        checkpoint.save(model, tmp_path / "net")
        device = tmp_path / "device"
        shutil.copytree(tmp_path / "net", device)
        for i in (5, 6, 7):
            next(device.glob(f"plane-{i}-*")).unlink()
        part = checkpoint.load(device, into=net(), bits=4)
        target = shutil.copytree(device, tmp_path / "copy") if copied else device
        before = {path.name: path.read_bytes() for path in target.iterdir()}
        with pytest.raises(CheckpointError, match=r"5 bit planes .* not fit any more: plane-5.*plane-7.* copy them"):
            checkpoint.save(part, target)
        with pytest.raises(CheckpointError, match="delete the others"):
            checkpoint.save(part, tmp_path / "net")
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        shutil.copytree(tmp_path / "net", target, dirs_exist_ok=True)
        checkpoint.verify(tmp_path / "net")
        assert_same(model, checkpoint.load(target, into=net()), x)

    def test_another_checkpoint_in_the_folder_may_be_replaced(
        self, tmp_path: Path, trained: Make, net: Make, x: Tensor
    ) -> None:
        model = trained()
        checkpoint.save(model, tmp_path)
        part = checkpoint.load(tmp_path, into=net(), bits=4)
        other = trained()
        with torch.no_grad():
            for _, layer in iter_layers(other):
                layer.weight.neg_()
        checkpoint.save(other, tmp_path)
        checkpoint.save(part, tmp_path)
        # Now it is of five planes, and so is the model.
        checkpoint.save(checkpoint.load(tmp_path, into=net()), tmp_path)
        assert_same(model, checkpoint.load(tmp_path, into=net()), x, (4, 2))

    def test_a_damaged_configuration_may_be_replaced(self, tmp_path: Path, trained: Make, net: Make) -> None:
        checkpoint.save(trained(), tmp_path)
        part = checkpoint.load(tmp_path, into=net(), bits=4)
        for i in (5, 6, 7):
            next(tmp_path.glob(f"plane-{i}-*")).unlink()
        config = tmp_path / "config.json"
        config.write_bytes(config.read_bytes()[:-9])
        checkpoint.save(part, tmp_path)
        assert len(checkpoint.verify(tmp_path).planes) == 5

    def test_a_subnet_is_saved_to_its_own_folder_again(self, tmp_path: Path, trained: Make, net: Make) -> None:
        checkpoint.save(trained(), tmp_path / "net")
        loaded = checkpoint.load(tmp_path / "net", into=net(), bits=4)
        for bits in (4, 8):
            alone = extract(loaded, bits)
            for _ in range(2):
                checkpoint.save(alone, tmp_path / f"only-{bits}")
            with pytest.raises(CheckpointError, match="all other widths"):
                checkpoint.save(alone, tmp_path / "net")

    def test_tied_layers_are_saved_after_a_move(self, tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
        model = trained()
        checkpoint.save(model, tmp_path / "own")
        loaded = checkpoint.load(tmp_path / "own", into=net())
        # As a move to another device does.
        loaded._apply(lambda tensor: tensor.clone())
        assert loaded.get_submodule("b").codes is not loaded.get_submodule("c").codes
        checkpoint.save(loaded, tmp_path / "moved")
        assert_same(model, checkpoint.load(tmp_path / "moved", into=net()), x)
        loaded.get_submodule("c").codes[0] += 1  # pyright: ignore
        with pytest.raises(CheckpointError, match="no longer shares its weight"):
            checkpoint.save(loaded, tmp_path / "other")

    def test_a_refused_model_leaves_no_files(self, tmp_path: Path, trained: Make) -> None:
        model = trained()
        checkpoint.save(model, tmp_path)
        before = sorted(path.name for path in tmp_path.iterdir())
        with torch.no_grad():
            model.get_parameter("a.bias").add_(1)
            model.get_parameter("a.weight").view(-1)[0] = torch.nan
        with pytest.raises(CheckpointError, match="layer 'a' has NaN"):
            checkpoint.save(model, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_half_precision_with_an_embedding(tmp_path: Path) -> None:
    def language_net() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()

    tokens = torch.tensor([[1, 8, 0]])
    model = bs.prepare(language_net(), example_inputs=tokens, force="0").eval()
    bs.calibrate(model, [tokens])
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, into=language_net(), bits=2)
    for bits in (2, 8):
        bs.switch(model, bits)
        bs.switch(loaded, bits)
        assert torch.equal(loaded(tokens), model(tokens))
    bs.unfreeze(loaded)
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded[1].weight.dtype == torch.bfloat16


def test_half_precision_and_odd_state(tmp_path: Path, net: Make, x: Tensor) -> None:
    model = bs.prepare(net(), example_inputs=x)
    bs.calibrate(model, [x])
    model.eval().to(torch.bfloat16)
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, into=net().to(torch.bfloat16), bits=2)
    for bits in (8, 2):
        bs.switch(model, bits)
        bs.switch(loaded, bits)
        assert torch.equal(model(x.bfloat16()), loaded(x.bfloat16()))


class OnGpu(Tensor):
    """Says that it is on a GPU, on machines without one too."""

    device = property(lambda tensor: torch.device("cuda", 0))  # pyright: ignore[reportAssignmentType]


def test_quantizers_go_where_the_weights_were(
    tmp_path: Path, trained: Make, net: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(trained(), tmp_path)
    moved: dict[nn.Module | None, torch.device] = {}
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved.setdefault(module, device) and module)
    into, config = net(), read_config(tmp_path)
    model = opening._switchable_copy(into, tmp_path, config)
    layers = [layer for _, layer in iter_layers(model)]
    quantizers = {quantizer for layer in layers for quantizer in (layer.weight_quantizer, layer.input_quantizer)}
    assert moved == dict.fromkeys(quantizers, torch.device("cpu"))
    moved.clear()
    for entry in config.table.select("quantized"):
        layer = into.get_submodule(entry.name)
        layer.weight = nn.Parameter(layer.get_parameter("weight").detach().as_subclass(OnGpu))
    opening._move_quantizers(model, into)
    assert moved == dict.fromkeys(quantizers, torch.device("cuda", 0))


def test_links_to_regular_files_are_followed(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    checkpoint.save(model, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(os.path.join("..", "blobs", path.name))
    assert_same(model, checkpoint.load(tmp_path / "snapshot", into=net()), x)


def test_no_descriptor_stays_open(tmp_path: Path, trained: Make, net: Make) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    checkpoint.save(trained(), tmp_path)
    checkpoint.load(tmp_path, into=net(), bits=4)
    before = len(list(folder.iterdir()))
    for _ in range(3):
        loaded = checkpoint.load(tmp_path, into=net(), bits=4)
        bs.switch(loaded, 8)
        checkpoint.save(loaded, tmp_path)
        with pytest.raises(PrecisionError):
            checkpoint.load(tmp_path, into=net(), bits=5)
    next(tmp_path.glob("base-*")).write_bytes(b"")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path, into=net())
    assert len(list(folder.iterdir())) == before


def test_sizes(tmp_path: Path) -> None:
    convs = [nn.Conv2d(64, 64, 3, bias=False) for _ in range(8)]
    net = nn.Sequential(nn.Conv2d(3, 64, 1), *[m for conv in convs for m in (conv, nn.ReLU())], nn.Conv2d(64, 2, 1))
    model = bs.prepare(net, example_inputs=torch.zeros(1, 3, 20, 20), activations=False)
    checkpoint.save(model, tmp_path)
    info = checkpoint.read_info(tmp_path)
    assert info.num_weights == 8 * 64 * 64 * 9
    stored = sum(size for name, size in info.files.items() if name.startswith("plane-"))
    assert info.num_weights < stored < 1.02 * info.num_weights
    ideal = {8: 8, 6: 7, 4: 5, 2: 3}
    rest = info.files["config.json"] + info.config.base.size
    for bits, planes in ideal.items():
        assert info.bytes_at[bits] - rest == pytest.approx(info.num_weights * planes / 8, rel=0.02)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == info.bytes_at[8] == sum(info.files.values())
    assert info.float_bytes == info.config.base.size + 4 * info.num_weights


def test_what_a_checkpoint_opens_at(tmp_path: Path, trained: Make, net: Make) -> None:
    model = trained()
    bs.switch(model, 2)  # the width of the moment is not what is stored
    checkpoint.save(model, tmp_path / "all")
    assert state_of(checkpoint.load(tmp_path / "all", into=net())).precision == bs.Precision.of(8)
    partial = checkpoint.load(tmp_path / "all", into=net(), bits=4)
    bs.switch(partial, 2)
    checkpoint.save(partial, tmp_path / "partial")
    assert state_of(checkpoint.load(tmp_path / "partial", into=net())).precision == bs.Precision.of(4)
    with pytest.raises(ArgumentError, match="architecture= must be JSON"):
        checkpoint.save(model, tmp_path / "none", architecture=nn.Linear)
    assert not (tmp_path / "none").exists()
