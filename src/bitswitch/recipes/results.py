"""What a finished run is worth, and where it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitswitch.errors import CheckpointError
from bitswitch.precision import MAX_BITS, MIN_BITS
from bitswitch.training.run import RESULTS_NAME, read_json


@dataclass(frozen=True)
class Results:
    """What a finished run is worth.

    Attributes:
        float_accuracy: accuracy of the float network before joint training, 0…1.
        accuracy: accuracy of the stored checkpoint by width.
        bytes_at: bytes of the files that each width needs.
        float_bytes: the same network with its quantized weights as float32.
    """

    float_accuracy: float
    accuracy: Mapping[int, float]
    bytes_at: Mapping[int, int]
    float_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return it with widths as strings."""
        return {
            "float_accuracy": self.float_accuracy,
            "accuracy": {str(bits): value for bits, value in self.accuracy.items()},
            "bytes_at": {str(bits): size for bits, size in self.bytes_at.items()},
            "float_bytes": self.float_bytes,
        }

    @classmethod
    def read(cls, folder: Path) -> Results | None:
        """Return what a run folder holds, or None if its run is not finished.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / RESULTS_NAME
        value = read_json(path)
        if value is None:
            return None
        try:
            accuracy = {int(bits): float(item) for bits, item in value["accuracy"].items()}
            sizes = {int(bits): int(item) for bits, item in value["bytes_at"].items()}
            results = cls(float(value["float_accuracy"]), accuracy, sizes, int(value["float_bytes"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{path} does not hold the results of a run") from None
        shares = (results.float_accuracy, *accuracy.values())
        widths = range(MIN_BITS, MAX_BITS + 1)
        if (
            not accuracy
            or set(accuracy) - set(widths)
            or results.float_bytes < 1
            or not all(0 <= s <= 1 for s in shares)
        ):
            raise CheckpointError(f"{path} does not hold the results of a run: a width or value of it is impossible")
        return results
