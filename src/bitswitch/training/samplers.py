"""Which precisions a mini-batch trains: the uniform widths, or per-layer draws that stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

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
            layers: the widths that every quantized layer was prepared for.
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
