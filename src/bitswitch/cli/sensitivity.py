"""`bitswitch sensitivity`: how sensitive each layer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitswitch.cli.mixed_options import ImageOptions
from bitswitch.cli.outputs import check_output_folder
from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from bitswitch.mixed import Sensitivity

_ABOUT = (
    "Estimate the trace of the loss's curvature over the weights of every layer, on training images: of the float "
    "network of a run, or of the weights of a checkpoint at its highest width."
)
PLOT_NAME = "sensitivity.png"


@dataclass(frozen=True)
class SensitivityOptions(ImageOptions):
    """What to estimate, and how well."""

    method: Literal["gauss-newton", "hessian"] = "gauss-newton"
    """Which matrix: that of Gauss and Newton orders layers alike from run to run, for much less work."""
    images: int = 1024
    """Training images."""
    batch_size: int = 32
    """Images a random probe; small batches give more probes for the same work."""
    relative_error: float = 0.1
    """Stop when the standard error of every layer is below this share of its trace."""
    max_probes: int = 64
    """Stop after so many probes of each batch in any case."""
    inputs: bool = False
    """Also estimate the traces with respect to the layers' inputs, shown in a table of their own."""
    seed: int = 0
    """Of the probes."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(SensitivityOptions, prog="bitswitch sensitivity", description=_ABOUT, args=arguments)
    for name in ("images", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}")
    check_output_folder("--output", options.output)
    from bitswitch.training import distributed

    try:
        _estimate(options)
    finally:
        distributed.shutdown()


def _estimate(options: SensitivityOptions) -> None:
    from bitswitch.mixed import hessian_trace
    from bitswitch.recipes.supernet import SENSITIVITY_NAME
    from bitswitch.recipes.trained import FirstBatches, Trained, images_of, open_images
    from bitswitch.report.mixed_plots import plot_sensitivity
    from bitswitch.training import CrossEntropy, distributed

    trained = Trained.open(options.trained)
    images = images_of(trained.recipe, options.trained, options.data, options.data_folder)
    device = distributed.init("gloo" if options.device == "cpu" else None)
    network = trained.float_network().to(device)
    processes = distributed.world_size()
    source = open_images(trained, images, options.batch_size, device)
    source.check_outputs(network)
    loader = source.calibration(options.batch_size * processes, shared=True)
    sensitivity = hessian_trace(
        network,
        CrossEntropy(),
        FirstBatches(loader, -(-options.images // (options.batch_size * processes))),
        method=options.method,
        relative_error=options.relative_error,
        max_probes=options.max_probes,
        inputs=options.inputs,
        seed=options.seed,
    )
    if distributed.is_main():
        path = options.results / SENSITIVITY_NAME
        sensitivity.save(path)
        plot_sensitivity(sensitivity, options.results / PLOT_NAME)
        of = (
            "the float network" if trained.has_float_weights else "the highest width, as there is no float network here"
        )
        print(f"traces over the weights of {of}")
        _print(sensitivity, path, options)


def _print(sensitivity: Sensitivity, path: Path, options: SensitivityOptions) -> None:
    from bitswitch.cli.tables import print_table

    for kind, traces in (("weight", sensitivity.layers), ("input", sensitivity.inputs)):
        rows = [
            (
                name,
                f"{trace.size:,}",
                f"{trace.value:.4g}",
                f"{trace.error:.2g}",
                f"{trace.value / trace.size:.3g}",
                "counts as zero" if trace.is_zero else "",
            )
            for name, trace in traces.items()
        ]
        if rows:
            print_table(("layer", f"{kind}s", "trace", "standard error", f"per {kind}", ""), rows, left=(0, 5))
    print(f"{sensitivity.method}, {sensitivity.num_examples:,} images, {sensitivity.num_probes} probes of each batch")
    if sensitivity.largest_relative_error > options.relative_error:
        print(
            f"the largest relative standard error is {sensitivity.largest_relative_error:.2f}; --max-probes was reached"
        )
    print(f"traces: {path}")
    print(f"plot:   {options.results / PLOT_NAME}")
