"""Measure what an engine adds to the resident memory of a process, in bytes a weight, at every width.

    python benchmarks/memory.py [--weights 500] [--bits 8 6 4 2] [--first-last 8] [--folder FOLDER] [--json FILE]

The network is a stack of 4096×4096 linear layers with 500 million weights, random ones, between a small first and last
layer (64 inputs, 64 outputs), which are pinned to 8 bits, or stay float32 with `--first-last float`. Its checkpoint is
written to a temporary folder, or to FOLDER, where it is kept and found again. For each width a new process imports
bitswitch, opens the checkpoint with `deploy` and answers one row. What counts is what it then holds more than after the
import: the planes of the file, which are mapped into memory, and everything else. The planes of a width l of 8 take
(l + 1) / 8 byte a weight, 8 bits take 1. "anonymous" is the part that is not mapped from files, and so not shared with
other processes. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import bitswitch as bs
from bitswitch._planes import planes_needed
from bitswitch.bench import add_options, machine, write_json
from bitswitch.bench.memory import resident_bytes
from bitswitch.layers import iter_layers
from bitswitch.layers.table import state_of

WIDTHS = (8, 6, 4, 2)
ENDS = 64


def build(layers: int, features: int) -> nn.Sequential:
    """Return the float network on the meta device."""
    with torch.device("meta"):
        middle = [nn.Linear(features, features) for _ in range(layers)]
        return nn.Sequential(nn.Linear(ENDS, features), *middle, nn.Linear(features, ENDS))


def write(folder: Path, layers: int, features: int, first_last: Literal["float", 8]) -> None:
    """Write the checkpoint of a network with random codes, without ever holding it as floats."""
    network = build(layers, features)
    for linear in network:
        # One number, expanded: the weight is there for the network to be prepared, and is replaced at once.
        for name, parameter in list(linear.named_parameters()):
            linear.register_parameter(name, nn.Parameter(torch.full((), 0.01).expand(parameter.shape)))
    model = bs.prepare(network, WIDTHS, example_inputs=torch.randn(1, ENDS), first_last=first_last)
    for index, (_, layer) in enumerate(iter_layers(model)):
        generator = torch.Generator().manual_seed(index)
        codes = torch.randint(-128, 128, layer.weight.shape, dtype=torch.int8, generator=generator)
        layer.set_codes(codes, torch.tensor(2e-4), 8)
        assert layer.input_quantizer is not None
        for bits in layer.widths:
            layer.input_quantizer.set_(bits, torch.tensor(6.0 / 2**bits), 2 ** (bits - 1))
    state_of(model).calibrated = True
    bs.save(model, folder)


def measure(folder: str, layers: int, features: int, bits: int) -> dict[str, int]:
    """Open the checkpoint at a width in this process, which has only imported, and return the bytes that it took."""
    # The first tensor and the first number at random make PyTorch load parts of itself; so does every program.
    x = torch.randn(1, ENDS)
    before, anonymous = _resident(), _resident(anonymous=True)
    engine = bs.deploy(folder, into=build(layers, features), bits=bits)
    opened = _resident()
    engine(x)
    running = _resident()
    return {
        "imported": before,
        "opened": opened - before,
        "running": running - before,
        "anonymous": _resident(anonymous=True) - anonymous,
    }


def _resident(*, anonymous: bool = False) -> int:
    found = resident_bytes(anonymous=anonymous)
    if found is None:
        raise SystemExit("this system does not say how much memory is resident")
    return found


def report(folder: Path, layers: int, features: int, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Measure every width in a process of its own."""
    weights = layers * features**2 + 2 * ENDS * features
    rows = []
    for bits in widths:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measure, str(folder), layers, features, bits).result()
        per_weight = {name: found[name] / weights for name in ("opened", "running", "anonymous")}
        planes = planes_needed(WIDTHS[0], bits) / 8
        rows.append({"bits": bits, "weights": weights, "planes": planes, **per_weight, "bytes": found})
    return rows


def main() -> None:
    """Measure and print."""
    # Only here: what the processes that are measured do not need is not imported by them.
    from bitswitch.cli.tables import print_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=500, help="millions of weights")
    parser.add_argument("--features", type=int, default=4096, help="inputs and outputs of a layer")
    parser.add_argument("--bits", type=int, nargs="+", default=WIDTHS, choices=WIDTHS)
    parser.add_argument("--first-last", default="8", choices=("8", "float"), help="first and last layer")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept")
    add_options(parser, repeat=None)
    options = parser.parse_args()
    layers = max(1, round(options.weights * 1e6 / options.features**2))
    here = machine(bandwidth=False)
    print(here)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary, "checkpoint")
        if not (folder / "config.json").exists():
            write(folder, layers, options.features, 8 if options.first_last == "8" else "float")
        rows = report(folder, layers, options.features, options.bits)
    about = f"{rows[0]['weights'] / 1e6:.0f} M weights, {layers} layers of {options.features}×{options.features}"
    print(f"\n{about}; resident bytes a weight beyond the import")
    figures = ("planes", "opened", "running", "anonymous")
    print_table(("", *figures), [(f"{row['bits']} bits", *(f"{row[name]:.3f}" for name in figures)) for row in rows])
    if options.json is not None:
        write_json(options.json, here, {"memory": rows})


if __name__ == "__main__":
    main()
