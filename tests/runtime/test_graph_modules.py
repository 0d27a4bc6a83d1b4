"""Networks whose graph must compute what they compute module by module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.runtime import Engine
from tests.runtime.graph_networks import calibrated


def agree(network: nn.Module, x: Tensor) -> Engine:
    """Deploy a network in both ways, compare them on fresh inputs, and return the one that has a graph."""
    model = calibrated(network, x, bits=(8, 4), first_last=8)
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    for seed in range(2):
        given = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        expected = modules(given.clone())
        # A sum in another order may flip a code; what is left out or done twice is far outside.
        assert float((engine(given) - expected).abs().max()) < 0.02 * float(expected.abs().max())
    return engine


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", [1, 0])
def test_float_convolutions_pad_as_they_say(padding: int) -> None:
    stem = nn.Conv2d(3, 8, 3, padding=padding, padding_mode="reflect")
    network = nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = calibrated(network, torch.randn(4, 3, 6, 6), bits=(8, 4))
    engine, modules = bs.deploy(model), bs.deploy(model, fuse=False)
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(engine(x), modules(x), rtol=1e-3, atol=1e-3)
    assert ("float convolution 0 + 1" in engine.plan) == (padding == 0)


@pytest.mark.parametrize(("length", "features"), [(16, 16), (12, 16)])
def test_batch_norm_over_another_dimension_than_features_is_not_folded(length: int, features: int) -> None:
    norm = nn.BatchNorm1d(length)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(nn.Linear(6, features), norm, nn.ReLU(), nn.Linear(features, 4))
    agree(network, torch.randn(8, length, 6))


def test_batch_norm_over_features_is_folded() -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    assert "linear 0 + 1" in agree(network, torch.randn(8, 6)).plan
