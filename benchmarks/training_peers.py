"""Time a training step at one width against the float network and against other ways to train quantized networks.

    python benchmarks/training_peers.py [--networks resnet20 resnet18] [--types float32 bfloat16] [--bits 4]
                                        [--skip PEER …] [--no-compile] [--keep-memory] [--repeat 9] [--json FILE]

A step is forward, backward and Adam: ResNet-20 on 128 images of 32×32, ResNet-18 on 32 images of 64×64. The contestants
take turns in one process; medians are printed, and their ratios to the float network in eager mode. bfloat16 means
autocast. All contestants quantize weights and inputs of the same convolutions with learned scales:

    float          the network itself
    bitswitch      prepared by this package
    fake_quantize  torch._fake_quantize_learnable_per_tensor_affine
    function       LSQ in one torch.autograd.Function
    lsq            LSQ from differentiable operators with a straight-through rounding
    brevitas       its QuantConv2d (scales from statistics for weights)
    nncf           its fake quantizers (8 bits, all layers)

The last two take part if they are installed. With a C++ compiler, float, bitswitch and lsq are also run under
torch.compile. --keep-memory stops the C library from returning freed memory to the system after every step, for all.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.bench.machine import machine
from bitswitch.bench.output import add_options, write_json
from bitswitch.bench.timing import Timing, interleave
from bitswitch.cli.tables import print_table
from bitswitch.models import build_model
from bitswitch.training import keep_freed_memory

SIZES = {"resnet20": (128, 32), "resnet18": (32, 64)}
TYPES = {"float32": None, "bfloat16": torch.bfloat16}
COMPILED = ("float", "bitswitch", "lsq")
INSTALLED = ("brevitas", "nncf")
PEERS = ("fake_quantize", "function", "lsq", *INSTALLED)

Quantizer = Callable[[Tensor, Tensor, int, int], Tensor]
"""Called with a tensor, its scale, and the range of codes."""


def gain(x: Tensor, high: int) -> float:
    """Return LSQ's factor of the scale's gradient."""
    return 1.0 / math.sqrt(x.numel() * high)


def by_operators(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Plain LSQ: operators that autograd differentiates, with rounding passed straight through."""
    factor = gain(x, high)
    scale = (scale - scale * factor).detach() + scale * factor
    v = (x / scale).clamp(low, high)
    return ((v.round() - v).detach() + v) * scale


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.range = low, high
        return (x / scale).round().clamp(low, high) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        low, high = ctx.range
        v = x / scale
        inside = (v > low) & (v < high)
        codes = v.round().clamp(low, high)
        of_scale = (grad * torch.where(inside, codes - v, codes)).sum() * gain(x, high)
        return grad * inside, of_scale.to(scale.dtype), None, None


