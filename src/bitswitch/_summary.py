"""What a prepared model looks like: a table of its layers, and what each width takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bitswitch._planes import planes_needed
from bitswitch._ties import SHARES
from bitswitch.layers.table import EngineState, LayerEntry, LayerTable, state_of

_HEADER = ("layer", "kind", "status", "widths", "scales", "input", "shape", "weights", "note")
_RIGHT = ("weights",)


@dataclass(frozen=True)
class Summary:
    """The layer table of a model for people; `print` shows it.

    Attributes:
        table: the layers, in order.
        bits: the candidate widths, descending.
        shared: whether one set of integers serves all widths. If not, the weights stay float.
        execution: of an engine, how it runs the network.
        midrise: the widths whose levels are (c + ½) · s.
        activation_bits: (width of weights, width of their inputs), where the two differ.

    >>> from bitswitch.layers.table import LayerEntry, LayerTable
    >>> entry = LayerEntry("conv", "Conv2d", "quantized", "", (8, 4, 3, 3), (8, 2), "tensor", None, "unsigned")
    >>> print(Summary(LayerTable([entry]), (8, 2)))
    layer  kind    status     widths  scales  input     shape    weights  note
    ─────  ──────  ─────────  ──────  ──────  ────────  ───────  ───────  ────
    conv   Conv2d  quantized  8 2     tensor  unsigned  8×4×3×3      288
    <BLANKLINE>
    100.0 % of 288 weights are quantized.
    Weights take 1.15 kB as float32; 8 bits: 288 B (25.0 %); 2 bits: 108 B (9.4 %).
    """

    table: LayerTable
    bits: tuple[int, ...]
    shared: bool = True
    execution: str = ""
    midrise: tuple[int, ...] = ()
    activation_bits: tuple[tuple[int, int], ...] = ()

    @property
    def num_weights(self) -> int:
        """Weights of all layers but BatchNorm, and matrices of other modules; shared ones counted once."""
        return sum(entry.own_weights for entry in self.table.values())

    @property
    def num_quantized(self) -> int:
        """Those of them that are quantized."""
        return sum(entry.own_weights for entry in self.table.select("quantized"))

    def bytes_at(self, bits: int) -> int:
        """Return how many bytes the weights of all layers take at a uniform width, stored as packed bit planes.

        Args:
            bits: one of the candidate widths.
        """
        return sum(self._bytes(entry, bits) for entry in self.table.values())

    @property
    def float_bytes(self) -> int:
        """Bytes of the same weights as float32."""
        return 4 * self.num_weights

    def _bytes(self, entry: LayerEntry, bits: int) -> int:
        count = entry.own_weights
        if entry.status != "quantized" or not self.shared:
            return 4 * count
        stored = entry.bits[0]
        own = bits if bits in entry.bits else stored
        return planes_needed(stored, own, self.midrise) * math.ceil(count / 8)

    def __str__(self) -> str:
        rows = [_cells(entry) for entry in self.table.values()]
        return "\n".join([*_aligned(_HEADER, rows), "", *self._footer()])

    __repr__ = __str__

    def _footer(self) -> list[str]:
        total = self.num_weights
        share = 100 * self.num_quantized / total if total else 0.0
        sizes = [f"{b} bits: {format_bytes(n)} ({100 * n / (4 * total):.1f} %)" for b, n in self._sizes().items()]
        lines = [
            f"{share:.1f} % of {total:,} weights are quantized.",
            "; ".join([f"Weights take {format_bytes(self.float_bytes)} as float32", *sizes]) + ".",
        ]
        if self.midrise:
            lines.append(
                f"Levels are odd multiples of half a step (mid-rise) at {', '.join(map(str, self.midrise))} bits."
            )
        if self.activation_bits:
            pairs = ", ".join(f"{own} bits at {width}-bit weights" for width, own in self.activation_bits)
            lines.append(f"Inputs have {pairs}.")
        return [*lines, f"Runs {self.execution}"] if self.execution else lines

    def _sizes(self) -> Mapping[int, int]:
        return {bits: self.bytes_at(bits) for bits in self.bits} if self.num_weights else {}


def summary(model: nn.Module) -> Summary:
    """Return the layer table of a prepared model, with what is quantized, how, and why the rest is not.

    Args:
        model: a prepared model, trainable or loaded, wrapped in DistributedDataParallel or torch.compile or not; or an
            engine.

    Returns:
        An object that prints as a table; its attributes hold the same as data.

    Raises:
        PrepareError: the model is not prepared.

    >>> import torch
    >>> import bitswitch as bs
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = summary(bs.prepare(net, bits=(8, 4, 2), example_inputs=torch.zeros(1, 4)))
    >>> found.num_quantized, found.num_weights, found.bytes_at(4)
    (64, 112, 232)
    """
    state = state_of(model, engines=True)
    note = state.note() if isinstance(state, EngineState) else ""
    options = state.options
    return Summary(state.table, state.bits, options.shared, note, options.midrise, options.activation_bits)


def format_bytes(size: int) -> str:
    """Return a number of bytes for people, with three digits.

    >>> format_bytes(321), format_bytes(45_600), format_bytes(11_700_000)
    ('321 B', '45.6 kB', '11.7 MB')
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"


def _cells(entry: LayerEntry) -> tuple[str, ...]:
    scales = f"group of {entry.group_size}" if entry.granularity == "group" else entry.granularity
    notes = [entry.reason]
    if entry.alias_of is not None and not entry.reason.startswith(SHARES):
        notes.append(f"shares the weight of {entry.alias_of}")
    if entry.width_from is not None:
        notes.append(f"width of {entry.width_from}")
    if entry.width_to is not None:
        notes.append(f"next {entry.width_to}")
    count = math.prod(entry.shape) if entry.shape else entry.num_weights
    return (
        entry.name,
        entry.kind,
        entry.status,
        " ".join(map(str, entry.bits)) or "–",
        scales or "–",
        entry.input if entry.status == "quantized" else "–",
        "×".join(map(str, entry.shape)) or "–",
        "–" if count is None else f"{count:,}",
        "; ".join(filter(None, notes)),
    )


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    # The last column is as long as its longest text, which a rule should not be.
    rule = ["─" * width for width in widths[:-1]] + ["─" * len(header[-1])]
    right = [name in _RIGHT for name in header]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return [line(header), "  ".join(rule), *map(line, rows)]
