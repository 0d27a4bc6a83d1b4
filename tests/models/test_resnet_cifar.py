"""The CIFAR ResNets: published sizes, names, option-A shortcuts."""

from __future__ import annotations

import pytest
import torch

from bitswitch.errors import ConfigError
from bitswitch.models import build_model
from bitswitch.models.resnet_cifar import BasicBlock, ResNetCifar


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_sizes_are_those_of_the_paper(depth: int, millions: float) -> None:
    model = build_model(f"resnet{depth}-cifar")
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) + 1 == depth
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("depth", [-4, 1, 2, 21, 23])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=f"6n \\+ 2 .*; got {depth}"):
        ResNetCifar(depth)
    assert sum(isinstance(module, BasicBlock) for module in ResNetCifar(8).modules()) == 3


def test_names_are_the_usual_ones() -> None:
    names = set(build_model("resnet20-cifar").state_dict())
    expected = {"conv1.weight", "linear.weight", "linear.bias", "bn1.running_var"}
    for layer in (1, 2, 3):
        for block in range(3):
            expected |= {f"layer{layer}.{block}.{name}.weight" for name in ("conv1", "bn1", "conv2", "bn2")}
    assert expected <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 31)])
def test_shapes_and_gradients(shape: tuple[int, ...]) -> None:
    model = build_model("resnet20-cifar", num_classes=7)
    logits = model(torch.randn(shape))
    assert logits.shape == (shape[0], 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_shortcut_takes_every_second_pixel_and_centres_the_channels() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    for n in range(2):
        for c in range(4):
            for i in range(3):
                for j in range(3):
                    expected[n, c + 2, i, j] = x[n, c, 2 * i, 2 * j]
    assert torch.equal(block(x), expected)


def test_fx_can_trace_the_own_models() -> None:
    for name, shape in [("resnet20-cifar", (2, 3, 32, 32)), ("digits-cnn", (2, 1, 8, 8))]:
        model = build_model(name).eval()
        x = torch.randn(shape)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
