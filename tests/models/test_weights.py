"""Strict loading of float weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bitswitch.errors import ConfigError
from bitswitch.models import load_state, load_weights, read_weights


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4))


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_usual_layouts_of_torch_files(tmp_path: Path, wrap: Any) -> None:
    source, target = _model(), _model()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert _equal(source, target)


def test_safetensors_without_batch_counters(tmp_path: Path) -> None:
    source, target = _model(), _model()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert _equal(source, target)


def test_everything_wrong_is_listed_and_nothing_is_loaded() -> None:
    model, before = _model(), _model()
    before.load_state_dict(model.state_dict())
    state = dict(_model().state_dict())
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(5, 8)
    with pytest.raises(ConfigError) as caught:
        load_state(model, state, origin="w.pt")
    assert str(caught.value) == (
        "w.pt does not fit the Sequential: 1 missing: 0.bias; 1 unexpected: extra; "
        "1 of another shape: 3.weight ([5, 8] instead of [4, 8])"
    )
    assert _equal(model, before)


def test_long_lists_are_cut() -> None:
    with pytest.raises(ConfigError, match=r"12 unexpected: .* and 4 more"):
        load_state(nn.ReLU(), {f"t{i}": torch.zeros(1) for i in range(12)}, origin="file")


def test_new_head_spares_the_last_layer_only() -> None:
    model, state = _model(), dict(_model().state_dict())
    head = model.state_dict()["3.weight"].clone()
    state["3.weight"], state["3.bias"] = torch.zeros(7, 8), torch.zeros(7)
    load_state(model, state, origin="file", new_head=True)
    assert torch.equal(model.state_dict()["3.weight"], head)
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    with pytest.raises(ConfigError, match=r"1 of another shape: 0.weight"):
        load_state(model, state, origin="file", new_head=True)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_weights(tmp_path / "none.pt")
    for name in ("noise.safetensors", "noise.pt"):
        (tmp_path / name).write_bytes(b"\x07noise" * 9)
        with pytest.raises(ConfigError, match=name):
            read_weights(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="does not hold a state dict"):
        read_weights(tmp_path / "list.pt")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save(_model(), tmp_path / "module.pt")
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        read_weights(tmp_path / "module.pt")
