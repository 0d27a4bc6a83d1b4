"""`bitswitch inspect`: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from bitswitch.checkpoint import CheckpointInfo

_ABOUT = "Show what a checkpoint holds: layers, bytes a width needs against float32, files present and missing."
_MAX_BARS = 16
_BAR_LENGTH = 48


@dataclass(frozen=True)
class InspectOptions:
    """What to show."""

    checkpoint: tyro.conf.Positional[Path]
    """The checkpoint folder, or the run folder that it is in."""
    histograms: bool = False
    """Show how often each code occurs at each width, over all layers or those given by --layers."""
    layers: tuple[str, ...] = ()
    """Layers to show histograms of, one by one."""
    verify: bool = False
    """Read every file and compare it with its hash."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(InspectOptions, prog="bitswitch inspect", description=_ABOUT, args=arguments)
    from bitswitch._summary import Summary
    from bitswitch.checkpoint import read_info, verify
    from bitswitch.recipes.stored import checkpoint_folder

    info = read_info(checkpoint_folder(options.checkpoint))
    print(_title(info))
    print()
    quantizers = info.config.options
    print(
        Summary(
            info.config.table,
            info.config.bits,
            quantizers.shared,
            midrise=quantizers.midrise,
            activation_bits=quantizers.activation_bits,
        )
    )
    print()
    _print_widths(info)
    _print_files(info)
    if options.verify:
        verify(info.folder)
        print("every file that is there has the content that it should have")
    if options.histograms or options.layers:
        _print_histograms(info, options.layers)


def _title(info: CheckpointInfo) -> str:
    architecture = info.config.architecture
    name = "unnamed network"
    if isinstance(architecture, dict) and {"source", "name"} <= set(architecture):
        own = architecture["source"] == "bitswitch"
        name = str(architecture["name"]) if own else f"{architecture['source']}/{architecture['name']}"
    return f"{name}, {', '.join(map(str, info.config.bits))} bits, opened at {info.config.precision} by default"


def _print_widths(info: CheckpointInfo) -> None:
    from bitswitch._summary import format_bytes
    from bitswitch.cli.tables import print_table

    rows = [("float", format_bytes(info.float_bytes), "100 %", "–")]
    for bits, size in info.bytes_at.items():
        there = "yes" if bits in info.bits_available else "files missing or damaged"
        rows.append((f"{bits} bits", format_bytes(size), f"{100 * size / info.float_bytes:.1f} %", there))
    print_table(("width", "size", "of float32", "can be opened"), rows, left=(0, 3))


def _print_files(info: CheckpointInfo) -> None:
    from bitswitch._summary import format_bytes
    from bitswitch.cli.tables import print_table

    states = dict.fromkeys(info.missing, "MISSING")
    states |= {name: f"DAMAGED: {size} bytes instead of {info.files[name]}" for name, size in info.wrong_sizes.items()}
    rows = [(name, format_bytes(size), states.get(name, "present")) for name, size in info.files.items()]
    print_table(("file", "size", "state"), rows, left=(0, 2))


def _print_histograms(info: CheckpointInfo, layers: Sequence[str]) -> None:
    from bitswitch.checkpoint.counts import count_codes, sum_counts

    config = info.config
    unknown = [name for name in layers if name not in config.weights]
    if unknown:
        raise ConfigError(f"no stored weight belongs to a layer {unknown[0]!r}; there are {', '.join(config.weights)}")
    counts = count_codes(info)
    for group in [[name] for name in layers] or [list(counts)]:
        total = sum_counts([counts[name] for name in group if name in counts])
        title = group[0] if layers else f"all {len(group)} layers with bit planes"
        if not total:
            print(f"\n{title}: nothing to count, the codes of all widths are not kept in bit planes")
        for bits, values in total.items():
            levels = ", where code c stands for c + ½ steps" if bits in info.config.options.midrise else ""
            print(f"\n{title} at {bits} bits{levels}")
            for line in _histogram(values, bits):
                print(line)


def _histogram(counts: Tensor, bits: int) -> Iterator[str]:
    """Yield a line with a bar for every code, or for every range of codes if there are many."""
    from rich.bar import Bar
    from rich.console import Console

    step = max(1, 2**bits // _MAX_BARS)
    binned = counts.view(-1, step).sum(1).tolist()
    total, most = max(1, sum(binned)), max(1, *binned)
    console = Console(width=_BAR_LENGTH, force_terminal=False, color_system=None)
    for index, count in enumerate(binned):
        first = index * step - 2 ** (bits - 1)
        name = f"{first}" if step == 1 else f"{first}…{first + step - 1}"
        with console.capture() as captured:
            console.print(Bar(most, 0, count, width=_BAR_LENGTH), end="")
        yield f"{name:>10} {100 * count / total:6.2f} % {captured.get().strip()}".rstrip()
