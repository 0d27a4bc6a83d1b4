"""Small networks that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A stem, a residual block with a projection, and a head: every rule of the layer table has a case here."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.project = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
        self.project_bn = nn.BatchNorm2d(2 * channels)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.project_bn(self.project(x))
        return self.head(F.relu(y).mean((2, 3)))


QUANTIZED = ("conv1", "conv2", "project")


def images(count: int = 4, seed: int = 0) -> Tensor:
    """Return (count, 3, 8, 8) normal images."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def residual(seed: int = 0, channels: int = 4) -> Residual:
    """Return a seeded network whose BatchNorms have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Residual(channels)
    network.train()
    with torch.no_grad():
        for index in range(5):
            network(images(16, index))
    return network.eval()
