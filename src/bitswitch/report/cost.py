"""What training cost: rates of the phases, wall times, and one joint training against separate ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitswitch.report.compare import Comparison
from bitswitch.report.runs import Run
from bitswitch.report.settings import ALRS, BITS, deciding
from bitswitch.training.turns import widths_a_batch

# With a single width these change what is learned, not what a step computes.
_SAME_COST = (BITS, ALRS, "joint.alrs_scope", "joint.moments", "joint.turns")
# What is said of each width, so that a run of one width says less.
_BY_WIDTH = ("prepare.midrise", "prepare.activation_bits")


@dataclass(frozen=True)
class PhaseCost:
    """The training steps of one phase, without evaluation and checkpoints.

    Attributes:
        steps: that were timed, over all sessions.
        seconds: that they took.
        batch_size: images a step, over all processes together.
        widths: number that train on a batch; 1 in the float phase.
        steps_per_epoch: steps of a whole epoch.
        epochs: of the phase.
    """

    steps: int
    seconds: float
    batch_size: int
    widths: int
    steps_per_epoch: float
    epochs: int

    @property
    def images_per_second(self) -> float:
        """Images and widths a second: a batch that is trained at four widths counts four times."""
        return self.steps * self.batch_size * self.widths / self.seconds

    @property
    def seconds_per_epoch(self) -> float:
        """Seconds that the steps of an epoch take, at all widths."""
        return self.seconds / self.steps * self.steps_per_epoch

    @property
    def total_seconds(self) -> float:
        """Seconds that the steps of the whole phase take; steps that were done twice after a crash count once."""
        return self.seconds_per_epoch * self.epochs


@dataclass(frozen=True)
class RunCost:
    """What one run cost.

    Attributes:
        float_phase: None if it had none, or was not timed.
        joint_phase: likewise.
        seconds: wall time of all sessions, or None if it was not recorded.
        sessions: number of sessions.
        machines: the distinct descriptions of the machines, in order.
    """

    float_phase: PhaseCost | None
    joint_phase: PhaseCost | None
    seconds: float | None
    sessions: int
    machines: Sequence[str]

    @property
    def ratio(self) -> float | None:
        """How long an image takes at one width of joint training, as a multiple of the float phase."""
        if self.float_phase is None or self.joint_phase is None:
            return None
        return self.float_phase.images_per_second / self.joint_phase.images_per_second

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        phases = {"float": self.float_phase, "joint": self.joint_phase}
        return {
            "seconds": self.seconds,
            "sessions": self.sessions,
            "machines": list(self.machines),
            "ratio_per_width": self.ratio,
            "phases": {
                name: {
                    "steps": phase.steps,
                    "seconds": phase.seconds,
                    "images_per_second_and_width": phase.images_per_second,
                    "seconds_per_epoch": phase.seconds_per_epoch,
                }
                for name, phase in phases.items()
                if phase is not None
            },
        }


@dataclass(frozen=True)
class Separate:
    """A joint training and the single-width trainings of the same epochs, images and seed.

    Attributes:
        joint: the run of several widths.
        singles: runs of one width by their width, as far as there are any.
    """

    joint: Run
    singles: Mapping[int, Run]

    @property
    def missing(self) -> list[int]:
        """Widths of the joint training that no single run has."""
        return [bits for bits in self.joint.widths if bits not in self.singles]

    def wall(self) -> tuple[float, float] | None:
        """Return the wall times (joint, all separate ones), or None where one is not known."""
        return self._times([cost_of(run).seconds for run in self._all()])

    def steps(self) -> tuple[float, float] | None:
        """Return the times of joint training's steps alone, without float networks and evaluations, or None."""
        phases = [cost_of(run).joint_phase for run in self._all()]
        return self._times([None if phase is None else phase.total_seconds for phase in phases])

    def _all(self) -> list[Run]:
        return [self.joint, *self.singles.values()]

    def _times(self, seconds: Sequence[float | None]) -> tuple[float, float] | None:
        known = [value for value in seconds if value is not None]
        if self.missing or len(known) < len(seconds):
            return None
        return known[0], sum(known[1:])


def cost_of(run: Run) -> RunCost:
    """Return what a run cost, as far as its timing.json says; versions before this one recorded less."""
    seconds = [session["seconds"] for session in run.sessions if isinstance(session.get("seconds"), (int, float))]
    machines = [session["machine"] for session in run.sessions if isinstance(session.get("machine"), str)]
    return RunCost(
        _phase(run, "float", run.recipe.start.batch_size, 1),
        _phase(run, "joint", run.recipe.joint.batch_size, widths_a_batch(run.recipe.joint.turns, run.widths)),
        sum(seconds) if seconds else None,
        len(run.sessions),
        list(dict.fromkeys(machines)),
    )


def separate_trainings(comparison: Comparison) -> list[Separate]:
    """Return every run of several widths, beside the single-width runs that do the same otherwise.

    Scaling of learning rates may differ: it is nothing that a step's time depends on. So may the turns of the widths: a
    single width has all of them.
    """
    singles = [run for run in comparison.runs if len(run.widths) == 1]
    found = []
    for joint in comparison.runs:
        if len(joint.widths) > 1:
            own = [run for run in singles if _equal_work(run, joint)]
            # Of several, the one that is most alike: with the same scaling of learning rates.
            own.sort(key=lambda run: run.recipe.joint.alrs == joint.recipe.joint.alrs)
            by_width = {run.widths[0]: run for run in own}
            found.append(Separate(joint, {bits: by_width[bits] for bits in joint.widths if bits in by_width}))
    return found


def _equal_work(run: Run, joint: Run) -> bool:
    one, other = (deciding(each.recipe, each.processes) for each in (run, joint))
    (width,) = run.widths
    same_codes = run.recipe.prepare.codes_of(width) == joint.recipe.prepare.codes_of(width)
    names = {*one, *other} - {*_SAME_COST, *_BY_WIDTH}
    return run.seed == joint.seed and same_codes and all(one.get(name) == other.get(name) for name in names)


def _phase(run: Run, name: str, batch_size: int, widths: int) -> PhaseCost | None:
    timed = [session["training"] for session in run.sessions if isinstance(session.get("training"), dict)]
    parts = [training[name] for training in timed if isinstance(training.get(name), dict)]
    steps, seconds = (sum(part.get(key, 0) for part in parts) for key in ("steps", "seconds"))
    last = max((row.step for row in run.rows if row.phase == name), default=0)
    if not (steps and seconds and last):
        return None
    epochs = run.epochs(name)
    return PhaseCost(steps, seconds, batch_size, widths, last / epochs, epochs)
