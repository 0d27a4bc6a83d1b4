"""Killed at any moment, a save leaves the old checkpoint or the new one."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bitswitch import checkpoint
from bitswitch._files import FileRecord, open_tensors, writing
from bitswitch.checkpoint import reader
from bitswitch.errors import CheckpointError

Make = Callable[..., nn.Module]


class Killed(BaseException):
    pass


def content(folder: Path) -> bytes:
    """Check that a checkpoint is complete and return its config.json, which has the hashes of all the rest."""
    checkpoint.verify(folder)
    assert checkpoint.read_info(folder).missing == ()
    return (folder / "config.json").read_bytes()


def test_interrupted_at_every_system_call(tmp_path: Path, trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = trained(), trained()
    with torch.no_grad():
        new.a.weight.neg_()
        new.b.weight.neg_()
    checkpoint.save(old, tmp_path / "old")
    checkpoint.save(new, tmp_path / "new")
    old_content, new_content = content(tmp_path / "old"), content(tmp_path / "new")
    assert old_content != new_content
    fsync = os.fsync  # counted, not called: what this test is about is the order of calls
    calls = 0
    limit = 0

    def counted(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            # A killed process cleans nothing up, so nothing may be removed after the fatal moment either.
            if limit and calls > limit and function in (os.unlink, Path.unlink):
                return None
            return None if function is fsync else function(*args, **kwargs)

        return call

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    seen = set()
    for limit in range(1, 200):
        folder = tmp_path / f"run{limit}"
        calls = -(10**9)
        shutil.copytree(tmp_path / "old", folder)
        calls = 0
        try:
            checkpoint.save(new, folder)
            break
        except Killed:
            found = content(folder)
            assert found in (old_content, new_content)
            seen.add(found == new_content)
        calls = -(10**9)
        if limit % 6 == 1:
            checkpoint.save(new, folder)
            assert content(folder) == new_content
            assert len(list(folder.iterdir())) == 10
    else:
        pytest.fail("the save never ran to its end")
    assert seen == {False, True}
    assert limit > 30


def _save_for_ever(model: nn.Module, folder: Path, started: object) -> None:
    torch.set_num_threads(1)
    while True:
        with torch.no_grad():
            model.a.weight.neg_()
        checkpoint.save(model, folder)
        started.set()  # pyright: ignore[reportAttributeAccessIssue]


def test_killed_by_a_signal(tmp_path: Path, trained: Make) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_save_for_ever, args=(model, tmp_path, started), daemon=True)
    process.start()
    assert started.wait(300)
    process.kill()
    process.join()
    content(tmp_path)
    # The lock died with its holder.
    checkpoint.save(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 10


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        model.a.weight.neg_()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(model, tmp_path)
    assert Path(caught.value.filename).parent == tmp_path
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_files_of_ours_are_removed(tmp_path: Path, trained: Make) -> None:
    foreign = ["notes.txt", "base-model.safetensors", "plane-9-0123456789abcdef.safetensors", "state-0.json"]
    for name in foreign:
        (tmp_path / name).write_text(name)
    (tmp_path / "base-0123456789abcdef.safetensors").mkdir()
    stale = [tmp_path / "plane-3-0123456789abcdef.safetensors", tmp_path / ".bitswitch-0123456789abcdef.tmp"]
    for path in stale:
        path.write_text("")
    checkpoint.save(trained(), tmp_path)
    assert all((tmp_path / name).read_text() == name for name in foreign)
    assert (tmp_path / "base-0123456789abcdef.safetensors").is_dir()
    assert not any(path.exists() for path in stale)


def test_a_config_of_something_else_is_not_replaced(tmp_path: Path, trained: Make) -> None:
    model = trained()
    path = tmp_path / "config.json"
    for foreign in ('{"recipe": {}}', "", "{"):
        path.write_text(foreign)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} does not belong to a checkpoint"):
            checkpoint.save(model, tmp_path)
        assert path.read_text() == foreign
        assert len(list(tmp_path.iterdir())) == 1
    path.unlink()
    checkpoint.save(model, tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    checkpoint.save(model, tmp_path)
    assert path.read_bytes() == good


@pytest.mark.parametrize("position", [0, 4])
def test_a_checkpoint_that_is_replaced_while_it_is_loaded(
    position: int, tmp_path: Path, trained: Make, net: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    with torch.no_grad():
        model.a.weight.neg_()
        model.head.bias.neg_()
    calls = iter(range(100))

    def overtaken(folder: Path, record: FileRecord) -> object:
        if next(calls) == position:
            checkpoint.save(model, folder)
        return open_tensors(folder, record)

    monkeypatch.setattr(reader, "open_tensors", overtaken)
    loaded = checkpoint.load(tmp_path, into=net())
    assert torch.equal(loaded.a.codes, model.a.weight_codes())
    assert torch.equal(loaded.head.bias, model.head.bias)
    assert next(calls) == position + 1 + 9
