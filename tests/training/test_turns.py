"""Widths that take turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, snapshot

from bitswitch.errors import CheckpointError, ConfigError
from bitswitch.training import JointTrainer
from bitswitch.training.turns import widths_at


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ((4,), [(4,)] * 4),
        ((8, 2), [(8, 2)] * 4),
        ((4, 3, 2), [(4, 2), (3, 2), (4, 2), (3, 2)]),
        ((8, 6, 4, 2), [(8, 2), (6, 2), (4, 2), (8, 2)]),
    ],
)
def test_rotation(bits: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    assert [widths_at("rotate", bits, step) for step in range(4)] == expected
    assert all(widths_at("all", bits, step) == bits for step in range(4))


def test_a_step_trains_the_widths_whose_turn_it_is_and_moves_nothing_of_the_others() -> None:
    model = make_model()
    trainer = JointTrainer(model, "cross_entropy", total_steps=4, turns="rotate", schedule="constant")
    for batch, trained in zip(make_batches(4), [(8, 2), (4, 2)] * 2, strict=True):
        before = snapshot(model)
        result = trainer.step(batch)
        assert tuple(result.widths) == trained
        after = snapshot(model)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        for bits in (8, 4, 2):
            own = {f"bn2.norms.{bits}.weight", f"bn2.norms.{bits}.bias"}
            assert own & moved == (own if bits in trained else set())


def test_turns_go_on_after_a_resume() -> None:
    batches = make_batches(5)
    model, copy = make_model(), make_model()
    trainer, other = (JointTrainer(m, "cross_entropy", total_steps=5, turns="rotate") for m in (model, copy))
    for batch in batches[:3]:
        trainer.step(batch)
    copy.load_state_dict(model.state_dict())
    other.load_state_dict(trainer.state_dict())
    for batch in batches[3:]:
        assert trainer.step(batch) == other.step(batch)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), copy.parameters(), strict=True))


def test_a_state_from_before_there_were_turns_is_of_all_widths() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=5)
    trainer.step(make_batches(1)[0])
    meta = trainer.state_meta()
    later = ("turns", "midrise", "activation_bits")
    settings = {name: value for name, value in meta["settings"].items() if name not in later}
    resumed = JointTrainer(make_model(), "cross_entropy", total_steps=5)
    resumed.load_state(trainer.state_tensors(), {**meta, "settings": settings})
    assert resumed.num_steps == 1


@pytest.mark.parametrize("options", [{"midrise": (2,)}, {"activation_bits": {2: 4}}], ids=str)
def test_states_for_other_codes_are_refused(options: dict[str, Any]) -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=5)
    trainer.step(make_batches(1)[0])
    other = JointTrainer(make_model(**options), "cross_entropy", total_steps=5)
    with pytest.raises(CheckpointError, match="the state is of a trainer with"):
        other.load_state(trainer.state_tensors(), trainer.state_meta())


def test_settings_that_are_no_mapping_are_refused() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=5)
    with pytest.raises(CheckpointError, match="the state is of a trainer with 3"):
        trainer.load_state(trainer.state_tensors(), {**trainer.state_meta(), "settings": 3})


def test_other_turns_are_refused() -> None:
    with pytest.raises(ConfigError, match="turns must be one of"):
        JointTrainer(make_model(), "cross_entropy", total_steps=5, turns="some")  # pyright: ignore[reportArgumentType]
