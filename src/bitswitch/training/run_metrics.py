"""metrics.csv: rows that are appended as training goes on, and cut back to the last checkpoint when it resumes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bitswitch.errors import CheckpointError

FLOAT_BITS = 32
EVALUATED = ("validation", "held-out")


@dataclass(frozen=True)
class MetricsRow:
    """One row of metrics.csv.

    Attributes:
        phase: name of the phase of the run.
        split: "train", means over the steps since the row before; or what images an evaluation was of: "validation",
            kept out of the training images, or "held-out".
        epoch: epochs begun, from 1; 0 before training.
        step: steps done in this phase.
        bits: the width; 32 for the float network.
        loss: mean loss.
        accuracy: share of right answers, 0…1.
        lr: base learning rate of the last step.
        scale_lr: mean learning rate of the weight scales, λ_b of Eq. (6).
        scale_gradient: mean over steps and layers of max|∇s|, before ALRS.
        scaled_gradient: the same after ALRS: times λ_b / λ.
    """

    phase: str
    split: str
    epoch: int
    step: int
    bits: int
    loss: float | None = None
    accuracy: float | None = None
    lr: float | None = None
    scale_lr: float | None = None
    scale_gradient: float | None = None
    scaled_gradient: float | None = None

    @property
    def is_evaluation(self) -> bool:
        """Whether it is of an evaluation."""
        return self.split in EVALUATED


COLUMNS = tuple(item.name for item in fields(MetricsRow))
_TEXT = ("phase", "split")
_INTEGERS = ("epoch", "step", "bits")


class MetricsFile:
    """metrics.csv of a run.

    Args:
        path: the file.
        writable: False in processes that must not write; every method then does nothing.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.writable = writable
        self._size = 0

    def start(self, size: int = 0) -> None:
        """Begin at a size that `sync` returned, dropping what was written after it; 0 begins anew.

        Raises:
            CheckpointError: the file is shorter than that.
        """
        if not self.writable:
            return
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            raise CheckpointError(f"{self.path}: expected at least {size} bytes, found {found}; was it changed?")
        with open(self.path, "ab") as file:
            file.truncate(size)
        self._size = size
        if size == 0:
            self._append([COLUMNS])

    def write(self, rows: Iterable[MetricsRow]) -> None:
        """Append rows."""
        if self.writable:
            # repr() of a float is the shortest text that reads back as the same float.
            self._append([["" if v is None else v for v in asdict(row).values()] for row in rows])

    def sync(self) -> int:
        """Flush to the disk and return the size in bytes."""
        if self.writable:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
        return self._size

    def _append(self, rows: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode()
        with open(self.path, "ab") as file:
            file.write(data)
        self._size += len(data)


def read_metrics(path: Path) -> list[MetricsRow]:
    """Read metrics.csv.

    Raises:
        CheckpointError: it is missing or has another form.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise CheckpointError(f"{path}: expected the columns {', '.join(COLUMNS)}")
            return [MetricsRow(**{name: _parse(name, row[name]) for name in COLUMNS}) for row in reader]
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read as metrics: {error}") from None


def _parse(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name in _INTEGERS:
        return int(text)
    return float(text) if text else None


class Window:
    """Means of what the steps since the last row reported, by width."""

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, float]] = {}
        self._last: dict[int, float] = {}
        # A width may have had its turn in some of the steps only.
        self._counts: dict[int, int] = {}

    def add(self, values: Mapping[int, Mapping[str, float]]) -> None:
        """Add a step: values by width and by column."""
        for bits, columns in values.items():
            sums = self._sums.setdefault(bits, {})
            for name, value in columns.items():
                sums[name] = sums.get(name, 0.0) + value
            self._last[bits] = columns["lr"]
            self._counts[bits] = self._counts.get(bits, 0) + 1

    def flush(self, phase: str, epoch: int, step: int) -> list[MetricsRow]:
        """Return the rows of the window, and begin a new one."""
        rows = [
            MetricsRow(
                phase,
                "train",
                epoch,
                step,
                bits,
                **{k: v / self._counts[bits] for k, v in sums.items()} | {"lr": self._last[bits]},
            )
            for bits, sums in sorted(self._sums.items(), reverse=True)
        ]
        self.__init__()
        return rows

    def state(self) -> dict[str, Any]:
        """Return the window as JSON."""
        return {
            "counts": {str(bits): count for bits, count in self._counts.items()},
            "sums": {str(bits): sums for bits, sums in self._sums.items()},
            "last": {str(bits): lr for bits, lr in self._last.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._counts = {int(bits): count for bits, count in _counts(state).items()}
        self._sums = {int(bits): dict(sums) for bits, sums in state["sums"].items()}
        self._last = {int(bits): lr for bits, lr in state["last"].items()}


def _counts(state: Mapping[str, Any]) -> Mapping[str, int]:
    # Before widths took turns, one count was that of all of them.
    return state["counts"] if "counts" in state else dict.fromkeys(state["sums"], int(state["count"]))
