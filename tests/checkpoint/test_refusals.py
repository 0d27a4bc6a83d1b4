"""What cannot be saved, and what cannot be loaded into: clear errors, and nothing changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import checkpoint
from bitswitch.errors import (
    ArgumentError,
    CalibrationError,
    CheckpointError,
    PrecisionError,
    PrepareError,
    UnknownLayerError,
)
from bitswitch.layers import iter_layers

Make = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: setattr(n, "a", nn.Linear(6, 10, bias=False)), "nothing needs: 'a.bias'"),
        (lambda n: setattr(n, "a", nn.Linear(7, 10)), "'a' has a weight of shape"),
        (lambda n: setattr(n, "a", nn.Conv1d(6, 10, 1)), "'a' is a Conv1d, not a Linear"),
        (lambda n: delattr(n, "up"), "no layer 'up'"),
        (lambda n: setattr(n, "bn", nn.BatchNorm2d(8, affine=False)), "nothing needs: 'bn.norms.2.bias'"),
        (lambda n: setattr(n, "bn", nn.BatchNorm2d(9)), r"'bn.*'"),
        (lambda n: setattr(n, "head", n.head.double()), r"'head\.(weight|bias)': expected torch.float64"),
        (lambda n: n.register_buffer("more", torch.zeros(2)), "lacks tensors that it must have: 'more'"),
        (lambda n: setattr(n.c, "weight", nn.Parameter(n.c.weight.clone())), "'c' does not share its weight"),
        (lambda n: setattr(n, "up", nn.ConvTranspose2d(12, 2, 3)), "out-first shape"),
    ],
    ids=["bias", "width", "class", "absent", "affine", "norm", "dtype", "extra", "untied", "transposed"],
)
def test_another_architecture(change: Callable, message: str, tmp_path: Path, trained: Make, net: Make) -> None:
    checkpoint.save(trained(), tmp_path)
    into = net()
    change(into)
    state = copy.deepcopy(into.state_dict())
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path, into=into)
    assert all(torch.equal(state[name], tensor) for name, tensor in into.state_dict().items())
    assert not any(True for _ in iter_layers(into))


def test_arguments(tmp_path: Path, trained: Make, net: Make) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    with pytest.raises(ArgumentError, match="into="):
        checkpoint.load(tmp_path, into=net)  # the class, not a model
    with pytest.raises(PrepareError, match="prepared"):
        checkpoint.load(tmp_path, into=model)
    with pytest.raises(PrecisionError, match="not prepared for 3 bits"):
        checkpoint.load(tmp_path, into=net(), bits=3)
    with pytest.raises(UnknownLayerError, match="'stem' stays in full precision"):
        checkpoint.load(tmp_path, into=net(), bits={"stem": 8})
    with pytest.raises(CheckpointError, match=r"config\.json: expected a file, found none"):
        checkpoint.load(tmp_path / "nowhere", into=net())
    for architecture in ({1, 2}, float("nan"), {"a": object()}):
        with pytest.raises(ArgumentError, match="JSON"):
            checkpoint.save(model, tmp_path, architecture=architecture)


def test_models_that_cannot_be_saved(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    with pytest.raises(PrepareError, match="not prepared"):
        checkpoint.save(net(), tmp_path / "a")
    with pytest.raises(CalibrationError, match="no scales yet"):
        checkpoint.save(bs.prepare(net(), example_inputs=x), tmp_path / "a")
    good = trained()
    checkpoint.save(good, tmp_path / "b")
    before = (tmp_path / "b" / "config.json").read_bytes()
    for value in (math.nan, math.inf, -math.inf):
        for attribute, message in (("a.weight", "layer 'a' has NaN or inf"), ("head.bias", "'head.bias': has NaN or")):
            model = copy.deepcopy(good)
            with torch.no_grad():
                model.get_parameter(attribute).flatten()[0] = value
            for folder in ("a", "b"):
                with pytest.raises(CheckpointError, match=message):
                    checkpoint.save(model, tmp_path / folder)
    model = copy.deepcopy(good)
    model.mask[0] = math.nan  # pyright: ignore[reportIndexIssue]
    with pytest.raises(CheckpointError, match="'mask': contains NaN"):
        checkpoint.save(model, tmp_path / "a")
    for odd in (
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.eye(2).to_sparse(),
    ):
        model = copy.deepcopy(good)
        model.register_buffer("odd", odd)
        with pytest.raises(CheckpointError, match=r"'odd' has the (dtype|layout) torch\."):
            checkpoint.save(model, tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a folder"):
        checkpoint.save(good, tmp_path / "file")
