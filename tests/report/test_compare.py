"""Runs that were written by hand, grouped and compared; every number is worked out beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitswitch.errors import CheckpointError, ConfigError
from bitswitch.report.compare import Comparison, Spread, compare
from bitswitch.report.comparison import accuracy_sections, common_text, configuration_sections, effect_sections
from bitswitch.report.runs import read_run, read_runs
from tests.report.run_folders import recipe, write_run


def written(
    root: Path, name: str, float_accuracy: float, accuracy: dict[int, float], seed: int = 0, **sections: Any
) -> Path:
    return write_run(root / name, recipe(seed, **sections), float_accuracy, accuracy)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """ALRS on for the seeds 0, 1 and 2, off for 1 and 2, and with a teacher for 0."""
    return [
        written(tmp_path, "on-1", 0.90, {8: 0.91, 2: 0.80}, 1),
        written(tmp_path, "on-0", 0.90, {8: 0.90, 2: 0.83}, 0),
        written(tmp_path, "on-2", 0.93, {8: 0.92, 2: 0.86}, 2),
        written(tmp_path, "off-1", 0.90, {8: 0.90, 2: 0.75}, 1, joint={"alrs": "off"}),
        written(tmp_path, "off-2", 0.93, {8: 0.93, 2: 0.78}, 2, joint={"alrs": "off"}),
        written(tmp_path, "taught-0", 0.90, {8: 0.92, 2: 0.84}, 0, joint={"distill": "float"}),
    ]


@pytest.fixture
def comparison(folders: list[Path]) -> Comparison:
    return compare(read_runs(folders))


def test_runs_that_differ_in_the_seed_are_one_configuration(comparison: Comparison) -> None:
    assert [each.label for each in comparison.configurations] == [
        "alrs factor, distill none",
        "alrs off, distill none",
        "alrs factor, distill float",
    ]
    assert [each.seeds for each in comparison.configurations] == [[0, 1, 2], [1, 2], [0]]
    assert common_text(comparison) == "cifar10-resnet20, start.epochs 2, joint.epochs 3"


def test_accuracies_and_drops(comparison: Comparison) -> None:
    accuracy, drop = accuracy_sections(comparison)
    assert accuracy.header == ("configuration", "seeds", "epochs", "float", "8 bits", "2 bits")
    assert accuracy.rows == [
        # (90 + 90 + 93) / 3 = 91; (90 + 91 + 92) / 3 = 91; (83 + 80 + 86) / 3 = 83.
        [
            *("alrs factor, distill none", "0, 1, 2", "2 + 3"),
            *("91.00 (90.00…93.00)", "91.00 (90.00…92.00)", "83.00 (80.00…86.00)"),
        ],
        [
            *("alrs off, distill none", "1, 2", "2 + 3"),
            *("91.50 (90.00…93.00)", "91.50 (90.00…93.00)", "76.50 (75.00…78.00)"),
        ],
        ["alrs factor, distill float", "0", "2 + 3", "90.00", "92.00", "84.00"],
    ]
    assert drop.rows == [
        # 8 bits: 0, -1, 1; 2 bits: 7, 10, 7.
        ["alrs factor, distill none", "0, 1, 2", "0.00 (-1.00…1.00)", "8.00 (7.00…10.00)"],
        ["alrs off, distill none", "1, 2", "0.00 (0.00…0.00)", "15.00 (15.00…15.00)"],
        ["alrs factor, distill float", "0", "-2.00", "6.00"],
    ]


def test_accuracy_on_validation_images_is_that_of_the_last_evaluation(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", recipe(), 0.9, {8: 0.9, 2: 0.8}, split="validation")
    rows = (one / "metrics.csv").read_text()
    # A resumed run may write rows again; what counts is the last step, not the best one.
    (one / "metrics.csv").write_text(rows + "joint,validation,3,31,2,,0.75,,,,\n")
    two = write_run(tmp_path / "two", recipe(joint={"alrs": "off"}), 0.9, {8: 0.9, 2: 0.8})
    *_, section = accuracy_sections(compare(read_runs([one, two])))
    assert section.title == "Accuracy on validation images in %"
    assert section.header == ("configuration", "seeds", "8 bits", "2 bits")
    assert section.rows == [["alrs factor", "0", "90.00", "75.00"], ["alrs off", "0", "–", "–"]]


def test_effects_are_paired_by_seed(comparison: Comparison) -> None:
    alrs, distill = effect_sections(comparison)
    assert (alrs.title, distill.title) == ("Effect of joint.alrs", "Effect of joint.distill")
    assert alrs.header == ["alrs", "with", "seeds", "8 bits", "2 bits"]
    # Seeds 1 and 2: 91 - 90 = 1 and 92 - 93 = -1; 80 - 75 = 5 and 86 - 78 = 8.
    assert alrs.rows == [["factor against off", "distill none", "1, 2", "+0.00 (-1.00…+1.00)", "+6.50 (+5.00…+8.00)"]]
    # Seed 0: 92 - 90 = 2 and 84 - 83 = 1.
    assert distill.rows == [["float against none", "alrs factor", "0", "+2.00", "+1.00"]]
    # Without ALRS and teacher against both is a difference in two fields.
    assert len(comparison.effects) == 2


def test_the_plain_value_is_compared_with_whatever_the_order(tmp_path: Path) -> None:
    off = written(tmp_path, "off", 0.9, {8: 0.5}, joint={"alrs": "off"})
    on = written(tmp_path, "on", 0.9, {8: 0.75})
    for order in ([on, off], [off, on]):
        (effect,) = compare(read_runs(order)).effects
        assert effect.title == "factor against off"
        spread = effect.difference(8)
        assert spread is not None
        assert spread.mean == pytest.approx(25)


def test_effect_of_the_set_of_widths(tmp_path: Path) -> None:
    together = written(tmp_path, "all", 0.9, {8: 0.9, 2: 0.8}, prepare={"bits": (8, 2)})
    alone = written(tmp_path, "two", 0.9, {2: 0.84}, prepare={"bits": (2,)})
    eight = written(tmp_path, "eight", 0.8, {8: 0.87}, prepare={"bits": (8,)})
    (section,) = effect_sections(compare(read_runs([together, alone, eight])))
    assert section.header == ["bits", "with", "seeds", "float", "8 bits", "2 bits"]
    assert section.rows == [
        ["8,2 bits against 2 bits", "–", "0", "+0.00", "–", "-4.00"],
        ["8,2 bits against 8 bits", "–", "0", "+10.00", "+3.00", "–"],
    ]


def test_pairs_without_a_common_seed_are_named(tmp_path: Path) -> None:
    runs = [
        written(tmp_path, "a", 0.9, {8: 0.9}, 0),
        written(tmp_path, "b", 0.9, {8: 0.9}, 1, joint={"distill": "self"}),
    ]
    (section,) = effect_sections(compare(read_runs(runs)))
    assert section.rows == [["self against none", "–", "none in common", "–"]]


def test_recipes_are_told_apart_by_their_names(tmp_path: Path) -> None:
    digits = write_run(tmp_path / "d", recipe(name="digits"), 0.99, {8: 0.98})
    cifar = [written(tmp_path, "c", 0.9, {8: 0.9}), written(tmp_path, "s", 0.9, {8: 0.9}, joint={"distill": "self"})]
    found = compare(read_runs([digits, *cifar]))
    assert [each.label for each in found.configurations] == [
        "digits",
        "cifar10-resnet20, distill none",
        "cifar10-resnet20, distill self",
    ]
    assert [effect.field for effect in found.effects] == ["joint.distill"]


def test_a_single_configuration_is_called_as_its_recipe(folders: list[Path]) -> None:
    found = compare(read_runs(folders[:3]))
    assert [each.label for each in found.configurations] == ["cifar10-resnet20"]
    assert found.effects == []


def long_runs(root: Path, *names: str) -> Comparison:
    """Runs without ALRS for the seeds 0 and 1 and one of another teacher and learning rate: three fields differ."""
    other = {"distill": "float", "temperature": 2.0, "lr": 0.00123456789, "label_smoothing": 0.01}
    sections = [(0, {"alrs": "off"}), (1, {"alrs": "off"}), (0, other)]
    runs = [
        written(root, name, 0.9, {8: 0.9, 2: 0.8}, seed, joint=joint)
        for name, (seed, joint) in zip(names, sections, strict=True)
    ]
    return compare(read_runs(runs))


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (("off-s0", "off-s1", "taught"), ["off", "taught"]),
        (("off", "off-seed1", "off-taught"), ["off", "off-taught"]),
        (("cifar10-resnet20-off-0", "cifar10-resnet20-off-1", "cifar10-resnet20-kd"), ["off", "kd"]),
        (("off-s10", "off-s11", "taught"), ["off", "taught"]),
        (("8642", "8642-seed1", "taught"), ["8642", "taught"]),
        (("s0", "s1", "taught"), ["A", "B"]),
        (("a-0", "a-1", "a"), ["A", "B"]),
    ],
)
def test_folders_give_the_titles_where_labels_are_long(
    names: tuple[str, ...], titles: list[str], tmp_path: Path
) -> None:
    comparison = long_runs(tmp_path, *names)
    assert [each.title for each in comparison.configurations] == titles
    (section,) = configuration_sections(comparison)
    assert section.header == ("configuration", "joint.lr", "alrs", "distill", "joint.label_smoothing")
    assert section.rows == [
        [titles[0], "0.0005", "off", "none", "0.0"],
        [titles[1], "0.00123456789", "factor", "float", "0.01"],
    ]
    assert [row[0] for row in accuracy_sections(comparison)[0].rows] == titles


def test_effects_name_folders_where_labels_are_long(tmp_path: Path) -> None:
    on, off = (
        {"lr": 0.00123456789, "label_smoothing": 0.01},
        {"lr": 0.00123456789, "label_smoothing": 0.01, "alrs": "off"},
    )
    folders = [written(tmp_path, name, 0.9, {8: 0.9}, joint=joint) for name, joint in (("on", on), ("off", off))]
    folders.append(written(tmp_path, "usual", 0.9, {8: 0.9}, joint={"distill": "float"}))
    (section,) = effect_sections(compare(read_runs(folders)))
    assert section.rows == [["factor against off", "on against off", "0", "+0.00"]]


def test_short_labels_need_no_table(comparison: Comparison) -> None:
    assert configuration_sections(comparison) == []
    assert all(each.title == each.label for each in comparison.configurations)


def test_texts_have_no_negative_zero() -> None:
    assert Spread({0: -0.001}).text() == "0.00"
    assert Spread({0: -0.001, 1: 0.001}).text("+") == "+0.00 (+0.00…+0.00)"


def test_folders_given_twice(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on-1 is given twice"):
        read_runs([folders[0], folders[0]])
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(ConfigError, match=r"link is given twice, as .*on-1 too"):
        read_runs([folders[0], tmp_path / "link"])


def test_equal_runs_in_two_folders(folders: list[Path], tmp_path: Path) -> None:
    again = written(tmp_path, "again", 0.9, {8: 0.9, 2: 0.8}, 1, run={"seed": 1, "log_every": 3})
    with pytest.raises(ConfigError, match=r"on-1 and .*again have the same configuration and the seed 1"):
        compare(read_runs([*folders, again]))


def test_unfinished_and_other_folders(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / "results.json").unlink()
    with pytest.raises(ConfigError, match="on-1 is not finished; go on with: bitswitch train --resume"):
        read_runs(folders)
    for other in (tmp_path / "nothing", tmp_path, folders[1] / "metrics.csv"):
        with pytest.raises(ConfigError, match=f"{other.name} is not a run folder"):
            read_run(other)


def test_damaged_files_are_named(folders: list[Path]) -> None:
    (folders[0] / "results.json").write_text('{"accuracy": 3}')
    with pytest.raises(CheckpointError, match=r"on-1/results.json does not hold the results"):
        read_run(folders[0])
    (folders[1] / "config.json").write_text('{"recipe": {"name": "digits"}, "processes": 1}')
    with pytest.raises(ConfigError, match=r"on-0/config.json: recipe.model is missing"):
        read_run(folders[1])
