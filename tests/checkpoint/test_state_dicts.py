"""State dicts of models that were opened from some of the bit planes: layers know how many planes they hold."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import checkpoint
from bitswitch.errors import CheckpointError, MissingPlanesError, PrepareError
from bitswitch.layers import iter_layers
from bitswitch.layers.held import HELD_KEY

Make = Callable[..., nn.Module]


def held(model: nn.Module) -> set[int]:
    return {layer.num_planes for _, layer in iter_layers(model)}


def outputs(model: nn.Module, x: Tensor, widths: tuple[int, ...] = (2, 8, 4, 6)) -> list[Tensor]:
    found = []
    for bits in widths:
        bs.switch(model, bits)
        with torch.no_grad():
            found.append(model(x))
    return found


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def by_itself(state: dict[str, Any]) -> dict[str, Any]:
    return state


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("travel", [by_itself, through_a_file, copy.deepcopy])
def test_the_planes_that_are_missing_are_read_again(
    travel: Callable, assign: bool, tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained()
    expected = outputs(model, x)
    checkpoint.save(model, tmp_path)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    full = checkpoint.load(tmp_path, into=net())
    bs.switch(full, 2)
    full.load_state_dict(travel(part.state_dict()), assign=assign)
    assert held(full) == {3}
    with pytest.raises(PrepareError, match="opened from 3 of 8 bit planes"):
        bs.unfreeze(full)
    with pytest.raises(MissingPlanesError, match="needs 8 bit planes"):
        checkpoint.save(full, tmp_path / "again", precision=8)
    checkpoint.save(full, tmp_path / "again")
    assert checkpoint.checkpoint_bits_available(tmp_path / "again") == (2,)
    assert all_equal(outputs(full, x), expected)
    assert held(full) == {8}
    # With assign=True both have the same memory, which has all planes by now.
    assert all_equal(outputs(part, x), expected)


def test_too_few_planes_for_the_active_width_are_refused(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    expected = outputs(model, x)
    checkpoint.save(model, tmp_path)
    full = checkpoint.load(tmp_path, into=net())
    before = copy.deepcopy(full.state_dict())
    state = {name: tensor + 1 if name.endswith("bias") else tensor for name, tensor in before.items()}
    part = checkpoint.load(tmp_path, into=net(), bits={"up": 2, "grouped": 8, "a": 8, "b": 8, "c": 8})
    state |= {name: tensor for name, tensor in part.state_dict().items() if name.startswith("up.")}
    bs.switch(full, 4)
    message = r"3 of 8 bit planes of layer 'up', and 4 bits, at which it runs, need 5; switch the model to 2 bits first"
    with pytest.raises(MissingPlanesError, match=message):
        full.load_state_dict(state)
    with pytest.raises(MissingPlanesError, match="layer 'module.up'"):
        nn.ModuleDict({"module": full}).load_state_dict({f"module.{name}": value for name, value in state.items()})
    with pytest.raises(MissingPlanesError, match="layer ''"):
        full.get_submodule("up").load_state_dict(part.get_submodule("up").state_dict())
    assert full.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items())
    assert held(full) == {8}
    assert all_equal(outputs(full, x), expected)


def test_a_state_of_all_planes_has_no_remark_and_completes_a_part(
    tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained()
    expected = outputs(model, x)
    checkpoint.save(model, tmp_path)
    full = checkpoint.load(tmp_path, into=net())
    part = checkpoint.load(tmp_path, into=net(), bits=4)
    assert {name.split(".")[0] for name in part.state_dict() if name.endswith(HELD_KEY)} == {
        name for name, _ in iter_layers(part)
    }
    assert not any(name.endswith(HELD_KEY) for name in (*full.state_dict(), *model.state_dict()))
    assert not any(name.endswith(HELD_KEY) for name in bs.deploy(part).state_dict())
    part.load_state_dict(full.state_dict())
    assert held(part) == {8}
    for path in tmp_path.glob("plane-*"):
        path.unlink()
    assert all_equal(outputs(part, x), expected)


@pytest.mark.parametrize("bits", [(8, 6, 4, 2), (5, 3, 2)])
def test_a_state_from_before_planes_were_added_is_taken_back(
    bits: tuple[int, ...], tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained(bits=bits)
    expected = outputs(model, x, bits)
    checkpoint.save(model, tmp_path)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    state = part.state_dict()
    bs.switch(part, bits[0])
    bs.switch(part, 2)
    part.load_state_dict(state)
    assert held(part) == {3}
    assert all_equal(outputs(part, x, bits), expected)


def test_planes_of_another_checkpoint_are_refused(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    checkpoint.save(model, tmp_path / "one")
    with torch.no_grad():
        model.get_parameter("up.weight").mul_(0.5)
    checkpoint.save(model, tmp_path / "two")
    one, two = (checkpoint.load(tmp_path / name, into=net(), bits=4) for name in ("one", "two"))
    expected = outputs(one, x, (4, 2))
    with pytest.raises(CheckpointError, match="5 of 8 bit planes of layer 'grouped', of another checkpoint"):
        one.load_state_dict(two.state_dict())
    assert all_equal(outputs(one, x, (4, 2)), expected)
    # All planes of another checkpoint need nothing from the folder.
    bs.switch(two, 8)
    one.load_state_dict(two.state_dict())
    assert all_equal(outputs(one, x), outputs(model, x))


@pytest.mark.parametrize(
    "remark",
    [
        torch.tensor([3]),
        torch.tensor([0, 1]),
        torch.tensor([9, 1]),
        torch.tensor([3.0, 1.0]),
        torch.empty(2, dtype=torch.int64, device="meta"),
        3,
    ],
    ids=["short", "none", "many", "float", "meta", "number"],
)
def test_remarks_that_say_nothing(remark: Any, tmp_path: Path, trained: Make, net: Make) -> None:
    checkpoint.save(trained(), tmp_path)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    state = part.state_dict()
    state[f"a.{HELD_KEY}"] = remark
    with pytest.raises(CheckpointError, match=f"no valid '{HELD_KEY}' for layer 'a': expected 1 to 8"):
        part.load_state_dict(state)
    assert held(part) == {3}


def test_strict_loading_still_finds_what_does_not_belong(tmp_path: Path, trained: Make, net: Make) -> None:
    checkpoint.save(trained(), tmp_path)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    full = checkpoint.load(tmp_path, into=net())
    bs.switch(full, 2)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        trained().load_state_dict(part.state_dict())
    state = part.state_dict()
    del state["a.codes"]
    with pytest.raises(RuntimeError, match='Missing key.*"a.codes"'):
        full.load_state_dict(state)
    assert full.get_submodule("a").num_planes == 8
    state["a.codes"] = torch.zeros(2, 2, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="size mismatch for a.codes"):
        full.load_state_dict(state)
    assert full.get_submodule("a").num_planes == 8


def test_on_the_meta_device(tmp_path: Path, trained: Make, net: Make, x: Tensor) -> None:
    model = trained()
    expected = outputs(model, x)
    checkpoint.save(model, tmp_path)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    empty = copy.deepcopy(part).to("meta")
    with torch.device("meta"):
        state = part.state_dict()
    empty.load_state_dict(state, assign=True)
    assert held(empty) == {3}
    assert all_equal(outputs(empty.eval(), x), expected)


def test_the_layer_with_fewest_planes_decides_for_a_shared_weight(
    tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained()
    expected = outputs(model, x)
    checkpoint.save(model, tmp_path)
    full = checkpoint.load(tmp_path, into=net())
    bs.switch(full, 2)
    part = checkpoint.load(tmp_path, into=net(), bits=2)
    full.get_submodule("c").load_state_dict(part.get_submodule("c").state_dict())
    assert (full.get_submodule("b").num_planes, full.get_submodule("c").num_planes) == (8, 3)
    assert all_equal(outputs(full, x), expected)


def test_an_engine_of_such_a_model_reads_the_missing_planes(
    tmp_path: Path, trained: Make, net: Make, x: Tensor
) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    full = checkpoint.load(tmp_path, into=net())
    bs.switch(full, 2)
    full.load_state_dict(checkpoint.load(tmp_path, into=net(), bits=2).state_dict())
    engine, expected = bs.deploy(full), bs.deploy(model)
    for bits in (2, 8):
        assert torch.equal(engine(x, precision=bits), expected(x, precision=bits))
