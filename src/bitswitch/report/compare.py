"""Finished runs side by side: configurations over their seeds, and what single fields change."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bitswitch.errors import ConfigError
from bitswitch.recipes.catalogue import RECIPES
from bitswitch.report.runs import Run
from bitswitch.report.settings import ALRS, BITS, Settings, deciding, describe, describe_value, differing, flatten

# Letters of a label that tables and plots have room for.
_SHORT = 48
# Where one of two values is one of these, the difference is that of the other against it.
_PLAIN = ("off", "none", False, None, 0)


@dataclass(frozen=True)
class Spread:
    """Values over seeds.

    Attributes:
        by_seed: the values; at least one.
    """

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.by_seed.values())

    @property
    def low(self) -> float:
        """The least of them."""
        return min(self.by_seed.values())

    @property
    def high(self) -> float:
        """The greatest of them."""
        return max(self.by_seed.values())

    def text(self, sign: str = "") -> str:
        """Return the mean with two decimals, and from where to where the values go if there are several.

        >>> Spread({0: 90.0, 1: 91.0}).text()
        '90.50 (90.00…91.00)'
        """
        # Adding 0 turns -0.0, which rounding makes of small losses, into 0.0.
        mean, low, high = (f"{round(value, 2) + 0.0:{sign}.2f}" for value in (self.mean, self.low, self.high))
        return mean if len(self.by_seed) == 1 else f"{mean} ({low}…{high})"


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but the seed.

    Attributes:
        title: what tables and plots call it: its label, or what its folders are called where labels are too long.
        label: how it differs from the other configurations of the comparison.
        settings: that decide the results.
        runs: by ascending seed, each seed once.
    """

    title: str
    label: str
    settings: Settings
    runs: Sequence[Run]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return [run.seed for run in self.runs]

    @property
    def widths(self) -> list[int]:
        """The widths, highest first."""
        return self.runs[0].widths

    @property
    def float_accuracy(self) -> Spread:
        """Of the float network, in per cent."""
        return Spread({run.seed: 100 * run.results.float_accuracy for run in self.runs})

    def accuracy(self, bits: int) -> Spread | None:
        """Return the accuracy at a width in per cent, or None if it has no such width."""
        if bits not in self.widths:
            return None
        return Spread({run.seed: 100 * run.results.accuracy[bits] for run in self.runs})

    def validation(self, bits: int) -> Spread | None:
        """Return the accuracy on validation images in per cent, or None if a run has no such width or images."""
        values = {run.seed: run.validation(bits) for run in self.runs}
        known = {seed: 100 * value for seed, value in values.items() if value is not None}
        return Spread(known) if len(known) == len(values) else None

    def drop(self, bits: int) -> Spread | None:
        """Return by how many points a width is below the float network of the same run, or None without that width."""
        accuracy = self.accuracy(bits)
        if accuracy is None:
            return None
        reference = self.float_accuracy.by_seed
        return Spread({seed: reference[seed] - value for seed, value in accuracy.by_seed.items()})


@dataclass(frozen=True)
class Effect:
    """Two configurations that differ in exactly one field.

    Attributes:
        field: the field.
        base: the one that is compared with.
        other: the one that is compared.
        where: the other fields that differ within the comparison, as text, "" if none does; or the titles of the two.
    """

    field: str
    base: Configuration
    other: Configuration
    where: str

    @property
    def title(self) -> str:
        """The two values: "factor against off"."""
        values = [describe_value(self.field, side.settings[self.field]) for side in (self.other, self.base)]
        return " against ".join(values)

    @property
    def seeds(self) -> list[int]:
        """The seeds that both have."""
        return [seed for seed in self.other.seeds if seed in self.base.seeds]

    @property
    def widths(self) -> list[int]:
        """The widths that both have, highest first."""
        return [bits for bits in self.other.widths if bits in self.base.widths]

    def difference(self, bits: int | None) -> Spread | None:
        """Return how many points of accuracy it gains, paired by seed.

        Args:
            bits: the width; None for the float network.

        Returns:
            The differences; None if the two have no such width or no seed in common.
        """
        pair = [side.float_accuracy if bits is None else side.accuracy(bits) for side in (self.other, self.base)]
        if pair[0] is None or pair[1] is None or not self.seeds:
            return None
        new, old = pair[0].by_seed, pair[1].by_seed
        return Spread({seed: new[seed] - old[seed] for seed in self.seeds})


