"""`bitswitch bench`: how fast and how small a network is on this machine, at each width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console

from bitswitch.cli.outputs import check_output_file
from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from bitswitch.bench.report import Report

_ABOUT = (
    "Measure a network on this machine with integer execution: latency at each width against float32, resident memory, "
    "time to change the width, and on request what a training step costs. Times are medians of calls taken in turn."
)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure."""

    model: tyro.conf.Positional[str]
    """A checkpoint, a run, or an architecture with random weights: digits-cnn, torchvision/resnet18, timm/resnet18."""
    bits: tuple[int, ...] = ()
    """Widths; by default all of the checkpoint, or 8 6 4 2."""
    batch: tuple[int, ...] = (1, 16)
    """Inputs a call."""
    image_size: int | None = None
    """Height and width of the input; by default what the architecture is known for."""
    input_shape: tuple[int, ...] = ()
    """All sizes of one input, for example 3 160 320."""
    first_last: Literal["float", "8"] = "float"
    """First and last layers of a named architecture; a checkpoint knows its own."""
    dynamic: bool = False
    """Let layers that were prepared with float inputs compute their codes from each row."""
    threads: int | None = None
    """Threads to compute with; by default PyTorch's number."""
    float_network: bool = True
    """Measure the float32 network of PyTorch too."""
    simulated: bool = True
    """Measure the network as training computes it too, at the largest width."""
    memory: bool = True
    """Measure resident memory, in a process for each width."""
    training: bool = False
    """Measure training steps, float32 and at each width."""
    training_batch: int = 32
    """Inputs a training step."""
    repeat: int = 25
    """Rounds; each calls everything."""
    seconds: float = 15.0
    """No further round of a table begins after this time (there are at least three)."""
    json: Path | None = None
    """File for the figures."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(BenchOptions, prog="bitswitch bench", description=_ABOUT, args=arguments)
    for name in ("batch", "bits", "image_size", "input_shape", "threads", "training_batch", "repeat"):
        value = getattr(options, name)
        if any(item < 1 for item in (value if isinstance(value, tuple) else [value]) if item is not None):
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; got {value}")
    if options.image_size is not None and options.input_shape:
        raise ConfigError("give either --image-size or --input-shape")
    if not options.seconds >= 0:
        raise ConfigError(f"--seconds must be at least 0; got {options.seconds}")
    check_output_file("--json", options.json)
    with _threads(options.threads):
        _bench(options)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bench(options: BenchOptions) -> None:
    import tempfile

    from bitswitch.bench import machine, write_json
    from bitswitch.bench.report import Settings, measure
    from bitswitch.bench.subject import open_subject
    from bitswitch.recipes.stored import checkpoint_folder

    console = Console(stderr=True)
    with console.status("reading memory"):
        here = machine()
    print(here, flush=True)
    with tempfile.TemporaryDirectory() as scratch, console.status("opening the network") as status:
        subject = open_subject(
            str(checkpoint_folder(Path(options.model))) if Path(options.model).is_dir() else options.model,
            Path(scratch) / "checkpoint",
            bits=options.bits,
            input_shape=options.input_shape,
            image_size=options.image_size,
            first_last=options.first_last,
            dynamic=options.dynamic,
        )
        settings = Settings(
            batch=options.batch,
            repeat=options.repeat,
            seconds=options.seconds,
            float_network=options.float_network,
            simulated=options.simulated,
            memory=options.memory,
            training_batch=options.training_batch if options.training else None,
        )
        report = measure(subject, settings, status.update)
    _print(report)
    if options.json is not None:
        write_json(options.json, here, report.to_json())
        print(f"figures: {options.json}")


def _print(report: Report) -> None:
    shape = "×".join(map(str, report.subject.input_shape))
    print(f"{report.subject.name}, inputs of {shape}, medians; the engine runs it {report.execution}")
    _print_latency(report)
    _print_switching(report)
    _print_training(report)


def _print_latency(report: Report) -> None:
    from bitswitch._summary import format_bytes
    from bitswitch.bench.networks import FLOAT, SIMULATED
    from bitswitch.cli.tables import print_table

    header, rows = ["precision"], []
    for batch, times in report.latency.items():
        header += [f"batch {batch}, ms", *(["of float32"] if FLOAT in times else [])]
    header += ["size", *(["memory opened", "memory running"] if report.memory else [])]
    names = {FLOAT: None, SIMULATED: None, **{f"{width} bits": width for width in report.subject.bits}}
    measured = next(iter(report.latency.values()), {})
    for name, width in ((name, width) for name, width in names.items() if name in measured):
        row: list[str] = [name]
        for times in report.latency.values():
            row.append(_ms(times[name].median))
            row += [f"{times[name].median / times[FLOAT].median:.2f}"] if FLOAT in times else []
        size = report.float_bytes if name == FLOAT else None if width is None else report.bytes_at[width]
        row.append("–" if size is None else format_bytes(size))
        found = None if width is None else report.memory.get(width)
        if report.memory:
            row += ["–", "–"] if found is None else [format_bytes(found.opened), format_bytes(found.running)]
        rows.append(row)
    print_table(header, rows)


def _print_switching(report: Report) -> None:
    from bitswitch.cli.tables import print_table

    if not report.switching:
        return
    rows = []
    for width in report.subject.bits:
        row = [f"{width} bits"]
        for timings in report.switching.values():
            row += [_ms(timings[width].switch.median), _ms(timings[width].first_call.median)]
        rows.append(row)
    header = ["switch to"]
    for name in report.switching:
        header += [f"{name}, ms", "first answer, ms"]
    print_table(header, rows)


def _print_training(report: Report) -> None:
    from bitswitch.bench.networks import FLOAT
    from bitswitch.cli.tables import print_table

    if not report.training:
        return
    base = report.training[FLOAT].median
    rows = [(name, _ms(time.median), f"{time.median / base:.2f}") for name, time in report.training.items()]
    print_table(("training step", f"batch {report.training_batch}, ms", "of float32"), rows)


def _ms(seconds: float) -> str:
    """Write milliseconds with three digits."""
    value = seconds * 1e3
    digits = 0 if value >= 99.5 else 1 if value >= 9.95 else 2 if value >= 0.995 else 3 if value >= 0.0995 else 4
    return f"{value:.{digits}f}"
