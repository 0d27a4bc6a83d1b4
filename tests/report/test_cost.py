"""What training cost, from times that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitswitch.report.compare import compare
from bitswitch.report.comparison import cost_sections, duration
from bitswitch.report.cost import cost_of, separate_trainings
from bitswitch.report.runs import Run, read_run, read_runs
from tests.report.run_folders import recipe, write_run

OLD = {"seconds": 100.0, "processes": 1}
TIMED = {
    "seconds": 50.0,
    "processes": 1,
    "machine": "one",
    "training": {"float": {"steps": 20, "seconds": 4.0}, "joint": {"steps": 24, "seconds": 12.0}},
}
MORE = {**TIMED, "machine": "two", "training": {"joint": {"steps": 8, "seconds": 8.0}}}


def run(folder: Path, sessions: list[Any] | None, bits: tuple[int, ...] = (8, 2), **sections: Any) -> Run:
    changed = recipe(
        prepare={"bits": bits}, start={"epochs": 2, "batch_size": 100}, joint={"epochs": 3, "batch_size": 50}
    )
    timing = None if sessions is None else {"sessions": sessions}
    return read_run(write_run(folder, changed.replace(**sections), 0.9, dict.fromkeys(bits, 0.8), timing=timing))


def test_rates_of_the_phases(tmp_path: Path) -> None:
    cost = cost_of(run(tmp_path / "run", [OLD, TIMED, MORE]))
    assert cost.float_phase is not None
    assert cost.joint_phase is not None
    # 20 steps of 100 images in 4 s; 24 + 8 steps of 50 images at two widths in 12 + 8 s.
    assert cost.float_phase.images_per_second == pytest.approx(500)
    assert cost.joint_phase.images_per_second == pytest.approx(160)
    assert cost.ratio == pytest.approx(500 / 160)
    # An epoch has 10 steps: of 0.2 s, and of 20 / 32 s.
    assert cost.float_phase.seconds_per_epoch == pytest.approx(2)
    assert cost.joint_phase.seconds_per_epoch == pytest.approx(6.25)
    assert cost.joint_phase.total_seconds == pytest.approx(18.75)
    assert cost.seconds == pytest.approx(200)
    assert cost.machines == ["one", "two"]


def test_widths_that_take_turns_count_when_they_train(tmp_path: Path) -> None:
    changed = {"epochs": 3, "batch_size": 50, "turns": "rotate"}
    cost = cost_of(run(tmp_path / "run", [TIMED, MORE], (8, 6, 4, 2), joint=changed))
    assert cost.joint_phase is not None
    assert cost.joint_phase.widths == 2
    assert cost.joint_phase.images_per_second == pytest.approx(160)


@pytest.mark.parametrize("sessions", [None, [], [OLD], [{**OLD, "training": {}}], [{**OLD, "training": {"joint": {}}}]])
def test_older_runs_have_no_rates(tmp_path: Path, sessions: list[Any] | None) -> None:
    found = run(tmp_path / "run", sessions)
    cost = cost_of(found)
    assert (cost.float_phase, cost.joint_phase, cost.ratio) == (None, None, None)
    assert cost.seconds == (100 if sessions else None)
    section, separate = cost_sections(compare([found]))
    wall = "1 min 40 s" if sessions else "–"
    assert section.rows == [["cifar10-resnet20", "0", *["–"] * 5, wall, str(len(sessions or [])), "1", "–"]]
    assert not separate.rows
    assert separate.note == "Separate trainings of single widths with equal epochs were not run."


def test_table_of_costs(tmp_path: Path) -> None:
    section, _ = cost_sections(compare([run(tmp_path / "run", [TIMED, MORE])]))
    assert section.rows == [
        ["cifar10-resnet20", "0", "500", "160", "3.12", "2.0", "6.2", "1 min 40 s", "2", "1", "a b"]
    ]
    assert section.note.endswith("(a) one. (b) two.")


def alone(folder: Path, bits: int, seconds: float, steps_seconds: float, **sections: Any) -> Run:
    training = {"joint": {"steps": 30, "seconds": steps_seconds}}
    return run(folder, [{"seconds": seconds, "processes": 1, "training": training}], (bits,), **sections)


def test_one_joint_training_against_separate_ones(tmp_path: Path) -> None:
    joint = run(tmp_path / "joint", [TIMED, MORE])
    eight = alone(tmp_path / "eight", 8, 90, 11.0)
    two = alone(tmp_path / "two", 2, 70, 10.0, joint={"alrs": "off"})
    longer = alone(tmp_path / "longer", 2, 700, 99.0, joint={"epochs": 9, "alrs": "off"})
    _, section = cost_sections(compare([joint, eight, two, longer]))
    label = "8,2 bits, joint.epochs 3, alrs factor"
    # 100 s against 90 + 70 s; the steps of three epochs, 30 × 20 / 32 s, against 11 + 10 s.
    assert section.rows == [[label, "0", "1 min 40 s", "2 min 40 s", "0.62", "18.8 s", "21.0 s", "0.89"]]
    _, section = cost_sections(compare([joint, eight, longer]))
    assert not section.rows
    assert "there is no run of 2 bits alone" in section.note


def test_the_single_run_with_the_same_rates_is_preferred(tmp_path: Path) -> None:
    both = run(tmp_path / "both", [TIMED])
    like = [alone(tmp_path / f"{alrs}", 8, 1, 1, joint={"alrs": alrs}) for alrs in ("factor", "off")]
    for order in (like, like[::-1]):
        (found,) = separate_trainings(compare([both, *order]))
        assert found.singles[8].name == "factor"
        assert found.missing == [2]


def test_codes_are_compared_width_by_width(tmp_path: Path) -> None:
    wider = {"activation_bits": (8, 4), "midrise": (2,)}
    joint = run(tmp_path / "joint", [TIMED], prepare=wider)
    eight, two = alone(tmp_path / "eight", 8, 1, 1), alone(tmp_path / "two", 2, 1, 1)
    same = alone(tmp_path / "same", 2, 1, 1, prepare={"activation_bits": (4,), "midrise": (2,)})
    (found,) = separate_trainings(compare([joint, eight, two, same]))
    assert {bits: single.name for bits, single in found.singles.items()} == {8: "eight", 2: "same"}


def test_seeds_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "joint", recipe(0), 0.9, {8: 0.9, 2: 0.8})
    write_run(tmp_path / "alone", recipe(1, prepare={"bits": (8,)}), 0.9, {8: 0.9})
    (found,) = separate_trainings(compare(read_runs([tmp_path / "joint", tmp_path / "alone"])))
    assert found.singles == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7290, "2 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
