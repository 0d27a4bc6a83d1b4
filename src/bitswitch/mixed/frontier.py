"""The frontier: SubNets measured without retraining, refined by that, kept in a file to resume from."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bitswitch._files import parse_json
from bitswitch._files.documents import canonical_json
from bitswitch.errors import ConfigError
from bitswitch.mixed.cost import Cost
from bitswitch.mixed.search import SearchSpace, SubNet
from bitswitch.precision import Precision

Evaluate = Callable[[Sequence[Precision]], Sequence[float]]


@dataclass(frozen=True)
class Measured:
    """A SubNet and how good it is.

    Attributes:
        subnet: what was measured.
        score: the larger the better, such as accuracy.
    """

    subnet: SubNet
    score: float


class Measurements:
    """Scores of SubNets, each measured once, and kept in a JSON file so that a stopped search goes on where it was.

    Args:
        evaluate: runs the SuperNet at several precisions and returns the score of each, the larger the better; for
            example `lambda precisions: list(bitswitch.evaluate(model, batches, precisions).values())`. Under several
            processes it shards the data, and must return the same in all of them.
        path: of the file; None keeps nothing.
        context: what the scores depend on besides the precision, such as the names of checkpoint and data: scores of
            another context are not used.

    Raises:
        ConfigError: the file is malformed or was written in another context.
    """

    def __init__(self, evaluate: Evaluate, path: str | os.PathLike[str] | None = None, context: Any = None) -> None:
        self._evaluate = evaluate
        self._path = None if path is None else Path(path)
        self._context = hashlib.sha256(canonical_json(context)).hexdigest()
        self._scores: dict[Precision, float] = {}
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def __call__(self, subnets: Iterable[SubNet]) -> list[Measured]:
        """Return the score of every SubNet, measuring those that are not known yet."""
        wanted = list(subnets)
        new = list(dict.fromkeys(s.precision for s in wanted if s.precision not in self._scores))
        if new:
            scores = [float(score) for score in self._evaluate(new)]
            if len(scores) != len(new) or any(score != score for score in scores):
                raise ConfigError(f"evaluate must return a number for each of {len(new)} precisions; got {scores}")
            self._scores.update(zip(new, scores, strict=True))
            self._write()
        return [Measured(subnet, self._scores[subnet.precision]) for subnet in wanted]

    def __len__(self) -> int:
        return len(self._scores)

    def _read(self, path: Path) -> None:
        value = parse_json(path.read_bytes(), str(path))
        if not isinstance(value, dict) or set(value) != {"context", "scores"} or not isinstance(value["scores"], list):
            raise ConfigError(f"{path} holds no measurements")
        if value["context"] != self._context:
            raise ConfigError(f"{path} holds measurements of another network or other data; remove it, or name another")
        for row in value["scores"]:
            if not isinstance(row, list) or len(row) != 2 or type(row[1]) not in (int, float):
                raise ConfigError(f"{path} holds a malformed measurement: {str(row)[:80]}")
            self._scores[Precision.from_json(row[0])] = float(row[1])

    def _write(self) -> None:
        if self._path is None or os.environ.get("RANK", "0") != "0":
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = [[precision.to_json(), score] for precision, score in self._scores.items()]
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(canonical_json({"context": self._context, "scores": rows}) + b"\n")
        os.replace(temporary, self._path)


def refine(
    space: SearchSpace,
    measurements: Measurements,
    budgets: Mapping[str, float],
    *,
    num_seeds: int = 4,
    rounds: int = 6,
    neighbours: int = 12,
    seed: int = 0,
) -> Measured:
    """Improve on the integer programme by measurement: local search from its best solutions.

    The programme minimises a proxy; what counts is the score. Starting from its `num_seeds` best SubNets, each round
    measures random neighbours of the best one so far (one layer a step up or down, or one up and another one down, as
    long as the budgets hold) and moves to the best of them; it ends early when a round does not help. The programme's
    own optimum is among what is measured, so the result is never worse on the data of the measurements. Choose other
    data for the final accuracy.

    Args:
        space: what may be chosen.
        measurements: of SubNets, on held-out calibration data.
        budgets: as for `SearchSpace.solve`.
        num_seeds: how many of the programme's best solutions to start from.
        rounds: at most.
        neighbours: measured in a round.
        seed: of the neighbours drawn.

    Raises:
        InfeasibleError: nothing is within the budgets.
    """
    measured = measurements(space.solve(budgets, num_seeds))
    best = max(measured, key=_rank)
    generator = random.Random(seed)
    for _ in range(rounds):
        around = _neighbours(space, best.subnet, budgets, neighbours, generator)
        if not around:
            break
        candidate = max(measurements(around), key=_rank)
        if _rank(candidate) <= _rank(best):
            break
        best = candidate
    return best


def _rank(measured: Measured) -> tuple[float, float]:
    # Of equal scores the one that the proxy prefers.
    return measured.score, -measured.subnet.sensitivity


def _neighbours(
    space: SearchSpace, subnet: SubNet, budgets: Mapping[str, float], count: int, generator: random.Random
) -> list[SubNet]:
    """Return random SubNets one or two steps away that are within the budgets."""
    widths = dict(subnet.precision.layers)
    free = [(names, options) for names, options in space.choices if len(options) > 1]
    found: dict[Precision, SubNet] = {}
    for _ in range(20 * count if free else 0):
        changed = dict(widths)
        for direction in generator.choice(((1,), (-1, 1), (-1, 1), (-1, -1, 1))):
            names, options = generator.choice(free)
            position = options.index(changed[names[0]]) - direction
            if 0 <= position < len(options):
                changed.update(dict.fromkeys(names, options[position]))
        precision = Precision.of(changed)
        if precision != subnet.precision and precision not in found:
            candidate = space.evaluate(precision)
            if space.within(candidate.cost, budgets):
                found[precision] = candidate
        if len(found) == count:
            break
    return list(found.values())


def random_subnets(
    space: SearchSpace, budgets: Mapping[str, float], count: int, *, seed: int = 0, attempts: int = 20_000
) -> list[SubNet]:
    """Return distinct random SubNets that use a budget up: widths are drawn, then raised or lowered at random until no
    single step up is left within the budgets. They are what a frontier is compared with.

    Args:
        space: what may be chosen.
        budgets: as for `SearchSpace.solve`.
        count: how many; fewer are returned if they are hard to find.
        seed: of the draws.
        attempts: draws at most.
    """  # noqa: D205
    generator = random.Random(seed)
    found: dict[Precision, SubNet] = {}
    for _ in range(attempts):
        widths = {
            name: bits for names, options in space.choices for bits in [generator.choice(options)] for name in names
        }
        subnet = _fill(space, widths, budgets, generator)
        if subnet is not None:
            found.setdefault(subnet.precision, subnet)
        if len(found) == count:
            break
    return list(found.values())


def _fill(
    space: SearchSpace, widths: dict[str, int], budgets: Mapping[str, float], generator: random.Random
) -> SubNet | None:
    order = list(space.choices)
    while not space.within(space.costs.of(widths), budgets):
        lower = [(n, o) for n, o in order if widths[n[0]] != o[-1]]
        if not lower:
            return None
        names, options = generator.choice(lower)
        widths.update(dict.fromkeys(names, options[options.index(widths[names[0]]) + 1]))
    generator.shuffle(order)
    for names, options in order:
        for bits in options:
            raised = {**widths, **dict.fromkeys(names, bits)}
            if bits > widths[names[0]] and space.within(space.costs.of(raised), budgets):
                widths = raised
                break
    return space.evaluate(Precision.of(widths))


def pareto(measured: Iterable[Measured], cost: str = "average_bits") -> list[Measured]:
    """Return the measurements that no other one beats: cheapest first, each better than all cheaper ones.

    Args:
        measured: any number of them.
        cost: an attribute of `Cost`.

    Raises:
        ConfigError: there is no such cost, or it is not known.
    """
    if cost not in {item.name for item in fields(Cost)}:
        raise ConfigError(f"there is no cost {cost!r}; there are {', '.join(item.name for item in fields(Cost))}")
    rows = list(measured)
    if any(getattr(row.subnet.cost, cost) is None for row in rows):
        raise ConfigError(f"the cost {cost!r} was not measured")
    frontier: list[Measured] = []
    for row in sorted(rows, key=lambda m: (getattr(m.subnet.cost, cost), -m.score)):
        if not frontier or row.score > frontier[-1].score:
            frontier.append(row)
    return frontier


def to_rows(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """Return every measurement as a flat row of JSON values: precision, score, objective and costs."""
    return [
        {
            "precision": str(row.subnet.precision),
            "score": row.score,
            "objective": row.subnet.sensitivity,
            **asdict(row.subnet.cost),
        }
        for row in measured
    ]


def to_csv(measured: Iterable[Measured]) -> str:
    """Return every measurement as a line of CSV under a header."""
    rows = to_rows(measured)
    columns = ["precision", "score", "objective", *(item.name for item in fields(Cost))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
