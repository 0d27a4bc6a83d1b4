"""Transitional BatchNorm: which pair of layers it follows, and that every verb knows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import PrepareError
from bitswitch.layers import PerWidthNorm
from bitswitch.layers.table import LayerTable, state_of
from bitswitch.models import build_model
from tests.networks import QUANTIZED, images, residual

BITS = (4, 3, 2)


def prepared(network: nn.Module | None = None, x: Tensor | None = None, **options: object) -> nn.Module:
    x = images() if x is None else x
    options = {"bits": BITS, "batch_norm": "transitional", **options}
    model = bs.prepare(residual() if network is None else network, example_inputs=x, **options)  # pyright: ignore[reportArgumentType]
    bs.calibrate(model, [x])
    return model


def pairs(model: nn.Module) -> dict[str, tuple[str | None, str | None]]:
    return {e.name: (e.width_from, e.width_to) for e in state_of(model).table.select("per-width")}


def norm_of(model: nn.Module, name: str) -> PerWidthNorm:
    norm = model.get_submodule(name)
    assert isinstance(norm, PerWidthNorm)
    return norm


def test_resnet20_follows_its_blocks() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model("resnet20-cifar").eval()
    found = pairs(prepared(network, torch.randn(2, 3, 32, 32)))
    # The stem is float: its BatchNorm has the width of the layer that it feeds, and no other one is next.
    assert found["bn1"] == ("layer1.0.conv1", None)
    assert found["layer1.0.bn1"] == ("layer1.0.conv1", "layer1.0.conv2")
    # The end of a block reaches all later ones through the identities; the next one is executed first.
    assert found["layer1.0.bn2"] == ("layer1.0.conv2", "layer1.1.conv1")
    assert found["layer2.2.bn2"] == ("layer2.2.conv2", "layer3.0.conv1")
    # Nothing but the float head comes after the last block.
    assert found["layer3.2.bn2"] == ("layer3.2.conv2", None)


class Branching(nn.Module):
    """Two branches of unequal depth behind one BatchNorm, and a layer that nobody quantizes between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mid, self.mid_bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.z_first, self.z_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.a_second, self.a_bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.plain, self.plain_bn = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.tail = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid_bn(self.mid(F.relu(self.stem(x)))))
        x = torch.cat([F.relu(self.z_bn(self.z_first(x))), F.relu(self.a_bn(self.a_second(x)))], 1)
        x = F.relu(self.tail(F.relu(self.plain_bn(self.plain(x)))))
        return self.head(x.mean((2, 3)))


def test_branches_and_layers_of_one_width() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Branching().eval()
    found = pairs(prepared(network, skip="plain"))
    assert found == {
        "mid_bn": ("mid", "z_first"),
        "z_bn": ("z_first", "tail"),
        "a_bn": ("a_second", "tail"),
        "plain_bn": ("tail", None),
    }


def test_a_residual_network_with_a_projection() -> None:
    model = prepared(bits=(4, 2), force="head")
    assert pairs(model) == {
        "stem_bn": ("conv1", None),
        "bn1": ("conv1", "conv2"),
        "bn2": ("conv2", "head"),
        "project_bn": ("project", "head"),
    }
    assert list(norm_of(model, "bn1").norms) == ["4-4", "4-2", "2-4", "2-2"]
    assert list(norm_of(model, "stem_bn").norms) == ["4", "2"]
    table = state_of(model).table
    assert LayerTable.from_json(table.to_json()).to_json() == table.to_json()
    assert "next conv2" in str(bs.summary(model))
    with pytest.raises(PrepareError, match="batch_norm must be"):
        bs.prepare(residual(), batch_norm="shared", example_inputs=images())  # pyright: ignore[reportArgumentType]


def test_every_pair_starts_as_its_own_width() -> None:
    model, plain = prepared(force="head"), prepared(force="head", batch_norm="per-width")
    for name in ("bn1", "bn2", "project_bn"):
        for key, norm in norm_of(model, name).norms.items():
            expected = norm_of(plain, name).norms[key.split("-")[0]].state_dict()
            assert all(torch.equal(value, expected[part]) for part, value in norm.state_dict().items())
    for precision in mixtures():
        with bs.at(model, precision), bs.at(plain, precision):
            assert torch.equal(model(images()), plain(images()))


def mixtures(names: tuple[str, ...] = (*QUANTIZED, "head")) -> list[dict[str, int]]:
    return [
        dict(zip(names, widths, strict=True))
        for widths in itertools.islice(itertools.product(BITS, repeat=4), 0, 81, 7)
    ]


def disturbed() -> nn.Module:
    """Return a network in which every pair has values of its own."""
    model = prepared(force="head")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, PerWidthNorm):
                for tensor in module.state_dict().values():
                    if tensor.is_floating_point():
                        tensor.mul_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
    return model


def test_switching_follows_both_layers() -> None:
    model = disturbed()
    for precision in mixtures():
        bs.switch(model, precision)
        conv1, conv2, project, head = (precision[name] for name in (*QUANTIZED, "head"))
        keys = {name: norm_of(model, name).key for name in ("stem_bn", "bn1", "bn2", "project_bn")}
        assert keys == {
            "stem_bn": f"{conv1}",
            "bn1": f"{conv1}-{conv2}",
            "bn2": f"{conv2}-{head}",
            "project_bn": f"{project}-{head}",
        }
    bs.switch(model, 3)
    assert (norm_of(model, "stem_bn").key, norm_of(model, "bn2").key) == ("3", "3-3")


def test_saved_loaded_and_trained_on(tmp_path: Path) -> None:
    model = disturbed()
    bs.save(model, tmp_path / "all")
    loaded = bs.load(tmp_path / "all", into=residual())
    for precision in mixtures():
        with bs.at(model, precision), bs.at(loaded, precision):
            assert torch.equal(model(images()), loaded(images()))
    assert pairs(loaded) == pairs(model)
    bs.unfreeze(loaded)
    before = {name: p.detach().clone() for name, p in loaded.named_parameters()}
    trainer = bs.JointTrainer(loaded, "cross_entropy", total_steps=2, bits=(3,))
    trainer.step((images(), torch.arange(4)))
    moved = {name for name, p in loaded.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if "norms" in name} == {
        f"{norm}.norms.{key}.{part}"
        for norm, key in (("stem_bn", "3"), ("bn1", "3-3"), ("bn2", "3-3"), ("project_bn", "3-3"))
        for part in ("weight", "bias")
    }


def test_deployed_like_the_model(tmp_path: Path) -> None:
    model = disturbed()
    engine = bs.deploy(model)
    for precision in mixtures():
        bs.switch(engine, precision)
        with bs.at(model, precision):
            torch.testing.assert_close(engine(images()), model(images()), rtol=1e-3, atol=1e-4)
