"""The commands on a tiny run: train, resume, evaluate, inspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import bitswitch as bs
from bitswitch.cli import main
from bitswitch.models import Architecture
from tests.cli.conftest import TINY


def accuracies(out: str) -> list[list[str]]:
    lines = [line.split()[:3] for line in out.splitlines()]
    return [words for words in lines if words[1:2] == ["bits"]]


def test_finished_runs_print_their_results(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(runs / "digits-a")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith((" float", " 8 ", " 4 ", " 2 "))] == ["float", *"842"]
    assert lines[-1] == f"report:     {runs / 'digits-a' / 'report.html'}"
    assert err == f"run folder: {runs / 'digits-a'}\n"
    assert any((runs / "digits-a" / "tensorboard" / "joint").iterdir())


def test_the_same_command_finds_its_unfinished_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "digits-a", tmp_path / "digits-b")
    (tmp_path / "digits-b" / "results.json").unlink()
    assert main([*TINY, "--runs", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["digits-b"]
    for name in ("metrics.csv", "results.json", "report.html"):
        assert (tmp_path / "digits-b" / name).read_bytes() == (runs / "digits-a" / name).read_bytes()
    assert "all widths: 1 epochs of 2 steps, continued after step 2" in capsys.readouterr().err


def test_what_is_no_run_of_the_recipe_is_passed_by(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "digits-report.md").touch()
    for name, text in (("plots", None), ("other", "{}"), ("broken", "{"), ("newer", '{"recipe": {"new": 1}}')):
        (tmp_path / f"digits-{name}").mkdir()
        if text is not None:
            (tmp_path / f"digits-{name}" / "config.json").write_text(text)
    before = set(tmp_path.rglob("*"))
    assert main([*TINY, "--runs", str(tmp_path)]) == 0
    (made,) = set(tmp_path.iterdir()) - before
    assert {path for path in tmp_path.rglob("*") if made not in (path, *path.parents)} == before
    assert (made / "results.json").read_bytes() == (runs / "digits-a" / "results.json").read_bytes()


def test_an_unfinished_run_of_an_earlier_version_is_found(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits-b"
    shutil.copytree(runs / "digits-a", folder)
    (folder / "results.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["recipe"]["joint"]["turns"]
    (folder / "config.json").write_text(json.dumps(config))
    assert main([*TINY, "--runs", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "results.json").exists()


def test_other_options_for_a_name_are_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--runs", str(runs), "--name", "a", "--joint.lr", "0.5"]) == 1
    assert "was started with recipe.joint.lr=0.002, this command says 0.5" in capsys.readouterr().err


def test_a_refused_run_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--runs", str(tmp_path), "--start.weights", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", '{"accuracy": {"8": "high"}}', '{"accuracy": 1}'),
        '{"float_accuracy": 0.9, "accuracy": {"99": 0.9}, "bytes_at": {}, "float_bytes": 9}',
        '{"float_accuracy": 0.9, "accuracy": {}, "bytes_at": {}, "float_bytes": 9}',
        '{"float_accuracy": 0.9, "accuracy": {"8": 90}, "bytes_at": {}, "float_bytes": 9}',
        '{"float_accuracy": 0.9, "accuracy": {"8": 0.9}, "bytes_at": {}, "float_bytes": 0}',
    ],
)
def test_other_results_are_refused(runs: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "digits-a", tmp_path / "digits-b")
    (tmp_path / "digits-b" / "results.json").write_text(text)
    for words in (["train", "--resume"], ["report"]):
        assert main([*words, str(tmp_path / "digits-b")]) == 1
        assert "results.json does not hold the results of a run" in capsys.readouterr().err


def test_only_run_folders_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path)]) == 1
    assert "is not a run folder" in capsys.readouterr().err


def test_evaluate_every_width_as_the_run_did(runs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(runs / "digits-a")]) == 0
    trained = accuracies(capsys.readouterr().out)
    assert len(trained) == 3
    assert main(["evaluate", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert accuracies(out) == trained
    assert out.endswith("40 images\n")
    assert main(["evaluate", str(checkpoint), "--engine"]) == 0
    # Float sums in another order may move an image.
    for ours, theirs in zip(accuracies(capsys.readouterr().out), trained, strict=True):
        assert ours[:2] == theirs[:2]
        assert float(ours[2]) == pytest.approx(float(theirs[2]), abs=2.6)


@pytest.mark.parametrize("words", [["evaluate", "--precision", "4"], ["inspect", "--verify"]])
def test_a_run_folder_stands_for_its_checkpoint(
    words: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for folder in (checkpoint, checkpoint.parent):
        assert main([words[0], str(folder), *words[1:]]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    shutil.copy(checkpoint.parent / "config.json", tmp_path)
    assert main([words[0], str(tmp_path), *words[1:]]) == 1
    assert f"the run in {tmp_path} is not finished" in capsys.readouterr().err


def test_evaluate_per_layer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(checkpoint), "--precision", "2", "down=8,default=4", "--metric", "top5"]) == 0
    out = capsys.readouterr().out
    assert "down=8,default=4" in out
    assert "4.80" in out


def test_average_bits_leave_pinned_layers_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = Architecture.of("digits-cnn", width=4)
    images = torch.rand(4, 1, 8, 8)
    model = bs.prepare(architecture.build(), bits=(4, 2), first_last=8, example_inputs=images)
    bs.calibrate(model, [images])
    bs.save(model, tmp_path / "pinned", architecture=architecture.to_json())
    assert main(["evaluate", str(tmp_path / "pinned"), "--data", "digits", "--precision", "2"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "2 bits" in line]
    assert row.split()[-1] == "2.00"


@pytest.mark.parametrize(
    ("precision", "message"),
    [("3", "was not prepared for 3 bits"), ("dwn=8,default=4", "did you mean 'down'"), ("x", "cannot read 'x'")],
)
def test_evaluate_refuses(checkpoint: Path, precision: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(checkpoint), "--precision", precision]) == 1
    assert message in capsys.readouterr().err


def test_missing_planes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "four-bits"
    folder.mkdir()
    for path in checkpoint.iterdir():
        if not path.name.startswith(("plane-5", "plane-6", "plane-7")):
            shutil.copy(path, folder)
    assert main(["inspect", str(folder), "--histograms", "--verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("MISSING") == 3
    assert "all 5 layers with bit planes at 4 bits" in out
    assert "at 8 bits\n" not in out
    assert main(["evaluate", str(folder)]) == 0
    assert " 8 bits" not in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--precision", "8"]) == 1
    assert "plane-5" in capsys.readouterr().err


def test_copies_that_were_interrupted(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(checkpoint, tmp_path / "part")
    path = next((tmp_path / "part").glob("base-*"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    assert main(["inspect", str(tmp_path / "part")]) == 0
    out = capsys.readouterr().out
    assert f"DAMAGED: 100 bytes instead of {size}" in out
    assert "MISSING" not in out
    assert main(["evaluate", str(tmp_path / "part")]) == 1
    assert f"no width can be opened; missing are {path.name} (100 of {size} bytes)" in capsys.readouterr().err


def test_inspect(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), "--layers", "down"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits-cnn, 8, 4, 2 bits")
    assert "weights are quantized" in out
    histogram = out[out.index("down at 2 bits\n") :].splitlines()[1:]
    assert [line.split()[0] for line in histogram] == ["-2", "-1", "0", "1"]
    assert sum(float(line.split()[1]) for line in histogram) == pytest.approx(100, abs=0.03)


def test_inspect_refuses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), "--layers", "stem"]) == 1
    assert main(["inspect", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
