"""Time whole networks at every width against int8 engines and float PyTorch, in turn, in one process.

    python benchmarks/networks.py [--networks resnet18 resnet50 mobilenet_v2] [--batch 1 16] [--bits 8 6 4 2]

The networks are torchvision's with random weights on 224×224 images; first and last layers are 8-bit, as the peers'
are. Peers, where they are installed: ONNX Runtime (static quantization to QDQ with uint8 activations and int8 weights
per channel, as its own tool makes it), OpenVINO on the same file, and PyTorch in float32. All get the same threads.
Prints medians in milliseconds and ratios to ONNX Runtime and OpenVINO. Installs nothing; peers' models live in a
temporary folder.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.bench import Timing, add_options, machine, write_json
from bitswitch.bench.networks import float_call, latency
from bitswitch.cli.tables import print_table
from bitswitch.models import build_model

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
ONNX_RUNTIME, OPENVINO = "ONNX Runtime int8", "OpenVINO int8"
FLOAT, CHANNELS_LAST = "PyTorch float32", "PyTorch channels_last"
# ONNX Runtime's threads spin for a moment after a call; the next in turn shall not pay for it.
PAUSE = 0.02

Runner = Callable[[], Any]


def float_network(name: str, size: int) -> nn.Module:
    """Build a network whose BatchNorm statistics fit its random weights, so that activations have sane ranges."""
    torch.manual_seed(0)
    network = build_model(f"torchvision/{name}")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, size, size))
    return network.eval()


def versions() -> dict[str, str]:
    """Return the peers that are installed and their versions."""
    wanted = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnxruntime", "onnx")}
    return {
        name: importlib.metadata.version(name)
        for name, needed in wanted.items()
        if all(importlib.util.find_spec(module) for module in needed)
    }


def quantized_onnx(network: nn.Module, size: int, folder: Path, calibration: int = 8) -> Path:
    """Export a network and quantize it statically: uint8 activations, int8 weights per channel, QDQ."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Random(CalibrationDataReader):
        """Random images, one at a time."""

        def __init__(self) -> None:
            torch.manual_seed(1)
            self.left = [{"x": torch.randn(1, 3, size, size).numpy()} for _ in range(calibration)]

        def get_next(self) -> Any:
            """Return the next image, or None."""
            return self.left.pop() if self.left else None

    plain, prepared, result = folder / "float.onnx", folder / "prepared.onnx", folder / "int8.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter needs no further package (the newer one needs onnxscript).
        torch.onnx.export(
            network,
            (torch.randn(1, 3, size, size),),
            str(plain),
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            dynamo=False,
        )
        logging.disable(logging.WARNING)
        try:
            quant_pre_process(str(plain), str(prepared))
            quantize_static(
                str(prepared),
                str(result),
                Random(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
    return result


def onnx_runtime(path: Path, x: Tensor, threads: int) -> Runner:
    """Return a call of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ascontiguousarray(x.numpy())}
    return lambda: session.run(None, feed)


def openvino(path: Path, x: Tensor, threads: int) -> Runner:
    """Return a call of OpenVINO on the CPU, set up for latency, compiled for this very shape."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(list(x.shape))
    compiled = core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    )
    request, feed = compiled.create_infer_request(), [np.ascontiguousarray(x.numpy())]
    return lambda: request.infer(feed, share_inputs=True)


def peers(network: nn.Module, x: Tensor, folder: Path, *, floats: bool = True) -> dict[str, Runner]:
    """Return calls of all peers that are there."""
    found, threads, runners = versions(), torch.get_num_threads(), {}
    path = folder / "int8.onnx"
    if found and not path.exists():
        path = quantized_onnx(network, x.shape[-1], folder)
    if "onnxruntime" in found:
        runners[ONNX_RUNTIME] = onnx_runtime(path, x, threads)
    if "openvino" in found:
        runners[OPENVINO] = openvino(path, x, threads)
    if floats:
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x_last = x.contiguous(memory_format=torch.channels_last)
        runners[FLOAT] = float_call(network, x)
        runners[CHANNELS_LAST] = float_call(last, x_last)
    return runners


def engine_of(network: nn.Module, size: int, bits: Sequence[int]) -> nn.Module:
    """Prepare, calibrate and deploy a network, first and last layers at 8 bits."""
    images = torch.randn(2, 3, size, size)
    model = bs.prepare(network, bits=bits, example_inputs=images, first_last=8)
    bs.calibrate(model, [images])
    return bs.deploy(model)


def measure(
    name: str, batch: int, bits: Sequence[int], repeat: int, *, size: int = 224, floats: bool = True, folder: Path
) -> dict[str, Timing]:
    """Return the time of a call of everything that is there, by name; a width is called "8 bits"."""
    network = float_network(name, size)
    x = torch.randn(batch, 3, size, size)
    others = peers(network, x, folder, floats=floats)
    engine = engine_of(network, size, bits)
    return latency(engine, x, bits, others, repeat=repeat, burst=3 if batch == 1 else 1, pause=PAUSE)


def print_results(title: str, times: dict[str, Timing]) -> None:
    """Print a table: milliseconds, and how many times as long as the int8 peers."""
    rows = []
    for name, time in times.items():
        ratios = [f"{time.median / times[p].median:.2f}" if p in times else "–" for p in (ONNX_RUNTIME, OPENVINO)]
        label = f"bitswitch {name}" if name.endswith(" bits") else name
        rows.append((label, f"{time.median * 1e3:.2f}", f"{time.fastest * 1e3:.2f}", *ratios))
    print(f"\n{title}")
    print_table(("", "median ms", "fastest ms", "of ONNX Runtime", "of OpenVINO"), rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names in torchvision")
    parser.add_argument("--batch", nargs="+", type=int, default=(1, 16))
    parser.add_argument("--bits", nargs="+", type=int, default=(8, 6, 4, 2))
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--no-float", action="store_true", help="leave PyTorch's float32 out, which takes longest")
    add_options(parser)
    options = parser.parse_args()
    here, found = machine(), versions()
    print(here)
    print("peers:", ", ".join(f"{name} {version}" for name, version in found.items()) or "none but PyTorch")
    results: dict[str, Any] = {}
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            for batch in options.batch:
                times = measure(
                    name,
                    batch,
                    options.bits,
                    options.repeat,
                    size=options.size,
                    floats=not options.no_float,
                    folder=Path(folder),
                )
                print_results(f"{name}, {options.size}×{options.size}, batch {batch}", times)
                results[f"{name}, batch {batch}"] = {key: value.to_json() for key, value in times.items()}
                gc.collect()
    if options.json is not None:
        write_json(options.json, here, {"peers": found, "size": options.size, "times": results})


if __name__ == "__main__":
    main()
