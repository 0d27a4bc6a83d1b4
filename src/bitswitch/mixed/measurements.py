"""SubNets measured once each, by one process or many, and kept in a file to resume from."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bitswitch._files import parse_json, write_file
from bitswitch._files.documents import canonical_json
from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.mixed.space import SubNet
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
        path: of the file; None keeps nothing. Of several processes the first one reads and writes it.
        context: what the scores depend on besides the precision, such as the names of checkpoint and data: scores of
            another context are not used.
        at_once: precisions that `evaluate` is given at a time; what it is at work on is lost if the process is killed.

    Raises:
        ConfigError: the file is malformed or was written in another context.
        CheckpointError: it is not JSON.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        path: str | os.PathLike[str] | None = None,
        context: Any = None,
        *,
        at_once: int = 8,
    ) -> None:
        self._evaluate = evaluate
        self._path = None if path is None else Path(path)
        self._context = hashlib.sha256(canonical_json(context)).hexdigest()
        self._at_once = at_once
        self._scores = self._read()
        self._asked: dict[Precision, Measured] = {}

    def __call__(self, subnets: Iterable[SubNet]) -> list[Measured]:
        """Return the score of every SubNet, measuring those that are not known yet."""
        wanted = list(subnets)
        new = list(dict.fromkeys(s.precision for s in wanted if s.precision not in self._scores))
        for first in range(0, len(new), self._at_once):
            part = new[first : first + self._at_once]
            scores = [float(score) for score in self._evaluate(part)]
            if len(scores) != len(part) or not all(map(math.isfinite, scores)):
                raise ConfigError(
                    f"evaluate must return a finite number for each of {len(part)} precisions; got {scores}"
                )
            self._scores.update(zip(part, scores, strict=True))
            self._write()
        measured = [Measured(subnet, self._scores[subnet.precision]) for subnet in wanted]
        self._asked.update((row.subnet.precision, row) for row in measured)
        return measured

    @property
    def asked(self) -> list[Measured]:
        """Every SubNet that this object was asked for, in order, whether it was measured or known."""
        return list(self._asked.values())

    def __len__(self) -> int:
        return len(self._scores)

    def _read(self) -> dict[Precision, float]:
        """Return what the first process finds in the file, in every process."""
        found: list[Any] = [None]
        if _is_first() and self._path is not None and self._path.exists():
            try:
                found = [_parse(self._path, self._context)]
            except BitswitchError as error:
                found = [error]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(found)
        if isinstance(found[0], BitswitchError):
            raise found[0]
        return found[0] or {}

    def _write(self) -> None:
        if self._path is None or not _is_first():
            return
        document = {"context": self._context, "tables": _tables(self._scores)}
        write_file(self._path, canonical_json(document) + b"\n")


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _tables(scores: Mapping[Precision, float]) -> list[dict[str, Any]]:
    """Return scores as JSON, by the digits of the widths: files have bounds on their number of values when read."""
    tables: dict[tuple[Any, ...], dict[str, Any]] = {}
    for precision, score in scores.items():
        names = [name for name, _ in precision.layers]
        table = tables.setdefault(
            (precision.default, *names), {"layers": names, "default": precision.default, "scores": {}}
        )
        table["scores"]["".join(str(bits) for _, bits in precision.layers)] = score
    return list(tables.values())


def _parse(path: Path, context: str) -> dict[Precision, float]:
    value = parse_json(path.read_bytes(), str(path))
    if not isinstance(value, dict) or set(value) != {"context", "tables"} or not isinstance(value["tables"], list):
        raise ConfigError(f"{path} holds no measurements")
    if value["context"] != context:
        raise ConfigError(f"{path} holds measurements of another network or other data; remove it, or name another")
    found: dict[Precision, float] = {}
    for table in value["tables"]:
        if not _is_table(table):
            raise ConfigError(f"{path} holds a malformed table of measurements: {str(table)[:80]}")
        for digits, score in table["scores"].items():
            if type(score) not in (int, float) or len(digits) != len(table["layers"]) or not (digits + "0").isdecimal():
                raise ConfigError(f"{path} holds a malformed measurement: {digits[:80]}: {str(score)[:80]}")
            widths = dict(zip(table["layers"], map(int, digits), strict=True))
            found[Precision.of(widths, table["default"])] = float(score)
    return found


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"layers", "default", "scores"}
        and isinstance(value["layers"], list)
        and all(isinstance(name, str) for name in value["layers"])
        and isinstance(value["scores"], dict)
    )
