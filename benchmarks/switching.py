"""Time how long deployed networks take to change their width.

    python benchmarks/switching.py [--network resnet50] [--features 4096] [--bits 8 6 4 2]

First a single linear layer, whose kernels read the bit planes and so have nothing to prepare; then a whole network on
224×224 images, once with the tiles of all widths in the cache and once without a cache. "first answer" is the call
after the switch: whatever a switch left to it would be found there; "usual" is a call at a width that has been used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.bench import add_options, machine, write_json
from bitswitch.bench.memory import resident_bytes
from bitswitch.bench.networks import SwitchTiming, latency, switching
from bitswitch.cli.tables import print_table
from bitswitch.models import build_model


def deployable(network: nn.Module, x: Tensor, bits: Sequence[int], **options: Any) -> nn.Module:
    """Prepare and calibrate a network."""
    model = bs.prepare(network, bits=bits, example_inputs=x, **options)
    bs.calibrate(model, [x])
    return model


def linear(features: int, bits: Sequence[int], repeat: int) -> tuple[dict[int, SwitchTiming], int | None]:
    """Time the switches of one linear layer.

    Returns:
        What a switch costs by width, and the bytes by which resident memory grew over all of them.
    """
    x = torch.randn(1, features)
    # Alone it is first and last; forced, it has all widths.
    model = deployable(nn.Sequential(nn.Linear(features, features)), x, bits, force="0")
    engine = bs.deploy(model)
    switching(engine, x, bits, repeat=2)
    before = resident_bytes()
    found = switching(engine, x, bits, repeat=repeat)
    after = resident_bytes()
    return found, None if before is None or after is None else after - before


def network(name: str, bits: Sequence[int], repeat: int, size: int) -> dict[str, dict[int, SwitchTiming]]:
    """Time the switches of a network, by "cached" and "uncached"."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    model = deployable(build_model(f"torchvision/{name}"), x, bits, first_last=8)
    found = {}
    for kind, limit in (("cached", 1 << 30), ("uncached", 0)):
        engine = bs.deploy(model, cache_bytes=limit)
        found[kind] = switching(engine, x[:1], bits, repeat=repeat)
        if kind == "cached":
            usual = latency(engine, x[:1], bits, repeat=repeat)
            print(f"{name}, usual call, ms:", ", ".join(f"{key} {t.median * 1e3:.2f}" for key, t in usual.items()))
    return found


def show(title: str, found: dict[int, SwitchTiming]) -> None:
    """Print a table."""
    print(f"\n{title}")
    rows = [
        (
            f"{width} bits",
            f"{timing.switch.median * 1e3:.4f}",
            f"{timing.switch.slowest * 1e3:.4f}",
            f"{timing.first_call.median * 1e3:.3f}",
        )
        for width, timing in found.items()
    ]
    print_table(("switch to", "median ms", "slowest ms", "first answer, ms"), rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="name in torchvision")
    parser.add_argument("--features", type=int, default=4096, help="inputs and outputs of the linear layer")
    parser.add_argument("--bits", nargs="+", type=int, default=(8, 6, 4, 2))
    parser.add_argument("--size", type=int, default=224, help="pixels")
    add_options(parser)
    options = parser.parse_args()
    here = machine()
    print(here)
    one, grown = linear(options.features, options.bits, 10 * options.repeat)
    show(f"linear layer, {options.features}×{options.features}, straight from bit planes", one)
    if grown is not None:
        print(f"resident memory grew by {grown / 2**20:.2f} MiB over {10 * options.repeat * len(one)} switches")
    found = network(options.network, options.bits, options.repeat, options.size)
    for kind, timings in found.items():
        show(f"{options.network}, {kind}", timings)
    if options.json is not None:
        results = {f"linear {options.features}": one, **{f"{options.network} {k}": v for k, v in found.items()}}
        plain = {name: {str(w): t.to_json() for w, t in timings.items()} for name, timings in results.items()}
        write_json(options.json, here, {"switching": plain, "linear_grown_bytes": grown})


if __name__ == "__main__":
    main()
