"""What bitswitch quantizes in common architectures: prepare, calibrate, train, switch, mix, save and load each of them.

    python benchmarks/breadth.py --write docs/breadth.md        # all models, the table of the documentation
    python benchmarks/breadth.py resnet18 swin_t                # some of them, printed

Networks have random weights: nothing is downloaded, and the figures say what is quantized, not how accurate it is.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch._plan import NOT_REACHED
from bitswitch.checkpoint import load, save
from bitswitch.errors import BitswitchWarning
from bitswitch.layers import SwitchableLayer, iter_layers
from bitswitch.layers.table import PARAMETER, LayerEntry, state_of

BITS = (8, 6, 4, 2)
# Input sizes in pixels: the smallest that the architecture allows; what is quantized does not depend on it.
SIZES = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "densenet121": 32,
    "squeezenet1_1": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "googlenet": 32,
    "inception_v3": 299,
    "vit_b_16": 224,
    "swin_t": 32,
    "swin_v2_t": 32,
    "maxvit_t": 224,
}


@dataclass(frozen=True)
class Result:
    """What was seen of one network; all counts are numbers of weights.

    Attributes:
        parameters: all parameters of the float network.
        weights: the weights of its layers (convolutions, linear layers, embeddings); a shared weight counts once.
        quantized: those in layers that the table says are quantized.
        executed: those whose weight and input quantizers ran in a forward pass of a training step at every width.
        num_layers: the number of quantized layers.
        num_float: the number of layers with weights that are not.
        floats: weights of float layers by reason.
        unsigned: the number of quantized layers whose input is known not to be negative.
        exact: whether the saved and loaded network gave bit-identical outputs at every width and for a mixed one.
    """

    parameters: int
    weights: int
    quantized: int
    executed: int
    num_layers: int
    num_float: int
    floats: Mapping[str, int]
    unsigned: int
    exact: bool


def first_output(output: Any) -> Tensor:
    """Return the main output of a network."""
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, Mapping) else output[0]


def loss_of(output: Any) -> Tensor:
    """Return a loss that reaches all outputs, those of auxiliary heads included."""
    if isinstance(output, Mapping):
        output = output["logits"]
    outputs = [output] if isinstance(output, Tensor) else [item for item in output if isinstance(item, Tensor)]
    logits = [item.flatten(0, -2) for item in outputs]
    return torch.stack([F.cross_entropy(item, torch.arange(len(item)) % item.shape[1]) for item in logits]).sum()


def run(model: nn.Module, inputs: Any) -> Any:
    """Call a network on a tensor, a tuple or a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def watched(model: nn.Module) -> Iterator[Counter[str]]:
    """Count, for every quantized layer, the forward passes in which its weight and its input were quantized."""
    counts: Counter[str] = Counter()
    running: list[str] = []
    handles = []
    for name, layer in iter_layers(model):
        quantizers = [layer.weight_quantizer] + ([layer.input_quantizer] if layer.input_quantizer is not None else [])
        seen: set[nn.Module] = set()
        for quantizer in quantizers:
            # Layers that share a weight share its quantizer: it counts for the layer that is running.
            def note(module: nn.Module, *_: Any, name: str = name, seen: set[nn.Module] = seen) -> None:
                if running and running[-1] == name:
                    seen.add(module)

            handles.append(quantizer.register_forward_hook(note))

        def enter(*_: Any, name: str = name) -> None:
            running.append(name)

        def leave(*_: Any, name: str = name, seen: set[nn.Module] = seen, expected: int = len(quantizers)) -> None:
            running.pop()
            counts[name] += len(seen) == expected
            seen.clear()

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def train_steps(model: nn.Module, inputs: Any, bits: tuple[int, ...]) -> set[str]:
    """Take one step at every width and return the layers that ran quantized and got a gradient at all of them."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    layers = dict(iter_layers(model))
    executed = set(layers)
    model.train()
    for width in bits:
        bs.switch(model, width)
        with watched(model) as counts:
            loss = loss_of(run(model, inputs))
        loss.backward()
        if not bool(loss.isfinite()):
            raise ArithmeticError(f"the loss at {width} bits is {loss.item()}")
        executed &= {name for name, layer in layers.items() if counts[name] and _has_gradient(layer)}
        # Networks with random weights, two images and maps of one pixel have steep gradients.
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return executed


def _has_gradient(layer: SwitchableLayer) -> bool:
    gradient = layer.weight.grad
    return gradient is not None and bool(gradient.isfinite().all())


def precisions(model: nn.Module, bits: tuple[int, ...]) -> list[Any]:
    """Return every width, and a mapping that gives neighbouring layers different ones."""
    names = list(state_of(model).table.available)
    return [*bits, {name: bits[index % len(bits)] for index, name in enumerate(names)}]


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any, requests: list[Any]) -> list[Tensor]:
    """Return the main output in evaluation mode at each precision."""
    results = []
    for request in requests:
        with bs.at(model, request):
            results.append(first_output(run(model.eval(), inputs)))
    return results


@torch.no_grad()
def settle(network: nn.Module, inputs: Any) -> None:
    """Give BatchNorms the statistics of the inputs: with those of new ones, the signal of a random network vanishes."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    run(network.train(), inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            # Channels that a few images leave constant would be blown up without bound.
            norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()) + 1e-3)
    network.eval()


