"""A small network for the 8×8 digits of scikit-learn, with one of each kind of convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """A residual block, a strided convolution and a depthwise separable residual block.

    Five of its layers lie between the first and the last: `block.conv1`, `block.conv2`, `down`, `depthwise` and
    `pointwise`. It trains on the digits in seconds.

    Args:
        num_classes: outputs.
        width: channels of the first half; the second half has twice as many.
    """

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block = ResidualBlock(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(2 * width)
        self.pointwise = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 1, 8, 8) to logits (N, num_classes)."""
        x = F.relu(self.stem_bn(self.stem(x)))
        x = self.block(x)
        x = F.relu(self.down_bn(self.down(x)))
        out = F.relu(self.depthwise_bn(self.depthwise(x)))
        x = F.relu(self.pointwise_bn(self.pointwise(out)) + x)
        return self.fc(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with an identity shortcut.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + x)
