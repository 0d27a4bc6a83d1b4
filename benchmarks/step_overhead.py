"""Time a training step at one width against the same step of the float network, in turn, in one process.

    python benchmarks/step_overhead.py [--batch 128] [--bits 4] [--repeat 15] [--channels-last]

The network is ResNet-20 on 32×32 images, the step is forward, backward and Adam. Prints medians and their ratio for
float32 and for bfloat16 autocast. The peer is the float network itself, so the ratio is what quantization costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.bench import interleave
from bitswitch.models import build_model


def step_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: bool) -> Callable[[], None]:
    """Return a function that trains the network for one step."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(batch: int, bits: int, repeat: int, channels_last: bool) -> dict[str, tuple[float, float]]:
    """Return {"float32": (float step, quantized step), "bfloat16": …}, medians in seconds."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    results = {}
    for name, autocast in (("float32", False), ("bfloat16", True)):
        network = build_model("resnet20-cifar")
        model = bs.prepare(network, example_inputs=images[:1])
        bs.calibrate(model, [images])
        bs.switch(model, bits)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
            network, model = (
                n.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                for n in (network, model)
            )
        steps = {"plain": network, "quantized": model}
        times = interleave({key: step_of(n, images, labels, autocast) for key, n in steps.items()}, repeat=repeat)
        results[name] = times["plain"].median, times["quantized"].median
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    print(f"ResNet-20, batch {options.batch}, {options.bits} bits, {torch.get_num_threads()} threads, medians in ms")
    print(f"{'':10}{'float':>10}{'quantized':>12}{'ratio':>8}")
    for name, (plain, quantized) in measure(options.batch, options.bits, options.repeat, options.channels_last).items():
        print(f"{name:10}{plain * 1e3:10.1f}{quantized * 1e3:12.1f}{quantized / plain:8.2f}")


if __name__ == "__main__":
    main()