def examine(network: nn.Module, inputs: Any, bits: tuple[int, ...] = BITS, **options: Any) -> Result:
    """Do with a float network all that bitswitch promises, and count what ran in integers."""
    settle(network, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitswitchWarning)
        model = bs.prepare(network, bits, example_inputs=inputs, **options)
    bs.calibrate(model, [inputs], forward=run)
    executed = train_steps(model, inputs, bits)
    requests = precisions(model, bits)
    before = outputs(model, inputs, requests)
    if not all(bool(y.isfinite().all()) for y in before):
        raise ArithmeticError("outputs are not finite")
    if any(torch.equal(y, before[0]) for y in before[1:]):
        raise ArithmeticError("outputs do not depend on the precision")
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        loaded = load(folder, into=network)
        exact = all(map(torch.equal, before, outputs(loaded, inputs, requests)))
    return _result(network, list(state_of(model).table.values()), executed, exact)


def _result(network: nn.Module, rows: list[LayerEntry], executed: set[str], exact: bool) -> Result:
    layers = [row for row in rows if row.status != "per-width" and row.kind != PARAMETER]
    sizes = {row.name: row.own_weights for row in layers}
    floats: Counter[str] = Counter()
    for row in layers:
        if row.status == "float":
            floats[row.reason] += sizes[row.name]
    quantized = [row for row in layers if row.status == "quantized"]
    return Result(
        parameters=sum(p.numel() for p in network.parameters()),
        weights=sum(sizes.values()),
        quantized=sum(sizes[row.name] for row in quantized),
        executed=sum(sizes[row.name] for row in quantized if row.name in executed),
        num_layers=len(quantized),
        num_float=len(layers) - len(quantized),
        floats=dict(floats),
        unsigned=sum(row.input == "unsigned" for row in quantized),
        exact=exact,
    )


def build(name: str) -> tuple[nn.Module, Any, str, dict[str, Any]]:
    """Return a network with random weights, example inputs, a word on their size, and options of `prepare`."""
    torch.manual_seed(0)
    if name.startswith("gpt2"):
        return *gpt2(12, 12, 768, 50257, 32), {"force": ["transformer.wte", "lm_head"]} if "tied" in name else {}
    if name == "transformer":
        network = nn.Transformer(batch_first=True, dropout=0.0)
        return network, (torch.randn(2, 12, 512), torch.randn(2, 8, 512)), "12 and 8 tokens", {}
    import torchvision

    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = SIZES[name]
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(2, 3, size, size), f"{size} px", {}


def gpt2(layers: int, heads: int, embed: int, vocabulary: int, length: int) -> tuple[nn.Module, dict[str, Tensor], str]:
    """Return a GPT-2 of transformers without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=embed,
        vocab_size=vocabulary,
        n_positions=max(length, 32),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config), {"input_ids": torch.randint(vocabulary, (2, length))}, f"{length} tokens"


HEADER = (
    "| model | input | parameters | in layers | layers quantized | executed quantized, of layer weights | of all "
    "parameters | inputs known ≥ 0 | float layers, in weights | exact after load |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---|---|"
)
_SHORT = {"first layer": "first", "last layer": "last", NOT_REACHED: "run in training only"}


def table_row(name: str, size: str, result: Result) -> str:
    """Return one row of the table in Markdown."""
    floats = ", ".join(
        f"{_SHORT.get(reason, reason)} {count / 1e3:,.1f} k" for reason, count in result.floats.items() if count
    )
    if result.executed != result.quantized:
        floats += f"; **prepared but not executed: {result.quantized - result.executed}**"
    return (
        f"| {name} | {size} | {result.parameters / 1e6:.2f} M | {result.weights / 1e6:.2f} M | {result.num_layers} of "
        f"{result.num_layers + result.num_float} | {result.executed / result.weights:.2%} | "
        f"{result.executed / result.parameters:.2%} | {result.unsigned} | {floats} | "
        f"{'yes' if result.exact else '**no**'} |"
    )


def versions() -> str:
    """Name the versions that a table was made with."""
    import torchvision
    import transformers

    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"transformers {transformers.__version__}; widths {', '.join(map(str, BITS))}"
    )


def write(path: Path, lines: list[str]) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    start, end = "<!-- breadth: begin -->", "<!-- breadth: end -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, _, tail = rest.partition(end)
    path.write_text("\n".join([head + start, *lines, end]) + tail, encoding="utf-8")


def main(run_one: Callable[..., Result] = examine) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="models; by default all")
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    arguments = parser.parse_args()
    lines = [f"Made with {versions()}.", "", *HEADER.split("\n")]
    print("\n".join(lines), flush=True)
    for name in arguments.names or [*SIZES, "transformer", "gpt2", "gpt2, wte forced (tied)"]:
        network, inputs, size, options = build(name)
        lines.append(table_row(name, size, run_one(network, inputs, **options)))
        print(lines[-1], flush=True)
    if arguments.write is not None:
        write(arguments.write, lines)


if __name__ == "__main__":
    main()
