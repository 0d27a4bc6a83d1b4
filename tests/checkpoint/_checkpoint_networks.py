"""A network with every kind of storage, in a module of its own so that spawned processes can unpickle it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
