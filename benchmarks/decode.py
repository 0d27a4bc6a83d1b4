"""Time linear layers on one row, straight from bit planes, against memory and against the kernels of other projects.

    python benchmarks/decode.py [--shapes 4096x4096 11008x4096] [--bits 8 6 4 3 2] [--matrices 40] [--repeat 9]
                                [--group-size 0] [--zero-point 0] [--json FILE]

Every turn runs through distinct matrices, so that caches do not help; contestants take turns, and medians are printed.
Each width reads its planes of one stored copy. Beside it stand plain reads of the same memory, with one and with
several streams a thread, and peers that are installed: PyTorch's int8 and int4 kernels, and MatMulNBits of ONNX Runtime
(with `onnx` to build its models). They keep a copy of the weights for each width, and have scales per channel (int8) or
per group of 128 inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.bench.machine import machine
from bitswitch.bench.output import add_options, write_json

GROUP = 128
STREAMS = (1, 2, 4, 8)
# ONNX models are limited to 2 GB.
MODEL_BYTES = 1 << 30
# Seconds before each turn, in which the waiting threads of the one before stop spinning.
REST = 0.05

Turn = Callable[[], float]
"""Runs through all matrices and returns the seconds of one."""


def timed(calls: list[Callable[[], object]]) -> Turn:
    """Return a turn of calls, one a matrix; one more before them wakes the threads."""

    def turn() -> float:
        calls[0]()
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)

    return turn


def plane_turns(
    planes: torch.Tensor, out_features: int, bits: list[int], group_size: int, zero_point: int
) -> dict[str, Turn]:
    """Return turns of the kernel at each width; planes are uint8 (matrices, 8, bytes)."""
    native = kernels.native
    assert native is not None
    in_features = planes.shape[2] * 8 // out_features
    groups = in_features // group_size if group_size else 1
    codes = torch.randint(0, 256, (in_features,), dtype=torch.uint8)
    multiplier, bias, out = torch.rand(out_features, groups), torch.rand(out_features), torch.empty(out_features)

    def call(addresses: list[int], width: int) -> Callable[[], object]:
        tail = (multiplier.data_ptr(), bias.data_ptr(), codes.data_ptr(), 1, in_features, zero_point, 0, out.data_ptr())
        head = (8, width, out_features, in_features, in_features // 8, group_size)
        # The tensors live as long as the call does.
        return lambda _kept=(multiplier, bias, codes, out): native.linear_planes(addresses, *head, *tail)

    return {
        f"{width} bits": timed(
            [call([plane.data_ptr() for plane in matrix[: planes_needed(8, width)]], width) for matrix in planes]
        )
        for width in bits
    }


def torch_turns(out_features: int, in_features: int, matrices: int) -> dict[str, Turn]:
    """Return turns of PyTorch's weight-only kernels, those that this version has."""
    x = torch.randn(1, in_features, dtype=torch.bfloat16)
    scales = torch.rand(out_features, dtype=torch.bfloat16)
    int8 = [torch.randint(-128, 128, (out_features, in_features), dtype=torch.int8) for _ in range(matrices)]
    int8_multiply = torch.ops.aten._weight_int8pack_mm
    turns = {"torch int8": timed([lambda w=w: int8_multiply(x, w, scales) for w in int8])}
    pack: Any = getattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", None)
    multiply: Any = getattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)
    if pack is not None and multiply is not None:
        codes = torch.randint(0, 16, (out_features, in_features), dtype=torch.int32)
        int4 = [pack(codes, 1) for _ in range(matrices)]
        affine = torch.rand(in_features // GROUP, out_features, 2, dtype=torch.bfloat16)
        turns["torch int4"] = timed([lambda w=w: multiply(x, w, GROUP, affine) for w in int4])
    return turns


def onnx_turn(out_features: int, in_features: int, bits: int, matrices: int) -> Turn:
    """Return turns of one ONNX Runtime session with a MatMulNBits node a matrix."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    blocks = in_features // GROUP
    weight_bytes = out_features * in_features * bits // 8
    count = max(1, min(matrices, MODEL_BYTES // weight_bytes))
    sizes: dict[str, Any] = {
        "K": in_features,
        "N": out_features,
        "bits": bits,
        "block_size": GROUP,
        "accuracy_level": 4,
    }
    nodes, weights, outputs = [], [], []
    for i in range(count):
        codes = torch.randint(0, 256, (out_features, blocks, GROUP * bits // 8), dtype=torch.uint8).numpy()
        scales = torch.rand(out_features * blocks).numpy()
        weights.append(helper.make_tensor(f"w{i}", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True))
        weights.append(helper.make_tensor(f"s{i}", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True))
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **sizes)
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, out_features]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, in_features])]
    graph = helper.make_graph(nodes, "decode", inputs, outputs, weights)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = {"x": torch.randn(1, in_features).numpy()}

    def turn() -> float:
        session.run(None, x)
        begin = time.perf_counter()
        session.run(None, x)
        return (time.perf_counter() - begin) / count

    return turn


def peer_turns(out_features: int, in_features: int, matrices: int) -> tuple[dict[str, Turn], list[str]]:
    """Return the turns of the peers, and a line for each that is missing."""
    turns = torch_turns(out_features, in_features, matrices)
    missing = [] if "torch int4" in turns else ["torch int4: this version has no _weight_int4pack_mm_for_cpu"]
    absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        return turns, [*missing, f"ONNX Runtime: {' and '.join(absent)} not installed"]
    for bits in (8, 4, 2):
        # Versions differ in the widths that they take.
        try:
            turns[f"ONNX Runtime {bits} bits"] = onnx_turn(out_features, in_features, bits, matrices)
        except Exception as error:  # noqa: PERF203
            missing.append(f"ONNX Runtime {bits} bits: {str(error).splitlines()[0]}")
    return turns, missing


def measure(
    shape: tuple[int, int],
    bits: list[int],
    matrices: int,
    repeat: int,
    group_size: int = 0,
    zero_point: int = 0,
    peers: bool = True,
) -> dict[str, Any]:
    """Return medians: GB/s of plain reads by streams a thread, and ms of each contestant."""
    native = kernels.native
    assert native is not None
    out_features, in_features = shape
    planes = torch.randint(0, 256, (matrices, 8, out_features * in_features // 8), dtype=torch.uint8)
    turns = plane_turns(planes, out_features, bits, group_size, zero_point)
    missing: list[str] = []
    if peers:
        others, missing = peer_turns(out_features, in_features, matrices)
        turns |= others
    reads: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    for _ in range(repeat):
        for streams, taken in reads.items():
            time.sleep(REST)
            taken.append(native.read_bandwidth(planes.data_ptr(), planes.numel(), streams))
        for name, turn in turns.items():
            time.sleep(REST)
            times[name].append(turn())
    return {
        "shape": [out_features, in_features],
        "group_size": group_size,
        "zero_point": zero_point,
        "read_gb_per_s": {str(streams): statistics.median(taken) for streams, taken in reads.items()},
        "ms": {name: statistics.median(taken) * 1e3 for name, taken in times.items()},
        "missing": missing,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table of one shape."""
    (out_features, in_features), ms, reads = result["shape"], result["ms"], result["read_gb_per_s"]
    print(
        f"\n{out_features}×{in_features}, one row, "
        f"group size {result['group_size'] or 'none'}, zero point {result['zero_point']}"
    )
    print("plain reads, GB/s by streams a thread: " + ", ".join(f"{s}: {v:.1f}" for s, v in reads.items()))
    one, most = reads["1"], max(reads.values())
    int8 = ms.get("torch int8")
    print(f"{'':22}{'ms':>8}{'GB/s':>8}{'of one stream':>15}{'of the most':>13}{'of torch int8':>15}")
    for name, value in ms.items():
        line = f"{name:22}{value:8.3f}"
        width = int(name.split()[0]) if name.endswith(" bits") and name[0].isdigit() else None
        if width is None:
            line += " " * 36
        else:
            speed = out_features * in_features / 8 * planes_needed(8, width) / value / 1e6
            line += f"{speed:8.1f}{speed / one:15.2f}{speed / most:13.2f}"
        print(line + (f"{value / int8:15.2f}" if int8 else ""))
    for line in result["missing"]:
        print(f"not found: {line}")


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"], help="output x input features")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4, 3, 2])
    parser.add_argument("--matrices", type=int, default=40)
    parser.add_argument("--group-size", type=int, default=0)
    parser.add_argument("--zero-point", type=int, default=0)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    add_options(parser, repeat=9)
    options = parser.parse_args()
    if kernels.native is None:
        raise SystemExit("bitswitch was installed without compiled kernels; there is nothing to time")
    print(machine(bandwidth=False))
    results = []
    for text in options.shapes:
        out_features, in_features = (int(size) for size in text.split("x"))
        result = measure(
            (out_features, in_features),
            options.bits,
            options.matrices,
            options.repeat,
            options.group_size,
            options.zero_point,
            options.peers,
        )
        show(result)
        results.append(result)
    if options.json is not None:
        write_json(options.json, machine(bandwidth=False), {"shapes": results})


if __name__ == "__main__":
    main()
