"""Prepared networks of every kind of layer, for the tests of the runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs

BITS = (8, 6, 4, 2)


class Mixed(nn.Module):
    """Plain, grouped, depthwise and transposed convolutions, linear layers with tied weights, signed inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 3, groups=3)
        self.a = nn.Linear(6, 10)
        self.b = nn.Linear(10, 10)
        self.c = nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn1(self.plain(x)))
        x = nn.functional.hardswish(self.depth(x))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = nn.functional.silu(self.up(x)).mean((2, 3))
        x = torch.relu(self.a(x))
        return self.head(torch.relu(self.c(torch.tanh(self.b(x)))))


def images(count: int = 4, seed: int = 0) -> Tensor:
    """Return (count, 3, 8, 8) normal images."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def mixed(bits: tuple[int, ...] = BITS, **options: Any) -> nn.Module:
    """Return a prepared and calibrated network in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Mixed()
    model = bs.prepare(network, bits, example_inputs=images(), **options)
    bs.calibrate(model, [images(16, 1)])
    return model.eval()


def meta() -> nn.Module:
    """Return the float network on the meta device."""
    with torch.device("meta"):
        return Mixed()
