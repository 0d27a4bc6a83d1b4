"""Which precisions a mini-batch trains: the uniform widths, or per-layer draws that stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from bitswitch.layers.table import LayerTable
from bitswitch.precision import Precision


class Sampler(Protocol):
    """Draws the precision that stands in for a width, for training under per-layer precisions (Algorithm A.3).

    A sampler that also has `state_dict()` and `load_state_dict()`, with JSON values, is saved and resumed with the
    trainer. Under many processes all of them must draw the same.
    """

    def sample(self, *, step: int, total_steps: int, bits: int, layers: Mapping[str, tuple[int, ...]]) -> Precision:
        """Return the precision to train in the place of the uniform width `bits`.

        Args:
            step: number of the training step, from 0; the same for all widths of a batch.
            total_steps: length of the training in steps.
            bits: the width whose turn it is.
            layers: the widths that every quantized layer was prepared for. A layer that shares the weight of another
                one and has the same widths is not among them: it gets what the other one draws.
        """
        ...


@runtime_checkable
class StatefulSampler(Protocol):
    """A sampler whose draws depend on more than its arguments."""

    def state_dict(self) -> Any:
        """Return its state as JSON values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Put back what `state_dict` returned."""
        ...


class Uniform:
    """The default: every width as it is, in all layers."""

    def sample(self, *, step: int, total_steps: int, bits: int, layers: Mapping[str, tuple[int, ...]]) -> Precision:
        """Return the uniform precision of `bits` bits."""
        return Precision.of(bits)


def draw(sampler: Sampler, table: LayerTable, *, step: int, total_steps: int, bits: int) -> Precision:
    """Return what a sampler draws, see `Sampler.sample`, with one width for layers that share a weight."""
    available = table.available
    owners = {entry.name: entry.alias_of for entry in table.select("quantized") if entry.alias_of is not None}
    tied = {name: owner for name, owner in owners.items() if available[name] == available.get(owner)}
    layers = {name: widths for name, widths in available.items() if name not in tied}
    precision = sampler.sample(step=step, total_steps=total_steps, bits=bits, layers=layers)
    drawn = {name: width for name, width in precision.layers if name not in tied}
    if not drawn:
        return precision
    drawn |= {name: drawn[owner] for name, owner in tied.items() if owner in drawn}
    return Precision.of(drawn, default=precision.default)
