"""What is shown and recorded while a recipe runs: a progress bar or log lines, and TensorBoard events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bitswitch.training.run_loop import Observer, Phase, StepValues
from bitswitch.training.run_metrics import FLOAT_BITS, MetricsRow

_TITLES = {"float": "float network", "joint": "all widths"}


class Observers(Observer):
    """Several observers as one.

    Args:
        members: told in order.
    """

    def __init__(self, *members: Observer) -> None:
        self.members = members

    def begin(self, phase: Phase, step: int) -> None:
        """Tell all."""
        for member in self.members:
            member.begin(phase, step)

    def after_step(self, phase: Phase, step: int, values: StepValues) -> None:
        """Tell all."""
        for member in self.members:
            member.after_step(phase, step, values)

    def after_rows(self, phase: Phase, rows: Sequence[MetricsRow]) -> None:
        """Tell all."""
        for member in self.members:
            member.after_rows(phase, rows)

    def end(self, phase: Phase) -> None:
        """Tell all."""
        for member in self.members:
            member.end(phase)


class LogLines(Observer):
    """A line for every evaluation.

    Args:
        write: takes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def begin(self, phase: Phase, step: int) -> None:
        """Say what begins."""
        start = f", continued after step {step}" if step else ""
        self.write(f"{_title(phase)}: {phase.epochs} epochs of {phase.steps_per_epoch} steps{start}")

    def after_rows(self, phase: Phase, rows: Sequence[MetricsRow]) -> None:
        """Write the accuracies of an evaluation."""
        if rows[0].is_evaluation:
            self.write(f"{_title(phase)}: epoch {rows[0].epoch}/{phase.epochs}, {accuracies(rows)}")


class Bar(Observer):
    """A progress bar with the accuracy of each width, and the loss of the last step.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("[cyan]{task.fields[accuracy]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def begin(self, phase: Phase, step: int) -> None:
        """Show the bar."""
        self._progress.start()
        total = phase.epochs * phase.steps_per_epoch
        self._task = self._progress.add_task(_title(phase), total=total, completed=step, loss="–", accuracy="")

    def after_step(self, phase: Phase, step: int, values: StepValues) -> None:
        """Move the bar."""
        if self._task is not None:
            loss = sum(columns["loss"] for columns in values.values()) / len(values)
            self._progress.update(self._task, completed=step, loss=f"{loss:.3f}")

    def after_rows(self, phase: Phase, rows: Sequence[MetricsRow]) -> None:
        """Show the accuracies of an evaluation."""
        if self._task is not None and rows[0].is_evaluation:
            self._progress.update(self._task, accuracy=accuracies(rows))

    def end(self, phase: Phase) -> None:
        """Leave the complete bar."""
        self._progress.refresh()

    def close(self) -> None:
        """Give the terminal free."""
        self._progress.stop()


class TensorBoard(Observer):
    """Writes the rows of metrics as TensorBoard events, a folder a phase.

    Args:
        folder: where; steps that are done again after a crash replace those of before.
    """

    def __init__(self, folder: Path) -> None:
        # It takes a second to import and is needed by training only.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def begin(self, phase: Phase, step: int) -> None:
        """Open the phase's folder."""
        self._writer = self._new_writer(str(self._folder / phase.name), purge_step=step + 1 if step else 0)

    def after_rows(self, phase: Phase, rows: Sequence[MetricsRow]) -> None:
        """Write a scalar for every value."""
        if self._writer is None:
            return
        for row in rows:
            for column in ("loss", "accuracy", "lr", "scale_lr", "scale_gradient", "scaled_gradient"):
                value = getattr(row, column)
                if value is not None:
                    self._writer.add_scalar(f"{row.split}/{column}/{row.bits}", value, row.step)

    def end(self, phase: Phase) -> None:
        """Close the phase's folder."""
        self.close()

    def close(self) -> None:
        """Flush what was written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def accuracies(rows: Sequence[MetricsRow]) -> str:
    """Return the accuracies of an evaluation as text: "8: 99.17 %  4: 98.89 %"."""
    values: Mapping[int, float] = {row.bits: row.accuracy for row in rows if row.accuracy is not None}
    names = {bits: "float" if bits == FLOAT_BITS else str(bits) for bits in values}
    return "  ".join(f"{names[bits]}: {100 * value:.2f} %" for bits, value in values.items())


def _title(phase: Phase) -> str:
    return _TITLES.get(phase.name, phase.name)
