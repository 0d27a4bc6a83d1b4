"""One process of a group that estimates traces on its own share of the batches."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from bitswitch.mixed import hessian_trace


def main(rank: int, store: str, out: str) -> None:
    """Estimate and save."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 4, generator=generator), torch.arange(8) % 3) for _ in range(4)]

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(batch[0])
        return F.cross_entropy(logits, batch[1]), logits

    found = hessian_trace(net, loss_fn, batches[rank::2], relative_error=0.1, max_probes=500)
    found.save(Path(out) / f"{rank}.json")
    dist.destroy_process_group()
    alone = hessian_trace(net, loss_fn, batches, relative_error=0.02, max_probes=5000)
    alone.save(Path(out) / f"alone{rank}.json")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
