"""Run folders: ownership, configuration, metrics that are cut back, windows, random numbers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitswitch._files import write_state
from bitswitch.errors import CheckpointError, ConfigError, DivergenceError
from bitswitch.training import run
from bitswitch.training.run import RunFolder, is_locked, lock, read_json, write_json
from bitswitch.training.run_loop import Cadence, Observer, run_phase
from bitswitch.training.run_metrics import MetricsFile, MetricsRow, Window, read_metrics
from bitswitch.training.run_state import load_model_state, random_state, set_random_state

CONFIG = {"recipe": {"joint": {"lr": 0.1, "epochs": 3}}, "processes": 1}
CPU = torch.device("cpu")


class Stop(Exception):
    """Stands for a crash."""


class Dropping:
    """A phase whose steps depend on the model, on an optimizer's state and on random numbers."""

    name = "joint"
    epochs = 3
    steps_per_epoch = 5
    split = "held-out"
    device = CPU

    def __init__(self, crash_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.momentum = torch.zeros(4, 4)
        self.crash_at = crash_at
        self.done = 0

    def batches(self, epoch: int, start_step: int) -> Iterator[Any]:
        for step in range(start_step, self.steps_per_epoch):
            yield torch.full((2, 4), float(epoch * 10 + step) / 30)

    def step(self, batch: Any) -> Mapping[int, Mapping[str, float]]:
        if self.done == self.crash_at:
            raise Stop
        self.done += 1
        loss = self.model(batch).square().mean()
        weight = self.model.get_parameter("0.weight")
        (gradient,) = torch.autograd.grad(loss, weight)
        self.momentum = 0.9 * self.momentum + gradient
        with torch.no_grad():
            weight -= 0.05 * self.momentum
        return {8: {"loss": loss.item(), "lr": 0.1}, 2: {"loss": 2 * loss.item(), "lr": 0.1}}

    def evaluate(self) -> Mapping[int, float]:
        return {8: float(self.model.get_parameter("0.weight").mean().detach())}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        return {"momentum": self.momentum}, None

    def load_state(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        self.momentum = tensors["momentum"]


def train(folder: Path, crash_at: int | None = None) -> Dropping:
    phase = Dropping(crash_at)
    with RunFolder(folder, CONFIG) as run:
        run_phase(phase, run, Cadence(log_every=2, checkpoint_every=3, evaluate_every=2), Observer())
    return phase


@pytest.mark.parametrize("crashes", [[0], [4], [7, 3], [14], [5, 5, 1]])
def test_crashed_phases_end_in_the_same_bytes(tmp_path: Path, crashes: list[int]) -> None:
    whole = train(tmp_path / "whole")
    for crash in crashes:
        with pytest.raises(Stop):
            train(tmp_path / "crashed", crash)
    resumed = train(tmp_path / "crashed")
    for name in ("config.json", "metrics.csv"):
        assert (tmp_path / "crashed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key])


def test_rows_and_evaluations_come_when_they_should(tmp_path: Path) -> None:
    train(tmp_path)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(r.epoch, r.step) for r in rows if r.split == "held-out"] == [(0, 0), (2, 10), (3, 15)]
    train_rows = [(r.epoch, r.step) for r in rows if r.split == "train" and r.bits == 2]
    # Every second step of an epoch, and what is left at its end.
    assert train_rows == [(1, 2), (1, 4), (1, 5), (2, 7), (2, 9), (2, 10), (3, 12), (3, 14), (3, 15)]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG):
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match="another process is running"):
            RunFolder(tmp_path, CONFIG)
    assert not is_locked(tmp_path)


def test_other_configuration_names_the_field(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG).close()
    RunFolder(tmp_path, json.loads(json.dumps(CONFIG))).close()
    (tmp_path / "metrics.csv").touch()
    changed = {"recipe": {"joint": {"lr": 0.2, "epochs": 4}}, "processes": 1}
    with pytest.raises(ConfigError, match=r"recipe.joint.lr=0.1, this command says 0.2 \(and 1 more"):
        RunFolder(tmp_path, changed)
    assert not is_locked(tmp_path)


def test_a_run_that_has_done_nothing_may_be_corrected(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"recipe": {"joint": {"lr": 0.1}}, "processes": 1}).close()
    RunFolder(tmp_path, CONFIG).close()
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    (tmp_path / "config.json").write_text('{"of": "another program"}')
    with pytest.raises(ConfigError, match="was started with"):
        RunFolder(tmp_path, CONFIG)


