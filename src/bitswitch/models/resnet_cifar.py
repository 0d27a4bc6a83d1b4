"""ResNet-20, -32, -44 and -56 for 32×32 images (He et al. 2015, section 4.2), which torchvision does not have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch.errors import ConfigError


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A of the paper).

    Where the block halves the resolution, the shortcut takes every second pixel and pads the new channels with zeros,
    half before and half after the old ones.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: 1 or 2, of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.channel_padding = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.channel_padding != (0, 0):
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channel_padding))
        return F.relu(out + x)


class ResNetCifar(nn.Module):
    """The CIFAR ResNet of depth 6n + 2: a convolution, three stages of n blocks (16, 32, 64 channels), a linear layer.

    Args:
        depth: 20, 32, 44, 56 or another number of the form 6n + 2.
        num_classes: outputs.

    Raises:
        ConfigError: no such network has this depth.

    >>> sum(p.numel() for p in ResNetCifar(20).parameters())
    269722
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 2, 6)
        if rest or num_blocks < 1:
            raise ConfigError(f"depth must be 6n + 2 with n of at least 1, such as 20; got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


def resnet20_cifar(num_classes: int = 10) -> ResNetCifar:
    """Build the ResNet-20 for CIFAR: 0.27 M parameters."""
    return ResNetCifar(20, num_classes)


def resnet32_cifar(num_classes: int = 10) -> ResNetCifar:
    """Build the ResNet-32 for CIFAR: 0.46 M parameters."""
    return ResNetCifar(32, num_classes)


def resnet44_cifar(num_classes: int = 10) -> ResNetCifar:
    """Build the ResNet-44 for CIFAR: 0.66 M parameters."""
    return ResNetCifar(44, num_classes)


def resnet56_cifar(num_classes: int = 10) -> ResNetCifar:
    """Build the ResNet-56 for CIFAR: 0.85 M parameters."""
    return ResNetCifar(56, num_classes)
