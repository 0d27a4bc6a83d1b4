from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs


class Net(nn.Module):
    """Every kind of storage in a few thousand weights: plain, grouped, depthwise, transposed, tied, signed inputs."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 3, groups=3)
        self.a = nn.Linear(6, 10)
        self.b = nn.Linear(10, 10)
        self.c = nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        if tie:
            self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = torch.nn.functional.silu(self.up(x)).mean((2, 3))
        x = torch.relu(self.a(x))
        return self.head(torch.relu(self.c(torch.tanh(self.b(x)))))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    return Net


@pytest.fixture
def trained(x: Tensor) -> Callable[..., nn.Module]:
    """Return a function that prepares, calibrates and trains a small model for a step a width."""

    def make(bits: tuple[int, ...] = (8, 6, 4, 2), **options: Any) -> nn.Module:
        torch.manual_seed(1)
        model = bs.prepare(Net(), bits, example_inputs=x, **options)
        bs.calibrate(model, [x])
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for width in bits:
            bs.switch(model, width)
            optimizer.zero_grad(set_to_none=True)
            model(x).square().sum().backward()
            optimizer.step()
        bs.switch(model, bits[0])
        return model.eval()

    return make
