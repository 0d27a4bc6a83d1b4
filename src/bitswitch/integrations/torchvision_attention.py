"""Swin's window attention, calling its projections as layers; imported only when a model has one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class ProjectedWindowAttention(ShiftedWindowAttention):
    """`ShiftedWindowAttention` of the same function that calls its layers `qkv` and `proj`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows, (N, H, W, C) → (N, H, W, C)."""
        height, width = x.shape[1:3]
        window = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        padded = x.shape[1:3]
        # A window that holds the whole map needs no shift.
        shift = [0 if window[i] >= padded[i] else self.shift_size[i] for i in (0, 1)]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = self._attend(_windows(x, window), _shift_mask(x, window, shift) if any(shift) else None)
        x = F.dropout(self.proj(x), self.dropout, self.training)
        x = x.view(-1, padded[0] // window[0], padded[1] // window[1], *window, x.shape[-1])
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each of (windows, positions, C); the mask is (windows of an image, positions, positions)."""
        q, k, v = self._qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = self._scores(q, k) + self.get_relative_position_bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
        weights = F.dropout(F.softmax(scores, -1), self.attention_dropout, self.training)
        return (weights @ v).transpose(1, 2).flatten(2)

    def _qkv(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)


class ProjectedWindowAttentionV2(ProjectedWindowAttention, ShiftedWindowAttentionV2):
    """`ShiftedWindowAttentionV2` of the same function that calls its layers `qkv` and `proj`.

    Keys have no bias in Swin V2: torchvision zeroes that third of `qkv.bias` in every forward pass. The other two
    thirds are the parameters `q_bias` and `v_bias` here, added to what the layer gives.
    """

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    def _qkv(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.q_bias is None or self.v_bias is None:
            return qkv
        return qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return cosine * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()


def _windows(x: Tensor, window: list[int]) -> Tensor:
    """Cut (N, H, W, C) into (N · windows, positions, C)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _shift_mask(x: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """Return (windows, positions, positions): −100 between positions that are no neighbours before the shift."""
    region = x.new_zeros((1, x.shape[1], x.shape[2], 1))
    count = 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for columns in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            region[:, rows, columns] = count
            count += 1
    region = _windows(region, window)
    apart = region != region.transpose(1, 2)
    return torch.zeros_like(apart, dtype=x.dtype).masked_fill_(apart, -100.0)


@torch.no_grad()
def adapt(attention: nn.Module) -> None:
    """Change a window attention of torchvision in place into one of the same function that calls its layers."""
    assert isinstance(attention, ShiftedWindowAttention)
    if not isinstance(attention, ShiftedWindowAttentionV2):
        attention.__class__ = ProjectedWindowAttention
        return
    bias = attention.qkv.bias
    attention.__class__ = ProjectedWindowAttentionV2
    for index, name in ((0, "q_bias"), (2, "v_bias")):
        part = None if bias is None else nn.Parameter(bias.chunk(3)[index].clone(), bias.requires_grad)
        attention.register_parameter(name, part)
    attention.qkv.register_parameter("bias", None)
