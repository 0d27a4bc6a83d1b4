from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _checkpoint_networks import Net
from torch import Tensor, nn

import bitswitch as bs


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
