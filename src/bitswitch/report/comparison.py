"""A comparison as tables of text, for terminals and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitswitch.report.compare import Comparison, Configuration, Spread, letter
from bitswitch.report.cost import PhaseCost, cost_of, separate_trainings
from bitswitch.report.settings import describe_value, short_name

NOTHING = "–"


@dataclass(frozen=True)
class Section:
    """A table with a heading and what has to be said of it.

    Attributes:
        title: heading.
        header: names of the columns.
        rows: cells as text; without rows there is only the note.
        left: indices of the columns that hold text; the others hold numbers.
        note: a paragraph under the table; may be empty.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    note: str = ""


def configuration_sections(comparison: Comparison) -> list[Section]:
    """Return a table of how the configurations differ, if their titles do not say it."""
    if not comparison.named_by_folders:
        return []
    fields = comparison.varying
    rows = [
        [each.title, *(describe_value(n, each.settings[n]) if n in each.settings else NOTHING for n in fields)]
        for each in comparison.configurations
    ]
    header = ("configuration", *map(short_name, fields))
    note = "A dash: the field does nothing there." if any(NOTHING in row for row in rows) else ""
    return [Section("Configurations", header, rows, range(len(header)), note)]


def accuracy_sections(comparison: Comparison) -> list[Section]:
    """Return the accuracies of every configuration, how far they are below the float network, and those for choices."""
    several = any(len(each.runs) > 1 for each in comparison.configurations)
    over = " Mean over the seeds (least…greatest)." if several else ""
    widths = [f"{bits} bits" for bits in comparison.widths]

    def rows(value: Callable[[Configuration, int], Spread | None]) -> list[list[str]]:
        return [
            [*_head(each), *(_cell(value(each, bits)) for bits in comparison.widths)]
            for each in comparison.configurations
        ]

    def short(value: Callable[[Configuration, int], Spread | None]) -> list[list[str]]:
        return [[row[0], row[1], *row[4:]] for row in rows(value)]

    short_header = ("configuration", "seeds", *widths)
    sections = [
        Section(
            "Accuracy in %",
            ("configuration", "seeds", "epochs", "float", *widths),
            rows(Configuration.accuracy),
            (0, 1),
            f"Of the stored network on the held-out images. Epochs: float + joint.{over}",
        ),
        Section(
            "Points below the float network",
            short_header,
            short(Configuration.drop),
            (0, 1),
            f"Accuracy of the float network of the same run minus accuracy; negative values are above it.{over}",
        ),
    ]
    validation = short(Configuration.validation)
    if any(cell != NOTHING for row in validation for cell in row[2:]):
        note = f"At the end of joint training, of the images that choices between configurations are made on.{over}"
        sections.append(Section("Accuracy on validation images in %", short_header, validation, (0, 1), note))
    return sections


def effect_sections(comparison: Comparison) -> list[Section]:
    """Return a table for every field in which alone two configurations differ."""
    sections = []
    for field in dict.fromkeys(effect.field for effect in comparison.effects):
        effects = [effect for effect in comparison.effects if effect.field == field]
        widths = sorted({bits for effect in effects for bits in effect.widths}, reverse=True)
        floats = [effect.difference(None) for effect in effects]
        moved = any(spread is not None and (spread.low or spread.high) for spread in floats)
        rows = [
            [
                effect.title,
                effect.where or NOTHING,
                ", ".join(map(str, effect.seeds)) or "none in common",
                *([_cell(base, "+")] if moved else []),
                *(_cell(effect.difference(bits) if bits in effect.widths else None, "+") for bits in widths),
            ]
            for effect, base in zip(effects, floats, strict=True)
        ]
        several = any(len(effect.seeds) > 1 for effect in effects)
        over = "; mean over the seeds (least…greatest)" if several else ""
        where = "configurations" if comparison.named_by_folders else "with"
        header = [short_name(field), where, "seeds", *(["float"] if moved else []), *(f"{b} bits" for b in widths)]
        note = f"Difference of the accuracies in points, run by run with the same seed{over}."
        sections.append(Section(f"Effect of {field}", header, rows, (0, 1, 2), note))
    return sections