def test_a_run_that_was_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), RunFolder(tmp_path / "new", CONFIG):
        raise ConfigError("no such data")
    assert list(tmp_path.iterdir()) == []
    # One that was interrupted is said to go on, a folder that was there is the user's, and what was done is kept.
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "stopped", CONFIG):
        raise KeyboardInterrupt
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError), RunFolder(tmp_path / "there", CONFIG):
        raise ConfigError("no such data")
    begun = RunFolder(tmp_path / "begun", CONFIG)
    (tmp_path / "begun" / "metrics.csv").touch()
    with pytest.raises(DivergenceError), begun:
        raise DivergenceError("at step 7")
    assert all((tmp_path / name / "config.json").exists() for name in ("stopped", "begun"))
    assert list((tmp_path / "there").iterdir()) == []


def test_a_lock_of_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed_meanwhile(path: Path) -> int | None:
        monkeypatch.undo()
        path.rmdir()
        return lock(path)

    monkeypatch.setattr(run, "lock", removed_meanwhile)
    with RunFolder(tmp_path / "a", CONFIG):
        assert is_locked(tmp_path / "a")
    (tmp_path / "b").mkdir()
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: unlinked(opened(path, *rest), path))
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "b")
    assert not is_locked(tmp_path / "none")


def unlinked(descriptor: int, path: Path) -> int:
    os.unlink(path)
    return descriptor


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_files_are_no_run_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is to be a run folder, but there is a file"):
        RunFolder(tmp_path / name, CONFIG)


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not a run folder: it holds 'thesis.tex'"):
        RunFolder(tmp_path, CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_metrics_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.start()
    file.write([MetricsRow("joint", "train", 1, 1, 8, loss=0.1 + 0.2)])
    size = file.sync()
    file.write([MetricsRow("joint", "train", 1, 2, 8, loss=9.0)])
    again = MetricsFile(path)
    again.start(size)
    assert read_metrics(path) == [MetricsRow("joint", "train", 1, 1, 8, loss=0.1 + 0.2)]
    assert path.stat().st_size == size


def test_metrics_that_lost_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected at least 100 bytes, found 0"):
        MetricsFile(tmp_path / "metrics.csv").start(100)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_other_tables_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(CheckpointError, match="expected the columns"):
        read_metrics(tmp_path / "metrics.csv")


def test_window_means_and_state() -> None:
    window, copy = Window(), Window()
    window.add({8: {"loss": 1.0, "lr": 0.5}, 2: {"loss": 3.0, "lr": 0.5}})
    copy.load_state(json.loads(json.dumps(window.state(), sort_keys=True)))
    for each in (window, copy):
        each.add({8: {"loss": 2.0, "lr": 0.25}, 2: {"loss": 5.0, "lr": 0.25}})
        rows = each.flush("joint", 1, 2)
        assert [(row.bits, row.loss, row.lr) for row in rows] == [(8, 1.5, 0.25), (2, 4.0, 0.25)]
        assert each.flush("joint", 1, 3) == []


def test_window_means_are_of_the_steps_that_a_width_had() -> None:
    window = Window()
    for step, bits in enumerate((4, 8, 4)):
        window.add({bits: {"loss": float(step), "lr": 0.5}, 2: {"loss": 3.0, "lr": 0.5}})
    assert [(row.bits, row.loss) for row in window.flush("joint", 1, 3)] == [(8, 1.0), (4, 1.0), (2, 3.0)]


def test_window_of_a_state_with_one_count() -> None:
    window = Window()
    window.load_state({"count": 2, "sums": {"8": {"loss": 3.0}}, "last": {"8": 0.5}})
    assert window.flush("joint", 1, 2)[0].loss == 1.5


def test_random_state_comes_back() -> None:
    state = random_state(CPU)
    first = torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)
    with pytest.raises(CheckpointError, match="random state has the shape"):
        set_random_state(torch.cat([state, state]), CPU)


def test_state_of_another_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another network"):
        load_model_state(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


def test_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"width": [8, 4]})
    assert read_json(path) == {"width": [8, 4]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder: expected a file, found a folder"):
        write_json(tmp_path / "folder", {})
    (tmp_path / "folder").rmdir()
    for other in (tmp_path, path / "b.json"):
        with pytest.raises(CheckpointError, match="expected a JSON file"):
            read_json(other)
    # What a killed process leaves is found and removed by the next state that is written.
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda path: None)
        killed.setattr(os, "replace", lambda source, target: sys.exit())
        with pytest.raises(SystemExit):
            write_json(path, {})
    assert len(list(tmp_path.iterdir())) == 2
    write_state(tmp_path, {}, None)
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".tmp")]
    assert read_json(path) == {"width": [8, 4]}
