"""One of several processes, started as torchrun would start it; leaves what it found in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _training_networks import make_batches, make_model
from torch import nn

from bitswitch.errors import DivergenceError
from bitswitch.training import JointTrainer, distributed, evaluate

OPTIONS: dict[str, dict[str, Any]] = {
    "per-width": {},
    "separate": {"moments": "separate", "alrs_scope": "weight+activation"},
    "accumulate": {"algorithm": "accumulate", "alrs": None},
    "sgd": {"optimizer": torch.optim.SGD},
}


def train(variant: str, wrap: bool) -> tuple[nn.Module, list[float]]:
    """Train three steps on this process's half of each batch, or, alone, on whole batches."""
    model = make_model(norm=False)
    trainer = JointTrainer(
        distributed.wrap_ddp(model) if wrap else model, "cross_entropy", lr=0.01, total_steps=9, **OPTIONS[variant]
    )
    values: list[float] = []
    for inputs, targets in make_batches(3):
        own = distributed.shard(len(inputs))
        result = trainer.step((inputs[list(own)], targets[list(own)]))
        values += [n for w in result.widths.values() for n in (w.loss, w.scale_lr)]
    return model, values


def unused_gradients() -> list[str]:
    """Return which parameters of other widths got a gradient, or moved."""
    model = make_model()
    wrapped = distributed.wrap_ddp(model)
    inputs, targets = make_batches(1)[0]
    trainer = JointTrainer(wrapped, "cross_entropy", lr=0.01, total_steps=9)
    trainer.step((inputs, targets))
    trainer.bits = (4,)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update, wrong = trainer._pair.update, []

    def spy(*args: Any) -> None:
        wrong.extend(n for n, p in model.named_parameters() if others(n) and p.grad is not None)
        update(*args)

    def others(name: str) -> bool:
        return any(part in name for part in ("norms.8", "norms.2", "scales.8", "scales.2"))

    trainer._pair.update = spy  # pyright: ignore[reportAttributeAccessIssue]
    trainer.step((inputs, targets))
    wrong += [name for name, p in model.named_parameters() if others(name) and not torch.equal(p, before[name])]
    return wrong


def statistics() -> dict[str, Any]:
    """Return the running statistics after training, and after an evaluation, whose result comes along."""
    model = make_model()
    trainer = JointTrainer(distributed.wrap_ddp(model), "cross_entropy", lr=0.01, total_steps=9)
    for inputs, targets in make_batches(2):
        own = list(distributed.shard(len(inputs)))
        trainer.step((inputs[own], targets[own]))
    before = running(model)
    batch = make_batches(1)[0]
    own = list(distributed.shard(len(batch[0])))
    found = evaluate(model, [(batch[0][own], batch[1][own])], metric=loss)
    return {
        "before": before,
        "after": running(model),
        "loss": found,
        "alone": evaluate(model, [batch], metric=loss, sharded=False),
    }


def running(model: nn.Module) -> torch.Tensor:
    return torch.cat([buffer.clone() for name, buffer in model.named_buffers() if "running" in name])


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def diverge() -> str:
    """Return the error of this process when the loss is NaN in process 1 only."""
    trainer = JointTrainer(distributed.wrap_ddp(make_model(norm=False)), "cross_entropy", total_steps=9)
    inputs, targets = make_batches(1)[0]
    try:
        trainer.step((inputs * float("nan") if distributed.rank() == 1 else inputs, targets))
    except DivergenceError as error:
        return str(error)
    return ""


@distributed.main_process_only
def only_main() -> str:
    return "main"


def main(folder: Path) -> None:
    device = distributed.init("gloo")
    assert distributed.init("gloo") == device == torch.device("cpu")
    results: dict[str, Any] = {"rank": distributed.rank(), "size": distributed.world_size(), "main": only_main()}
    for variant in OPTIONS:
        model, results[f"values/{variant}"] = train(variant, wrap=True)
        results[variant] = {name: p.detach() for name, p in model.named_parameters()}
    samples = [sample for batch in make_batches(3, size=7) for sample in zip(*batch, strict=True)]
    own = [samples[i] for i in distributed.shard(len(samples))]
    shards = [tuple(torch.stack(part) for part in zip(*own[i : i + 4], strict=True)) for i in range(0, len(own), 4)]
    results["evaluation"] = evaluate(make_model(), shards)
    results["unused"] = unused_gradients()
    results["statistics"] = statistics()
    results["error"] = diverge()
    distributed.barrier()
    assert dist.is_initialized()
    distributed.shutdown()
    assert distributed.world_size() == 1
    torch.save(results, folder / f"{results['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
