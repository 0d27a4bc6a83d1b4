from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model
from safetensors.torch import load, save
from test_algorithms import Draws

from bitswitch.errors import CheckpointError, ConfigError
from bitswitch.training import JointTrainer

VARIANTS: list[dict[str, Any]] = [
    {},
    {"moments": "separate", "alrs_scope": "weight+activation"},
    {"algorithm": "accumulate", "alrs": None},
    {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
    {"optimizer": torch.optim.Adafactor},
    {"sampler": True},
    {"channels_last": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: ",".join(o) or "default")
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(options: dict[str, Any]) -> None:
    batches = make_batches(6)

    def trainer() -> JointTrainer:
        own = {**options, "sampler": Draws() if options.get("sampler") else None}
        model: Any = make_model(seed=0)
        if own.pop("channels_last", False):
            model = model.to(memory_format=torch.channels_last)
        return JointTrainer(model, "cross_entropy", lr=0.01, total_steps=6, **own)

    whole = trainer()
    for batch in batches[:3]:
        whole.step(batch)
    # Through files, as a run folder does it.
    tensors = load(save({key: value.contiguous() for key, value in whole.state_tensors().items()}))
    meta = json.loads(json.dumps(whole.state_meta()))
    weights = copy.deepcopy(whole.model.state_dict())
    first = [whole.step(batch) for batch in batches[3:]]

    resumed = trainer()
    resumed.model.load_state_dict(weights)
    resumed.load_state(tensors, meta)
    assert resumed.num_steps == 3
    assert [resumed.step(batch) for batch in batches[3:]] == first
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.state_meta() == whole.state_meta()
    ours, theirs = resumed.state_tensors(), whole.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_state_is_a_copy_and_a_dictionary() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=6)
    batch = make_batches(1)[0]
    trainer.step(batch)
    state = trainer.state_dict()
    other = JointTrainer(make_model(), "cross_entropy", total_steps=6)
    other.load_state_dict(state)
    key = "weights/conv1.weight/exp_avg"
    before = state["tensors"][key].clone()
    other.step(batch)
    assert torch.equal(state["tensors"][key], before)


def test_errors() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=6)
    trainer.step(make_batches(1)[0])
    tensors, meta = trainer.state_tensors(), trainer.state_meta()
    with pytest.raises(CheckpointError, match=r"moments.*separate"):
        JointTrainer(make_model(), "cross_entropy", total_steps=6, moments="separate").load_state(tensors, meta)
    sampled = JointTrainer(make_model(), "cross_entropy", total_steps=6, sampler=Draws())
    with pytest.raises(CheckpointError, match="holds none of a sampler; this trainer needs one"):
        sampled.load_state(tensors, meta)
    with pytest.raises(CheckpointError, match="holds one of a sampler; this trainer needs none"):
        trainer.load_state(sampled.state_tensors(), sampled.state_meta())
    with pytest.raises(CheckpointError, match="not a state of a trainer"):
        trainer.load_state(tensors, {"step": 1})
    with pytest.raises(CheckpointError, match=r"conv9\.weight/exp_avg"):
        trainer.load_state({"weights/conv9.weight/exp_avg": torch.zeros(1)}, meta)
    with pytest.raises(CheckpointError, match=r"shape \(1,\); expected \(4, 1, 3, 3\)"):
        trainer.load_state({"weights/conv1.weight/exp_avg": torch.zeros(1)}, meta)
    with pytest.raises(CheckpointError, match="step"):
        trainer.load_state(tensors, {**meta, "step": "3"})
    with pytest.raises(CheckpointError, match="belongs to a parameter"):
        trainer.load_state({"scales/shared/conv9/exp_avg": torch.zeros(())}, meta)

    kept = {name: value.clone() for name, value in trainer.state_tensors().items()}
    state = {name: torch.zeros_like(value) for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"shape \(4, 1, 2, 3\); expected \(4, 1, 3, 3\)"):
        trainer.load_state({**state, "weights/conv1.weight/exp_avg": torch.zeros(4, 1, 2, 3)}, meta)
    assert all(torch.equal(value, kept[name]) for name, value in trainer.state_tensors().items())

    class Strange(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["history"] = [1]

    strange = JointTrainer(make_model(), "cross_entropy", total_steps=6, optimizer=Strange)
    strange.step(make_batches(1)[0])
    with pytest.raises(ConfigError, match="history' is a list"):
        strange.state_meta()
