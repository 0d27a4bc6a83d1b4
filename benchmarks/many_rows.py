"""Time a linear layer on many rows, its weights held as bit planes only, against oneDNN's int8 kernel.

    python benchmarks/many_rows.py [--shape 4096x4096] [--rows 128 512] [--bits 8 6 4 2] [--repeat 9] [--json FILE]

Contestants take turns on the same codes; medians are printed. At every width the weights are read from the planes of
one stored copy, and unpacked on the way. One more line has the tiles of a width in memory, as engines keep them where
the cache holds those of all layers. The peer is `torch.ops.onednn.qlinear_pointwise` with int8 weights that oneDNN has
packed before, one copy for one width too; PyTorch's float32 layer stands beside it. All return float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.bench import Timing, add_options, interleave, machine, write_json
from bitswitch.cli.tables import print_table
from bitswitch.runtime.kernels import run_linear_planes
from bitswitch.runtime.reference import weight_codes
from bitswitch.runtime.tiles import pack_tiles, run_linear_tiled

STORED = 8
ONEDNN, FLOAT = "oneDNN int8", "PyTorch float32"
PAUSE = 0.02
INPUT_SCALE = 0.02


class Layer:
    """A linear layer with random weights, stored as planes.

    Args:
        out_features: N.
        in_features: K, a multiple of 64.
    """

    def __init__(self, out_features: int, in_features: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (out_features, in_features // 8)
        self.in_features = in_features
        self.planes = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(STORED)]
        self.scale = torch.rand(out_features, generator=generator) / in_features
        self.bias = torch.rand(out_features, generator=generator)

    def ours(self, codes: Tensor, bits: int) -> Callable[[], Tensor]:
        """Return a call of the layer at a width, from the planes."""
        planes = self.planes[: planes_needed(STORED, bits)]
        addresses = [plane.data_ptr() for plane in planes]
        multiplier = self._multiplier(bits)

        def call() -> Tensor:
            return run_linear_planes(
                planes,
                addresses,
                codes,
                multiplier,
                self.bias,
                stored_bits=STORED,
                bits=bits,
                zero_point=0,
                group_size=0,
                row_scale=None,
            )

        return call

    def tiled(self, codes: Tensor, bits: int) -> Callable[[], Tensor]:
        """Return a call of the layer at a width, from tiles that were made before."""
        tiles = pack_tiles(self.planes, stored_bits=STORED, bits=bits, channels=self.in_features)
        multiplier = self._multiplier(bits)
        return lambda: run_linear_tiled(tiles, codes, multiplier, self.bias, zero_point=0, row_scale=None)

    def _multiplier(self, bits: int) -> Tensor:
        return (self.scale * INPUT_SCALE * 2.0 ** (STORED - bits))[:, None].contiguous()

    def onednn(self, codes: Tensor) -> Callable[[], Tensor]:
        """Return a call of oneDNN at the stored width; AttributeError if PyTorch comes without it."""
        prepack, multiply = torch.ops.onednn.qlinear_prepack, torch.ops.onednn.qlinear_pointwise
        packed = prepack(weight_codes(self.planes, STORED, STORED, self.in_features), list(codes.shape))
        zeros = torch.zeros(len(self.scale), dtype=torch.int64)
        rest = (packed, self.scale, zeros, self.bias, 1.0, 0, torch.float32, "none", [], "")
        return lambda: multiply(codes, INPUT_SCALE, 0, *rest)

    def floats(self, codes: Tensor) -> Callable[[], Tensor]:
        """Return a call of PyTorch's layer on floats."""
        weight = weight_codes(self.planes, STORED, STORED, self.in_features).float() * self.scale[:, None]
        x = codes.float() * INPUT_SCALE
        return lambda: F.linear(x, weight, self.bias)


def measure(layer: Layer, rows: int, bits: Sequence[int], repeat: int) -> tuple[dict[str, Timing], list[str]]:
    """Return the time of a call of each contestant, and a line for a peer that is missing."""
    codes = torch.randint(0, 256, (rows, layer.in_features), dtype=torch.uint8)
    calls: dict[str, Callable[[], object]] = {f"{width} bits": layer.ours(codes, width) for width in bits}
    if kernels.native is not None:
        calls[f"{bits[0]} bits, tiles kept"] = layer.tiled(codes, bits[0])
    missing = []
    try:
        calls[ONEDNN] = layer.onednn(codes)
    except (AttributeError, RuntimeError) as error:
        missing.append(f"oneDNN: {str(error).splitlines()[0]}")
    calls[FLOAT] = layer.floats(codes)
    return interleave(calls, repeat=repeat, burst=3, pause=PAUSE), missing


def show(title: str, times: dict[str, Timing], work: int) -> None:
    """Print the table of one number of rows; `work` is the number of products."""
    peer = times.get(ONEDNN)
    rows = []
    for name, time in times.items():
        ratio = f"{time.median / peer.median:.2f}" if peer else "–"
        rows.append((name, f"{time.median * 1e3:.3f}", f"{work / time.median / 1e12:.2f}", ratio))
    print(f"\n{title}")
    print_table(("", "median ms", "products, 10¹²/s", "of oneDNN"), rows)


def main() -> None:
    """Print a table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4096x4096", help="output x input features")
    parser.add_argument("--rows", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4, 2])
    add_options(parser, repeat=9)
    options = parser.parse_args()
    here = machine()
    print(here)
    out_features, in_features = (int(size) for size in options.shape.split("x"))
    layer = Layer(out_features, in_features)
    results: list[dict[str, Any]] = []
    for rows in options.rows:
        times, missing = measure(layer, rows, options.bits, options.repeat)
        show(f"{out_features}×{in_features}, {rows} rows", times, rows * out_features * in_features)
        for line in missing:
            print(f"not found: {line}")
        plain = {name: time.to_json() for name, time in times.items()}
        results.append({"shape": [out_features, in_features], "rows": rows, "times": plain, "missing": missing})
    if options.json is not None:
        write_json(options.json, here, {"many_rows": results})


if __name__ == "__main__":
    main()