def by_function(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """LSQ with forward and backward written out."""
    return _Lsq.apply(x, scale, low, high)  # pyright: ignore[reportReturnType]


def by_torch(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """PyTorch's own learnable fake quantizer, which takes float32 only."""
    result = torch._fake_quantize_learnable_per_tensor_affine(  # pyright: ignore[reportPrivateImportUsage]
        x.float(), scale.view(1), torch.zeros(1), low, high, gain(x, high)
    )
    return result.to(x.dtype)


class QuantizedConv(nn.Conv2d):
    """A convolution whose input and weight pass through a quantizer; made by `with_quantizer`."""

    quantize: Quantizer
    bits: int
    input_scale: nn.Parameter
    weight_scale: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """Apply it."""
        top = 1 << self.bits
        x = self.quantize(input, self.input_scale, 0, top - 1)
        weight = self.quantize(self.weight, self.weight_scale, -top // 2, top // 2 - 1)
        return self._conv_forward(x, weight, self.bias)


def inner_convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return all convolutions but the first."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)][1:]


def with_quantizer(network: nn.Module, quantize: Quantizer, bits: int) -> nn.Module:
    """Quantize the inner convolutions of a network in place."""
    for convolution in inner_convolutions(network):
        convolution.__class__ = QuantizedConv
        assert isinstance(convolution, QuantizedConv)
        convolution.quantize, convolution.bits = quantize, bits
        convolution.input_scale = nn.Parameter(torch.tensor(3.0 / (1 << bits)))
        mean = convolution.weight.detach().abs().mean()
        convolution.weight_scale = nn.Parameter(2 * mean / math.sqrt((1 << bits - 1) - 1))
    return network


def by_brevitas(network: nn.Module, bits: int) -> nn.Module:
    """Replace the inner convolutions by those of Brevitas."""
    from brevitas import nn as qnn  # pyright: ignore[reportMissingImports]
    from brevitas.quant import (  # pyright: ignore[reportMissingImports]
        Int8WeightPerTensorFloat,
        Uint8ActPerTensorFloat,
    )

    replaced = set(map(id, inner_convolutions(network)))
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in replaced:
                assert isinstance(child, nn.Conv2d)
                made = qnn.QuantConv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    stride=child.stride,
                    padding=child.padding,
                    bias=child.bias is not None,
                    weight_quant=Int8WeightPerTensorFloat,
                    weight_bit_width=bits,
                    input_quant=Uint8ActPerTensorFloat,
                    input_bit_width=bits,
                )
                setattr(parent, name, made)
    return network


def by_nncf(network: nn.Module, images: Tensor) -> nn.Module:
    """Insert the fake quantizers of NNCF."""
    import nncf  # pyright: ignore[reportMissingImports]

    return nncf.quantize(network.eval(), nncf.Dataset([images]), subset_size=1)


def by_bitswitch(network: nn.Module, images: Tensor, bits: int) -> nn.Module:
    """Prepare a network with this package."""
    model = bs.prepare(network, example_inputs=images[:1])
    bs.calibrate(model, [images])
    bs.switch(model, bits)
    return model


def contestants(
    network: nn.Module, images: Tensor, bits: int, skip: Collection[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the networks to train by name, and why others do not take part."""
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "float": lambda n: n,
        "bitswitch": lambda n: by_bitswitch(n, images, bits),
        "fake_quantize": lambda n: with_quantizer(n, by_torch, bits),
        "function": lambda n: with_quantizer(n, by_function, bits),
        "lsq": lambda n: with_quantizer(n, by_operators, bits),
        "brevitas": lambda n: by_brevitas(n, bits),
        "nncf": lambda n: by_nncf(n, images),
    }
    made, absent = {}, {}
    for name, make in makers.items():
        if name in skip:
            absent[name] = "left out"
            continue
        if name in INSTALLED and importlib.util.find_spec(name) is None:
            absent[name] = "not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = make(copy.deepcopy(network))
        except Exception as error:  # a peer that does not work here is reported, not fatal
            if name not in INSTALLED:
                raise
            absent[name] = f"{type(error).__name__}: {error}"
    return made, absent


def step_of(network: nn.Module, images: Tensor, labels: Tensor, autocast: torch.dtype | None) -> Callable[[], None]:
    """Return a function that trains the network for one step."""
    network.train()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def float_network(name: str) -> nn.Module:
    """Return ResNet-20 of this package, or ResNet-18 of torchvision."""
    if name == "resnet20":
        return build_model("resnet20-cifar")
    from torchvision.models import resnet18

    return resnet18(num_classes=1000)


def measure(
    name: str,
    type_name: str,
    *,
    batch: int,
    size: int,
    bits: int,
    repeat: int,
    compile: bool,
    skip: Collection[str] = (),
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Return the times of a step by contestant ("… compiled" under torch.compile), and who does not take part."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    networks, absent = contestants(float_network(name), images, bits, skip)
    steps = {key: step_of(network, images, labels, TYPES[type_name]) for key, network in networks.items()}
    if compile:
        for key in (k for k in COMPILED if k in networks):
            network = torch.compile(copy.deepcopy(networks[key]))
            assert isinstance(network, nn.Module)
            steps[f"{key} compiled"] = step_of(network, images, labels, TYPES[type_name])
    return interleave(steps, repeat=repeat), absent


def rows_of(times: dict[str, Timing]) -> Iterable[list[str]]:
    """Yield a row for each contestant: its time, over float eager and, if compiled, over float compiled."""
    for name, timing in times.items():
        base = times.get("float compiled") if name.endswith("compiled") else None
        over = "" if base is None else f"{timing.median / base.median:.2f}"
        yield [name, f"{timing.median * 1e3:.1f}", f"{timing.median / times['float'].median:.2f}", over]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--skip", nargs="+", choices=PEERS, default=())
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true")
    add_options(parser, repeat=9)
    options = parser.parse_args()
    compile = not options.no_compile and (shutil.which("g++") is not None or torch.cuda.is_available())
    kept = options.keep_memory and keep_freed_memory()
    about = machine()
    print(about)
    print(f"freed memory is {'kept' if kept else 'returned to the system as the C library likes'}")
    results = {}
    for name in options.networks:
        batch, size = SIZES[name]
        for type_name in options.types:
            times, absent = measure(
                name,
                type_name,
                batch=batch,
                size=size,
                bits=options.bits,
                repeat=options.repeat,
                compile=compile,
                skip=options.skip,
            )
            print(f"\n{name}, {batch} images of {size}x{size}, {options.bits} bits, {type_name}")
            print_table(["", "ms", "/ float", "/ float compiled"], list(rows_of(times)))
            for peer, reason in absent.items():
                print(f"{peer}: {reason}")
            results[f"{name} {type_name}"] = {key: timing.to_json() for key, timing in times.items()}
    if options.json is not None:
        write_json(options.json, about, {"bits": options.bits, "memory_kept": kept, "steps": results})


if __name__ == "__main__":
    main()