@dataclass(frozen=True)
class Comparison:
    """A set of runs.

    Attributes:
        configurations: in the order in which they were given first.
    """

    configurations: Sequence[Configuration]

    @property
    def runs(self) -> list[Run]:
        """All runs, configuration by configuration."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @property
    def widths(self) -> list[int]:
        """All widths, highest first."""
        return sorted({bits for each in self.configurations for bits in each.widths}, reverse=True)

    @cached_property
    def effects(self) -> list[Effect]:
        """Every pair of configurations that differ in exactly one field and have a width in common, field by field."""
        found = [_effect(one, other, self) for one, other in itertools.combinations(self.configurations, 2)]
        kept = [effect for effect in found if effect is not None and effect.widths]
        order = list(flatten(self.runs[0].recipe))
        return sorted(kept, key=lambda effect: order.index(effect.field) if effect.field in order else len(order))

    @property
    def alrs_pairs(self) -> list[Effect]:
        """The effects of switching ALRS on."""
        return [effect for effect in self.effects if effect.field == ALRS and effect.base.settings[ALRS] == "off"]

    @property
    def named_by_folders(self) -> bool:
        """Whether titles do not say how the configurations differ, since that takes too many words."""
        return any(each.title != each.label for each in self.configurations)

    @property
    def varying(self) -> list[str]:
        """The fields in which configurations differ, of those that do something in both."""
        names = dict.fromkeys(name for each in self.configurations for name in each.settings)
        pairs = itertools.combinations(self.configurations, 2)
        found = {name for one, other in pairs for name in differing(one.settings, other.settings)}
        return [name for name in names if name in found]

    @property
    def common(self) -> list[str]:
        """Where all configurations differ alike from the catalogue's recipes, as text."""
        texts = [_unusual(configuration) for configuration in self.configurations]
        return [text for text in texts[0] if all(text in other for other in texts)]


def compare(runs: Sequence[Run]) -> Comparison:
    """Group runs into configurations.

    Args:
        runs: at least one.

    Raises:
        ConfigError: two runs have the same configuration and the same seed; the message names them.
    """
    groups: list[tuple[dict[str, Any], dict[int, Run]]] = []
    for run in runs:
        settings = deciding(run.recipe, run.processes)
        own = next((members for known, members in groups if known == settings), None)
        if own is None:
            own = {}
            groups.append((settings, own))
        if run.seed in own:
            raise ConfigError(
                f"{own[run.seed].folder} and {run.folder} have the same configuration and the seed {run.seed}; give one"
            )
        own[run.seed] = run
    all_settings = [settings for settings, _ in groups]
    labels = [label(settings, all_settings) for settings in all_settings]
    members = [[own[seed] for seed in sorted(own)] for _, own in groups]
    titles = labels if max(map(len, labels)) <= _SHORT else titles_of(members)
    return Comparison([Configuration(*parts) for parts in zip(titles, labels, all_settings, members, strict=True)])


def titles_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a short name of each configuration from the names of its folders.

    Args:
        groups: the runs of each configuration.

    Returns:
        What the folders of a configuration have in common, without a number of the seed, and without the recipe's name
        if all begin with it: "82-off" for `digits-82-off-s0` and `digits-82-off-s1`. Letters, if such names are not
        different.
    """
    runs = [run for group in groups for run in group]
    prefixed = all(run.name.startswith(f"{run.recipe.name}-") for run in runs)
    names = []
    for group in groups:
        begin = len(group[0].recipe.name) + 1 if prefixed else 0
        columns = zip(*(run.name[begin:] for run in group), strict=False)
        common = "".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        names.append(re.sub(r"(^|[-_])((s|seed[-_=]?)\d*)?$", "", common) if len(group) > 1 else common)
    return names if all(names) and len(set(names)) == len(names) else [letter(i) for i in range(len(groups))]


def letter(index: int) -> str:
    """Return A, B, …, and numbers from 27.

    >>> letter(1), letter(26)
    ('B', '27')
    """
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def label(settings: Settings, all_settings: Sequence[Settings], without: str | None = None) -> str:
    """Return how a configuration differs from others.

    Args:
        settings: of the configuration.
        all_settings: of all configurations, itself included.
        without: a field to leave out.

    Returns:
        The fields that differ among the configurations of its recipe, after the recipe's name if there are several
        recipes, as in "8,6,4,2 bits, alrs off"; the recipe's name alone if nothing differs.
    """
    alike = [other for other in all_settings if other["recipe"] == settings["recipe"]]
    varying = [
        name
        for name, value in settings.items()
        if name != without and any(name in other and other[name] != value for other in alike)
    ]
    parts = [describe(name, settings[name]) for name in varying]
    if len(alike) < len(all_settings) or not (parts or without):
        parts.insert(0, str(settings["recipe"]))
    return ", ".join(parts)


def _effect(one: Configuration, other: Configuration, comparison: Comparison) -> Effect | None:
    fields = differing(one.settings, other.settings)
    if len(fields) != 1 or fields[0] == "recipe":
        return None
    field = fields[0]
    base, other = sorted((one, other), key=lambda side: _rank(field, side.settings[field]))
    if comparison.named_by_folders:
        where = f"{other.title} against {base.title}"
    else:
        where = label(other.settings, [each.settings for each in comparison.configurations], without=field)
    return Effect(field, base, other, where)


def _rank(field: str, value: Any) -> int:
    """Return which value of a field comes first, as the one that others are compared with."""
    return len(value) if field == BITS else int(value not in _PLAIN)


def _unusual(configuration: Configuration) -> list[str]:
    recipe = configuration.settings["recipe"]
    usual = deciding(RECIPES[recipe], 1) if recipe in RECIPES else {}
    missing = object()
    return [
        describe(name, value)
        for name, value in configuration.settings.items()
        if name == "recipe" or value != usual.get(name, missing)
    ]
