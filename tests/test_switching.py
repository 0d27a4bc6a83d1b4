"""switch and at: all or nothing, restored after exceptions, and right for every layer and BatchNorm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.errors import ArgumentError, PrecisionError, PrepareError, UnknownLayerError
from bitswitch.layers.base import iter_layers
from bitswitch.layers.table import state_of
from bitswitch.mixed import extract
from tests.networks import QUANTIZED, images, residual


@pytest.fixture
def model() -> nn.Module:
    prepared = bs.prepare(residual(), bits=(8, 6, 4, 2), example_inputs=images())
    bs.calibrate(prepared, [images(16)])
    return prepared


def widths(model: nn.Module) -> dict[str, int]:
    names = [*QUANTIZED, "stem_bn", "bn1", "bn2", "project_bn"]
    return {name: int(model.get_submodule(name).bits) for name in names}  # pyright: ignore[reportArgumentType]


def test_a_prepared_model_starts_at_its_largest_width(model: nn.Module) -> None:
    assert set(widths(model).values()) == {8}
    assert state_of(model).precision == bs.Precision.of(8)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_uniform(model: nn.Module, bits: int) -> None:
    bs.switch(model, bits)
    assert set(widths(model).values()) == {bits}


def test_per_layer_and_what_batchnorm_follows(model: nn.Module) -> None:
    bs.switch(model, {"conv1": 2, "project": 6}, default=4)
    assert widths(model) == {
        "conv1": 2,
        "conv2": 4,
        "project": 6,
        "stem_bn": 2,
        "bn1": 2,
        "bn2": 4,
        "project_bn": 6,
    }


class Twice(nn.Module):
    """One module under two names, and one that stays float under two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.again, self.last = self.body, self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(torch.relu(self.body(torch.relu(self.first(x))))))


def test_a_name_that_has_no_widths_is_explained(model: nn.Module, tmp_path: Path) -> None:
    network = Twice()
    twice = bs.prepare(network, (8, 4, 2), example_inputs=torch.zeros(1, 4))
    bs.calibrate(twice, [torch.randn(8, 4)])
    bs.save(twice, tmp_path)
    engine = bs.deploy(twice)
    has_none = "stays in full precision and has no widths"
    for name, message in {
        "first": f"layer 'first' {has_none}: first layer",
        "again": "'again' is another name of layer 'body'; name that",
        "last": f"'last' is another name of layer 'head'; layer 'head' {has_none}: last layer",
        "firs": "no quantized layer is called 'firs'; the 1 quantized layers are 'body'",
    }.items():
        asked = bs.Precision.of({name: 4}, default=2)
        for function in (
            lambda p: bs.switch(twice, p),
            lambda p: bs.switch(engine, p),
            lambda p: bs.evaluate(engine, [], p),
            lambda p: bs.deploy(twice, bits=p),
            lambda p: bs.deploy(tmp_path, into=network, bits=p),
            lambda p: bs.load(tmp_path, into=network, bits=p),
            lambda p: bs.save(twice, tmp_path / "other", precision=p),
            lambda p: extract(twice, p),
        ):
            with pytest.raises(UnknownLayerError) as error:
                function(asked)
            assert str(error.value) == message
    with pytest.raises(UnknownLayerError, match="'bn1' has no width of its own: it follows layer 'conv1'"):
        bs.switch(model, {"bn1": 4}, default=2)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ((5,), PrecisionError),
        ((3,), PrecisionError),
        (({"conv1": 4},), PrecisionError),
        (({"conv1": 4, "conv2": 5}, 4), PrecisionError),
        (({"conv1": 4, "stem": 8}, 4), UnknownLayerError),
        (({"bn1": 4}, 4), UnknownLayerError),
        (("4",), ArgumentError),
        ((4.0,), ArgumentError),
        ((None,), ArgumentError),
        ((4, 2), ArgumentError),
    ],
)
def test_a_bad_request_changes_nothing(model: nn.Module, request_: tuple[object, ...], error: type[Exception]) -> None:
    bs.switch(model, {"conv1": 2}, default=6)
    before, precision = widths(model), state_of(model).precision
    with pytest.raises(error):
        bs.switch(model, *request_)  # pyright: ignore[reportArgumentType]
    with pytest.raises(error), bs.at(model, *request_):  # pyright: ignore[reportArgumentType]
        raise AssertionError("the context must not be entered")
    assert widths(model) == before
    assert state_of(model).precision == precision


def test_layers_that_were_replaced_are_named(model: nn.Module) -> None:
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    with pytest.raises(PrepareError, match="BatchNorm 'stem_bn' has been replaced by a SyncBatchNorm"):
        bs.switch(other, 2)
    assert all(layer.bits == 8 for _, layer in iter_layers(other))
    model.register_module("conv2", nn.Conv2d(4, 4, 1))
    with pytest.raises(PrepareError, match="layer 'conv2' has been replaced by a Conv2d"):
        bs.switch(model, 2)


def test_at_returns_also_after_an_exception(model: nn.Module) -> None:
    bs.switch(model, {"conv1": 2}, default=6)
    before, precision = widths(model), state_of(model).precision
    with pytest.raises(ZeroDivisionError), bs.at(model, 4) as inside:  # noqa: PT012
        assert inside is model
        with bs.at(model, 8):
            assert set(widths(model).values()) == {8}
        assert set(widths(model).values()) == {4}
        raise ZeroDivisionError
    assert widths(model) == before
    assert state_of(model).precision == precision


def test_widths_compute_different_things_and_switching_back_is_exact(model: nn.Module) -> None:
    x = images(8, seed=3)
    with torch.no_grad():
        model.eval()
        outputs = {}
        for bits in (8, 6, 4, 2):
            with bs.at(model, bits):
                outputs[bits] = model(x)
        errors = {bits: float((outputs[bits] - residual()(x)).abs().mean()) for bits in outputs}
        assert 0 < errors[8] < errors[6] < errors[4] < errors[2]
        for bits in (2, 8, 4, 6):
            bs.switch(model, bits)
            assert torch.equal(model(x), outputs[bits])


def test_a_mixed_precision_is_the_mixture_of_its_layers(model: nn.Module) -> None:
    bs.switch(model, {"conv2": 2}, default=8)
    eight = model.conv1.weight_codes()
    two = model.conv2.weight_codes()
    bs.switch(model, 8)
    assert torch.equal(model.conv1.weight_codes(), eight)
    bs.switch(model, 2)
    assert torch.equal(model.conv2.weight_codes(), two)


def test_wrapped_models_switch(model: nn.Module) -> None:
    wrapped = nn.DataParallel(model)
    bs.switch(wrapped, 2)
    assert set(widths(model).values()) == {2}
    bs.switch(torch.compile(model, backend="eager"), 4)
    assert set(widths(model).values()) == {4}


def test_gradients_reach_the_active_width_only(model: nn.Module) -> None:
    model.train()
    bs.switch(model, 4)
    model(images()).sum().backward()
    owned = [
        (name, parameter.grad is not None)
        for name, parameter in model.named_parameters()
        if any(f".{bits}." in name for bits in (8, 6, 4, 2))
    ]
    assert len(owned) > 20
    assert all(has_grad == (".4." in name) for name, has_grad in owned)
    assert all(model.get_submodule(name).weight.grad is not None for name in QUANTIZED)
