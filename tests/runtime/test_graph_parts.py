"""Large batches in parts, and the ends of networks on several parts at once: the same results bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch import kernels
from bitswitch.runtime.graph import parts
from tests.runtime.graph_networks import OnGraph, calibrated


class Flat(nn.Module):
    """A network whose batch can be divided, and some whose batch cannot."""

    def __init__(self, mixes: str) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(F.relu(self.first(x)))), 4).flatten(1)
        if self.mixes == "sum":
            x = x - x.sum(0, keepdim=True)
        return self.last(x.view(1, -1, 4) if self.mixes == "shape" else x)


@pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")
@pytest.mark.parametrize("mixes", ["nothing", "sum", "shape"])
def test_large_batches_run_in_parts(mixes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = OnGraph(calibrated(Flat(mixes), torch.randn(4, 3, 8, 8), first_last=8))
    bound, x = graph.bind(8), torch.randn(7, 3, 8, 8)
    expected = graph.reference(bound, x)
    assert torch.equal(graph.run(bound, x), expected)
    assert len(graph.executor._fitted) == 1
    monkeypatch.setattr(parts, "PART_BYTES", 1500)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(graph.run(bound, given_x), expected)
    in_parts = any(key[0][0][0] < 7 for key in graph.executor._fitted)
    assert in_parts == (mixes == "nothing")


class Narrowing(nn.Module):
    """A residual network whose values get smaller, and whose end may need whole batches."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.skip = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.small, self.last = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 5)
        self.end = end

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        wide = F.max_pool2d(F.relu(self.wide(x) + x), 2)
        x = F.relu(self.skip(wide) + self.down(wide))
        x = F.relu(self.small(x) + x).mean((2, 3))
        x = self.last(x - x.sum(0, keepdim=True) if self.end == "sum" else x)
        return (x, wide) if self.end == "both" else x


@pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")
@pytest.mark.parametrize("end", ["plain", "sum", "both"])
@pytest.mark.parametrize("batch", [16, 7])
@pytest.mark.usefixtures("isa")
def test_heads_run_on_fewer_samples(end: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = OnGraph(calibrated(Narrowing(end), torch.randn(4, 3, 16, 16), first_last=8))
    bound, x = graph.bind(8), torch.randn(batch, 3, 16, 16)
    monkeypatch.setattr(parts, "PART_BYTES", 40_000)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        out, expected = graph.run(bound, given_x), graph.reference(bound, given_x)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    heads = [fitted.fit.head for fitted in graph.executor._fitted.values() if fitted.fit is not None]
    assert any(head is not None and head.samples < head.batch for head in heads)


@pytest.mark.parametrize(
    ("count", "megabytes", "threads", "expected"),
    [
        (16, 64, 2, 4),
        (16, 64, 3, 3),
        (16, 64, 1, 4),
        (7, 112, 4, 4),
        (1, 64, 2, 1),
        (16, 1600, 2, 2),
        (16, 25, 2, 8),
        (13, 20, 2, 8),
    ],
)
def test_parts_are_shared_evenly_by_threads(count: int, megabytes: int, threads: int, expected: int) -> None:
    assert parts.samples_of_part(count, megabytes << 20, threads) == expected
