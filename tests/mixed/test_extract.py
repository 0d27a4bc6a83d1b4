"""A SubNet as a network of its own: the same outputs from fewer bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.checkpoint import read_info
from bitswitch.errors import CalibrationError, CheckpointError, PrecisionError, PrepareError
from bitswitch.layers.table import state_of
from bitswitch.mixed import extract, reestimate_batch_norm
from bitswitch.models import build_model
from tests.networks import QUANTIZED, images, residual

MIXED = {"conv1": 4, "conv2": 2, "project": 3, "head": 3}


def prepared(**options: Any) -> nn.Module:
    options = {"bits": (4, 3, 2), "force": "head", **options}
    model = bs.prepare(residual(), example_inputs=images(), **options)
    bs.calibrate(model, [images(16, 1)])
    return model


def file_bytes(folder: Path, stem: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{stem}-*.safetensors"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_norm": "transitional"},
        {"granularity": "channel", "scale_parametrization": "raw"},
        {"granularity": {"conv2": "group"}, "group_size": 8},
        {"first_last": 8, "force": ()},
        {"activations": False},
        {"midrise": (3, 2)},
        {"activation_bits": {3: 8, 2: 4}},
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_are_those_of_the_supernet(options: dict[str, Any], frozen: bool, tmp_path: Path) -> None:
    model = prepared(**options).eval()
    precision = {name: bits for name, bits in MIXED.items() if len(state_of(model).table.available.get(name, ())) > 1}
    if frozen:
        bs.save(model, tmp_path / "supernet")
        model = bs.load(tmp_path / "supernet", into=residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = extract(model, precision)
    with bs.at(model, precision):
        expected = model(images())
    assert torch.equal(alone(images()), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bs.save(alone, tmp_path / "subnet")
    loaded = bs.load(tmp_path / "subnet", into=residual())
    assert torch.equal(loaded(images()), expected)
    bs.switch(loaded, 4)
    assert torch.equal(loaded(images()), expected)
    bs.unfreeze(loaded)
    assert torch.equal(loaded(images()), expected)


def test_engines_run_it(tmp_path: Path) -> None:
    model = prepared().eval()
    bs.save(extract(model, MIXED), tmp_path)
    engine = bs.deploy(tmp_path, into=residual())
    with bs.at(model, MIXED):
        torch.testing.assert_close(engine(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_it_stores_the_bits_of_its_widths_and_no_more(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model("resnet20-cifar").eval()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(network, bits=(4, 3, 2), batch_norm="transitional", example_inputs=x)
    bs.calibrate(model, [x])
    table = state_of(model).table
    precision = {name: (2, 3, 4)[i % 3] for i, name in enumerate(table.available)}
    bs.save(model, tmp_path / "narrow", precision=precision)
    reestimate_batch_norm(model, [x], precision)
    bs.save(extract(model, precision), tmp_path / "alone")
    weights = {name: math.prod(table[name].shape) for name in precision}
    bits = sum(math.ceil(count / 8) * precision[name] for name, count in weights.items())
    # Beside the bits, each of the four plane files has a header that names its tensors.
    assert bits < file_bytes(tmp_path / "alone", "plane") < bits + 4 * 2500
    planes = sum(math.ceil(count / 8) * min(precision[name] + 1, 4) for name, count in weights.items())
    assert planes < file_bytes(tmp_path / "narrow", "plane") < planes + 4 * 2500
    assert file_bytes(tmp_path / "alone", "base") < 0.4 * file_bytes(tmp_path / "narrow", "base")
    info = read_info(tmp_path / "alone")
    assert info.bits_available == (4,)
    loaded = bs.load(tmp_path / "alone", into=network)
    with bs.at(model, precision):
        assert torch.equal(loaded(x), model.eval()(x))
    assert "2" in str(bs.summary(loaded))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = (nn.Linear(6, 6) for _ in range(4))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.one, self.two):
            x = F.relu(layer(x))
        return self.last(x)


def test_layers_that_share_a_weight(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tied()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(network, bits=(4, 2), example_inputs=x)
    bs.calibrate(model, [x])
    alone: Any = extract(model, {"one": 2, "two": 2})
    assert alone.one.codes is alone.two.codes
    bs.save(alone, tmp_path)
    with bs.at(model, 2):
        assert torch.equal(bs.load(tmp_path, into=Tied())(x), model(x))
    with pytest.raises(PrecisionError, match="share a weight and need one width"):
        extract(model, {"one": 2, "two": 4})


def test_the_supernet_it_came_from_is_not_replaced(tmp_path: Path) -> None:
    bs.save(prepared(), tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    alone = extract(bs.load(tmp_path, into=residual()), MIXED)
    for model in (alone, extract(alone, 4)):
        for _ in range(2):
            with pytest.raises(CheckpointError, match="would delete all other widths"):
                bs.save(model, tmp_path)
            bs.unfreeze(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    bs.save(alone, tmp_path / "alone")
    bs.save(bs.load(tmp_path / "alone", into=residual()), tmp_path / "alone")


def test_what_cannot_be_extracted() -> None:
    with pytest.raises(PrepareError, match="not prepared"):
        extract(residual(), 4)
    with pytest.raises(PrepareError, match="do not share a scale"):
        extract(prepared(shared=False), 4)
    with pytest.raises(CalibrationError, match="not calibrated"):
        extract(bs.prepare(residual(), example_inputs=images()), 4)
    with pytest.raises(PrecisionError, match="no width is given"):
        extract(prepared(), dict.fromkeys(QUANTIZED, 3))
