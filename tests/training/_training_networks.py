"""Small prepared networks for the tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs

Batch = tuple[Tensor, Tensor]


class SmallNet(nn.Module):
    """Three convolutions, the last two quantized by default, with BatchNorm or without, and a classifier."""

    def __init__(self, norm: bool = True, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.fc(x.mean((2, 3)))


def make_batches(count: int = 4, size: int = 8, seed: int = 0, classes: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        targets = torch.randint(0, classes, (size,), generator=generator)
        inputs = torch.randn(size, 1, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1)
        batches.append((inputs, targets))
    return batches


def make_model(*, norm: bool = True, bits: tuple[int, ...] = (8, 4, 2), seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    batches = make_batches()
    model = bs.prepare(SmallNet(norm), bits=bits, example_inputs=batches[0][0], **options)
    bs.calibrate(model, batches)
    return model.train()


def quantized_mlp(bits: tuple[int, ...] = (8, 4, 2), seed: int = 0, **options: Any) -> nn.Module:
    """Four linear layers, the two in the middle quantized."""
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    inputs = torch.randn(32, 5)
    model = bs.prepare(nn.Sequential(*layers), bits=bits, example_inputs=inputs, **options)
    bs.calibrate(model, [inputs])
    return model.train()


def vector_batches(count: int = 4, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