def cost_sections(comparison: Comparison) -> list[Section]:
    """Return what every run cost, and joint training against separate ones where both were run."""
    machines: list[str] = []
    rows = []
    for configuration in comparison.configurations:
        for run in configuration.runs:
            cost = cost_of(run)
            machines += [text for text in cost.machines if text not in machines]
            phases = (cost.float_phase, cost.joint_phase)
            rows.append(
                [
                    configuration.title,
                    str(run.seed),
                    *(_number(phase, lambda p: p.images_per_second, ".0f") for phase in phases),
                    NOTHING if cost.ratio is None else f"{cost.ratio:.2f}",
                    *(_number(phase, lambda p: p.seconds_per_epoch, ".1f") for phase in phases),
                    NOTHING if cost.seconds is None else duration(cost.seconds),
                    str(cost.sessions),
                    str(run.processes),
                    " ".join(letter(machines.index(text)).lower() for text in cost.machines) or NOTHING,
                ]
            )
    note = (
        "Images/s count an image once for every width that it is trained at. Time per width: of an image in joint "
        "training, as a multiple of the float phase. Rates and seconds an epoch are of the training steps alone, an "
        "epoch at all widths; wall time is all of it, with float phase, evaluations and report."
    )
    note += "".join(f" ({letter(index).lower()}) {text}." for index, text in enumerate(machines))
    header = (
        "configuration",
        "seed",
        "images/s, float",
        "images/s, joint",
        "time per width",
        "s/epoch, float",
        "s/epoch, joint",
        "wall time",
        "sessions",
        "processes",
        "machine",
    )
    return [Section("Cost of training", header, rows, (0, 10), note), _separate_section(comparison)]


def _separate_section(comparison: Comparison) -> Section:
    trainings = separate_trainings(comparison)
    complete = [each for each in trainings if not each.missing]
    titles = {id(run): each.title for each in comparison.configurations for run in each.runs}
    header = ("joint training", "seed", "wall time", "separate", "ratio", "steps alone", "separate", "ratio")
    rows = [
        [titles[id(each.joint)], str(each.joint.seed), *_times(each.wall()), *_times(each.steps())] for each in complete
    ]
    title = "One joint training against separate ones"
    if complete:
        note = (
            "Separate: the sum over trainings of one width each, of the same epochs and images. Steps alone: joint "
            "training without float network, evaluations and report."
        )
        return Section(title, header, rows, (0,), note)
    partly = [each for each in trainings if each.singles]
    if partly:
        name, seed = titles[id(partly[0].joint)], partly[0].joint.seed
        lacking = ", ".join(map(str, partly[0].missing))
        note = (
            f"Not every width was trained alone: beside {name}, seed {seed}, there is no run of {lacking} bits alone."
        )
    else:
        note = "Separate trainings of single widths with equal epochs were not run."
    return Section(title, header, [], (0,), note)


def common_text(comparison: Comparison) -> str:
    """Return what all configurations have in common: the recipe, and where it was changed alike."""
    return ", ".join(comparison.common)


def duration(seconds: float) -> str:
    """Return a time as hours and minutes, or as minutes and seconds if it is short.

    >>> duration(3945.2), duration(75), duration(59.96)
    ('1 h 06 min', '1 min 15 s', '1 min 00 s')
    """
    whole = round(seconds)
    if whole >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"


def _head(configuration: Configuration) -> list[str]:
    first = configuration.runs[0]
    return [
        configuration.title,
        ", ".join(map(str, configuration.seeds)),
        f"{first.epochs('float')} + {first.epochs('joint')}",
        configuration.float_accuracy.text(),
    ]


def _cell(spread: Spread | None, sign: str = "") -> str:
    return NOTHING if spread is None else spread.text(sign)


def _number(phase: PhaseCost | None, value: Callable[[PhaseCost], float], form: str) -> str:
    return NOTHING if phase is None else f"{value(phase):{form}}"


def _times(times: tuple[float, float] | None) -> list[str]:
    if times is None:
        return [NOTHING] * 3
    return [duration(times[0]), duration(times[1]), f"{times[0] / times[1]:.2f}"]
