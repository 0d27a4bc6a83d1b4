"""Compare an engine with the network that computes in floats, as it was trained: accuracy, predictions, codes.

    python benchmarks/agreement.py CHECKPOINT [--data-folder FOLDER] [--precision 8 6 4 2] [--images N] [--json FILE]

CHECKPOINT is one that `bitswitch train` wrote, such as runs/…/checkpoint, whose held-out images are used; for others
--data says which. Both networks have the same integers. Within a layer they differ only by how float sums are rounded,
but where an activation lies on the border between two codes this changes a code, and later layers see the change.
Printed for every width, and for two mixed maps (every layer its own width): the accuracy of both, how many predictions
differ, and how many input codes differ over all layers; then the share for each layer. Codes are compared on 500
images. These, and those of --images, are drawn at random from all, always the same ones. No times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.bench import add_options, machine, write_json
from bitswitch.checkpoint import CheckpointInfo, read_info
from bitswitch.cli.tables import print_table
from bitswitch.layers import iter_layers
from bitswitch.precision import Precision
from bitswitch.recipes.config import RunConfig
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.stored import open_checkpoint, stored_recipe
from bitswitch.recipes.trained import images_of
from bitswitch.runtime import Engine
from bitswitch.runtime.graph.execute import GraphExecutor

CODE_IMAGES = 500
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass
class Agreement:
    """What was found at one precision.

    Attributes:
        precision: as it is written on the command line.
        images: how many were classified.
        right: right predictions of the network in floats, and of the engine.
        different: images on which predictions differ.
        codes: input codes that differ, and all of them, by layer.
        largest: the largest difference of a code, by layer.
    """

    precision: str
    images: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    different: int = 0
    codes: dict[str, list[int]] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def flips(self) -> float:
        """Share of codes that differ, over all layers."""
        return sum(a for a, _ in self.codes.values()) / max(1, sum(b for _, b in self.codes.values()))


def engine_codes(engine: Engine, images: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Return the codes of every layer's input in an engine, uint8, of the shape of the input."""
    # By the references, which compute what the kernels compute and can be watched.
    executor, found = engine._executor, {}
    if not isinstance(executor, GraphExecutor):
        raise SystemExit(f"codes can be compared for networks that run as a graph; this one runs {engine.plan}")
    bound = engine._configuration(precision).bound
    output = executor.run_bound(bound, (images,), {}, reference=True, watch=found.__setitem__)
    assert torch.equal(output, engine(images, precision=precision)), "the kernels and their references differ"
    return found


@contextmanager
def float_codes(model: nn.Module, found: dict[str, Tensor]) -> Iterator[None]:
    """Have a network in floats record the codes of every layer's input while it runs."""

    def note(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        found[name] = layer.input_quantizer.codes(inputs[0], layer.bits).to(torch.uint8)

    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in iter_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare_predictions(result: Agreement, outputs: tuple[Tensor, Tensor], labels: Tensor) -> None:
    """Count right predictions and different ones."""
    predictions = [output.argmax(1) for output in outputs]
    result.images += len(labels)
    for index, predicted in enumerate(predictions):
        result.right[index] += int((predicted == labels).sum())
    result.different += int((predictions[0] != predictions[1]).sum())


def compare_codes(result: Agreement, model: nn.Module, engine: Engine, images: Tensor, precision: Precision) -> None:
    """Count codes that differ, layer by layer."""
    expected: dict[str, Tensor] = {}
    with float_codes(model, expected):
        model(images)
    for name, codes in engine_codes(engine, images, precision).items():
        difference = (codes.int() - expected[name].int()).abs()
        count = result.codes.setdefault(name, [0, 0])
        count[0] += int((difference > 0).sum())
        count[1] += codes.numel()
        result.largest[name] = max(result.largest.get(name, 0), int(difference.max()))


def measure(
    info: CheckpointInfo, batches: Batches, code_batches: Batches, precisions: Sequence[Precision]
) -> list[Agreement]:
    """Run both networks over batches of (images, labels) at every precision, and compare codes on `code_batches`."""
    model = open_checkpoint(info)
    engine = bs.deploy(model)
    results = [Agreement(str(precision)) for precision in precisions]
    with torch.no_grad():
        for result, precision in zip(results, precisions, strict=True):
            bs.switch(model, precision)
            for images, _ in code_batches:
                compare_codes(result, model, engine, images, precision)
            for images, labels in batches:
                compare_predictions(result, (model(images), engine(images, precision=precision)), labels)
    return results


def mixed_maps(info: CheckpointInfo) -> list[Precision]:
    """Return two precisions that give neighbouring layers different widths."""
    available = info.config.table.available
    free = [name for name, widths in available.items() if len(widths) > 1]
    maps = [
        {name: available[name][(i * step) % len(available[name])] for i, name in enumerate(free)} for step in (1, 3)
    ]
    return [Precision.of(widths) for widths in maps]


def show(results: Sequence[Agreement], names: Sequence[str]) -> None:
    """Print the tables."""
    rows = [
        (
            name,
            *(f"{100 * right / result.images:.2f}" for right in result.right),
            f"{100 * (result.right[1] - result.right[0]) / result.images:+.2f}",
            str(result.different),
            f"{100 * result.flips:.3f}",
            str(max(result.largest.values(), default=0)),
        )
        for name, result in zip(names, results, strict=True)
    ]
    header = ("precision", "floats %", "engine %", "points", "predictions differ", "codes differ %", "by at most")
    print(f"\n{results[0].images:,} images")
    print_table(header, rows)
    print("\ncodes that differ, % by layer")
    layers = list(results[0].codes)
    cells = [[f"{100 * a / b:.3f}" for a, b in (r.codes[layer] for r in results)] for layer in layers]
    print_table(("input of", *names), [(layer, *row) for layer, row in zip(layers, cells, strict=True)])


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", choices=("digits", "cifar10", "folder"), help="by default that of the recipe")
    parser.add_argument("--data-folder", help="where the images are; by default as in the recipe, or BITSWITCH_DATA")
    parser.add_argument("--precision", nargs="+", help="by default all widths and two mixed maps")
    parser.add_argument("--images", type=int, help="by default all")
    parser.add_argument("--batch-size", type=int, default=250)
    add_options(parser, repeat=None)
    options = parser.parse_args()
    info = read_info(options.checkpoint)
    data = images_of(stored_recipe(options.checkpoint), options.checkpoint, options.data, options.data_folder)
    loader = RecipeData(data, RunConfig(eval_batch_size=options.batch_size), torch.device("cpu")).held_out()
    loader = loader.sample(options.images)
    here = machine(bandwidth=False)
    print(here)
    if options.precision:
        precisions, names = [Precision.parse(text) for text in options.precision], options.precision
    else:
        mixed = mixed_maps(info)
        precisions = [*(Precision.of(bits) for bits in info.bits_available), *mixed]
        names = [*(f"{bits} bits" for bits in info.bits_available), *(f"mixed {i + 1}" for i in range(len(mixed)))]
    results = measure(info, loader, loader.sample(CODE_IMAGES), precisions)
    show(results, names)
    if options.json is not None:
        write_json(options.json, here, {"agreement": [vars(result) | {"flips": result.flips} for result in results]})


if __name__ == "__main__":
    main()
