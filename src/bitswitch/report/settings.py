"""The settings of a run as flat fields: those that decide its results, how they are called, and the command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from bitswitch.recipes.catalogue import DIGITS, RECIPES
from bitswitch.recipes.config import Recipe

Settings = Mapping[str, Any]

BITS = "prepare.bits"
ALRS = "joint.alrs"
SEED = "run.seed"
# Where files are, and how often something is looked at or written: none of it changes a result.
NEUTRAL = frozenset(
    {
        "data.folder",
        "data.download",
        "data.num_workers",
        "run.eval_batch_size",
        "run.evaluate_every",
        "run.log_every",
        "run.checkpoint_every",
    }
)
PATHS = frozenset({"data.folder", "start.weights", "start.checkpoint", "joint.sensitivity"})
# Fields that do nothing as long as what is said of another one is true.
_IDLE: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "start.epochs",
        lambda epochs: epochs == 0,
        ("start.optimizer", "start.lr", "start.weight_decay", "start.batch_size", "start.label_smoothing"),
    ),
    (
        "joint.distill",
        lambda teacher: teacher == "none",
        ("joint.distill_weight", "joint.temperature", "joint.task_weight"),
    ),
    ("joint.sampler", lambda sampler: sampler == "off", ("joint.sigma",)),
    ("joint.sampler", lambda sampler: sampler != "hasb", ("joint.threshold", "joint.sensitivity")),
    ("joint.alrs", lambda form: form == "off", ("joint.alrs_scope",)),
    ("start.pretrained", lambda pretrained: not pretrained, ("start.pretrained_tag",)),
    (BITS, lambda bits: len(bits) <= 2, ("joint.turns",)),
)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return {"section.field": value} of every field of a recipe but its name."""
    sections = {item.name: getattr(recipe, item.name) for item in dataclasses.fields(recipe) if item.name != "name"}
    return {
        f"{section}.{item.name}": getattr(values, item.name)
        for section, values in sections.items()
        for item in dataclasses.fields(values)
    }


def deciding(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Return the settings that runs of one configuration have in common: all that decide the results, but for the seed.

    Files are known by their last component, in which a part `s1` or `seed-1` with the run's own seed counts as equal to
    those of other runs: the runs that start from `float-s0` with seed 0 and from `float-s1` with seed 1 are of one
    configuration. Fields that do nothing beside the others, such as a temperature without distillation, are left out.
    """
    fields = {name: value for name, value in flatten(recipe).items() if name not in NEUTRAL and name != SEED}
    idle = {name for field, idles, names in _IDLE if idles(fields[field]) for name in names}
    fields = {name: value for name, value in fields.items() if name not in idle}
    own = re.compile(rf"(?<![A-Za-z0-9])(s|seed[-_=]?){recipe.run.seed}(?![0-9])")
    for name in PATHS & fields.keys():
        if fields[name] is not None:
            fields[name] = own.sub(r"\1*", last_component(fields[name]))
    return {"recipe": recipe.name, **fields, "processes": processes}


def differing(one: Settings, other: Settings) -> list[str]:
    """Return the fields in which two configurations differ, of those that do something in both."""
    return [name for name in one if name in other and one[name] != other[name]]


def last_component(path: str) -> str:
    """Return the name of a file or folder without where it is."""
    return PurePath(path.replace("\\", "/")).name or path


def _is_absolute(path: str | None) -> bool:
    return path is not None and (PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).anchor))


def describe(field: str, value: Any) -> str:
    """Return a setting as text.

    >>> describe("prepare.bits", (8, 4)), describe("joint.alrs", "off"), describe("joint.epochs", 5)
    ('8,4 bits', 'alrs off', 'joint.epochs 5')
    """
    if field == "recipe":
        return str(value)
    return describe_value(field, value) if field == BITS else f"{short_name(field)} {describe_value(field, value)}"


def describe_value(field: str, value: Any) -> str:
    """Return the value of a setting as text."""
    if field == BITS:
        return f"{','.join(map(str, value))} bits"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "none"
    return str(value)


def short_name(field: str) -> str:
    """Return a field of `prepare` or `joint` without its section, if no other section has one of that name."""
    section, _, leaf = field.rpartition(".")
    return leaf if section in ("prepare", "joint") and _LEAVES[leaf] == 1 else field


_LEAVES = Counter(name.rpartition(".")[2] for name in flatten(DIGITS))


def command(recipe: Recipe, processes: int = 1) -> str | None:
    """Return the command that runs a recipe: how it differs from the catalogue's recipe of its name.

    Files and folders are given as they were if that was relative, else by their last component: where they are on one
    machine is of no use elsewhere.

    Args:
        recipe: that was run.
        processes: that shared the work.

    Returns:
        The command; None if the catalogue has no recipe of that name.
    """
    if recipe.name not in RECIPES:
        return None
    words = ["bitswitch", "train", recipe.name]
    if processes > 1:
        words = ["torchrun", "--nproc-per-node", str(processes), "-m", *words]
    usual = flatten(RECIPES[recipe.name])
    for field, value in flatten(recipe).items():
        if value != usual[field]:
            words += _option(field, last_component(value) if field in PATHS and _is_absolute(value) else value)
    return shlex.join(words)


def _option(field: str, value: Any) -> Iterator[str]:
    """Yield the words that set a field."""
    section, _, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        yield f"--{section}.{name}" if value else f"--{section}.no-{name}"
        return
    yield f"--{section}.{name}"
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from (str(key), str(item))
    elif isinstance(value, tuple):
        yield from map(str, value)
    else:
        yield str(value)
