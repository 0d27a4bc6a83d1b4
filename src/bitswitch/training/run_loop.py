"""The loop of one phase of training: steps, rows of metrics, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitswitch.errors import CheckpointError
from bitswitch.training.run import RunFolder
from bitswitch.training.run_metrics import MetricsRow, Window
from bitswitch.training.run_state import (
    load_model_state,
    model_state,
    random_state,
    set_random_state,
    under_prefix,
    with_prefix,
)

StepValues = Mapping[int, Mapping[str, float]]


class Phase(Protocol):
    """What the loop needs to know about a phase.

    Attributes:
        name: distinguishes the phases of a run.
        epochs: passes over the data.
        steps_per_epoch: batches a pass.
        split: the images that `evaluate` runs on, one of `run_metrics.EVALUATED`.
        model: the network that is trained; its state dict is part of every checkpoint.
        device: where it is.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    split: str
    model: nn.Module
    device: torch.device

    def batches(self, epoch: int, start_step: int) -> Iterator[Any]:
        """Return the batches of an epoch from a step on, the same ones whenever it is called."""
        ...

    def step(self, batch: Any) -> StepValues:
        """Train on a batch and return values by width and by column of `MetricsRow`."""
        ...

    def evaluate(self) -> Mapping[int, float]:
        """Return the accuracy by width."""
        ...

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the trainer's own state as tensors and JSON."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Put back what `state` returned."""
        ...


class Observer:
    """Watches a run; this one does nothing."""

    def begin(self, phase: Phase, step: int) -> None:
        """A phase begins, or continues after `step` of its steps."""

    def after_step(self, phase: Phase, step: int, values: StepValues) -> None:
        """A step was done."""

    def after_rows(self, phase: Phase, rows: Sequence[MetricsRow]) -> None:
        """Rows were written."""

    def end(self, phase: Phase) -> None:
        """A phase is complete."""


@dataclass(frozen=True)
class Cadence:
    """How often things happen.

    Attributes:
        log_every: steps between rows of training metrics.
        checkpoint_every: steps between checkpoints within an epoch.
        evaluate_every: epochs between evaluations; the last epoch always has one.
    """

    log_every: int
    checkpoint_every: int
    evaluate_every: int


def run_phase(phase: Phase, folder: RunFolder, cadence: Cadence, observer: Observer) -> None:
    """Train a phase to its end, from the folder's checkpoint if that is of this phase, else from the beginning.

    Under many processes all of them must call it.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    _Loop(phase, folder, cadence, observer).run()


class _Loop:
    def __init__(self, phase: Phase, folder: RunFolder, cadence: Cadence, observer: Observer) -> None:
        self.phase = phase
        self.folder = folder
        self.cadence = cadence
        self.observer = observer
        self.window = Window()
        self.epoch = 0
        # Steps done in this epoch.
        self.step = 0

    @property
    def total_step(self) -> int:
        return self.epoch * self.phase.steps_per_epoch + self.step

    def run(self) -> None:
        resumed = self._restore()
        self.observer.begin(self.phase, self.total_step)
        if not resumed:
            self._evaluate(epoch=0)
            self._checkpoint()
        while self.epoch < self.phase.epochs:
            self._rest_of_epoch()
        self.observer.end(self.phase)

    def _rest_of_epoch(self) -> None:
        begin = time.perf_counter()
        for batch in self.phase.batches(self.epoch, self.step):
            values = self.phase.step(batch)
            self.window.add(values)
            self.step += 1
            self.observer.after_step(self.phase, self.total_step, values)
            self.folder.count_step(self.phase.name, time.perf_counter() - begin)
            if self.step % self.cadence.log_every == 0:
                self._flush()
            if self.step % self.cadence.checkpoint_every == 0 and self.step < self.phase.steps_per_epoch:
                self._checkpoint()
            begin = time.perf_counter()
        self._flush()
        done = self.epoch + 1
        if done % self.cadence.evaluate_every == 0 or done == self.phase.epochs:
            self._evaluate(epoch=done)
        self.epoch, self.step = done, 0
        self._checkpoint()

    def _flush(self) -> None:
        self._write(self.window.flush(self.phase.name, self.epoch + 1, self.total_step))

    def _evaluate(self, epoch: int) -> None:
        accuracy = self.phase.evaluate()
        self._write(
            [
                MetricsRow(self.phase.name, self.phase.split, epoch, self.total_step, bits, accuracy=value)
                for bits, value in accuracy.items()
            ]
        )

    def _write(self, rows: Sequence[MetricsRow]) -> None:
        if rows:
            self.folder.metrics.write(rows)
            self.observer.after_rows(self.phase, rows)

    def _checkpoint(self) -> None:
        random = random_state(self.phase.device)
        tensors, trainer = self.phase.state()
        meta = {
            "phase": self.phase.name,
            "epoch": self.epoch,
            "step": self.step,
            "metrics": self.folder.metrics.sync(),
            "window": self.window.state(),
            "trainer": trainer,
        }
        model = with_prefix("model", model_state(self.phase.model))
        self.folder.write_state({**model, **with_prefix("trainer", tensors), "random": random}, meta)

    def _restore(self) -> bool:
        """Continue from the folder's checkpoint if it is of this phase; return whether it is."""
        state = self.folder.read_state()
        if state is None or state[1]["phase"] != self.phase.name:
            self.folder.metrics.start(0 if state is None else state[1]["metrics"])
            return False
        tensors, meta = state
        if not 0 <= meta["epoch"] <= self.phase.epochs or not 0 <= meta["step"] < self.phase.steps_per_epoch:
            raise CheckpointError(
                f"the checkpoint of {self.folder.path} is of epoch {meta['epoch']}, step {meta['step']}"
            )
        load_model_state(self.phase.model, under_prefix("model", tensors))
        self.phase.load_state(under_prefix("trainer", tensors), meta["trainer"])
        self.folder.metrics.start(meta["metrics"])
        self.window.load_state(meta["window"])
        self.epoch, self.step = meta["epoch"], meta["step"]
        set_random_state(tensors["random"], self.phase.device)
        return True
