"""`bitswitch report` on a pair of tiny runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bitswitch.cli import main
from tests.cli.conftest import TINY


@pytest.fixture(scope="module")
def pair(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with ALRS and one without; copies, so that the pages of others stay as they are."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(runs / "digits-a", folder / "digits-on")
    assert main([*TINY, "--runs", str(folder), "--name", "off", "--joint.alrs", "off"]) == 0
    return [folder / "digits-on", folder / "digits-off"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_report_of_a_real_pair(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (pair[0] / "report.html").read_bytes()
    for run in pair:
        shutil.rmtree(run / "plots")
        (run / "report.html").unlink()
    capsys.readouterr()
    words = ["report", *map(str, pair), "--output", str(tmp_path / "out.md"), "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    # The pages are the same as after training.
    assert (pair[0] / "report.html").read_bytes() == page
    assert page.count(b"data:image/png;base64,") == 4
    on, off = (json.loads((run / "results.json").read_text()) for run in pair)
    text = (tmp_path / "out.md").read_text("utf-8")
    gains = [100 * (on["accuracy"][bits] - off["accuracy"][bits]) for bits in "842"]
    cells = " | ".join(f"{round(gain, 2) + 0.0:+.2f}" for gain in gains)
    assert f"| factor against off | – | 0 | {cells} |" in text
    figures = [on["float_accuracy"], *on["accuracy"].values()]
    assert f"| alrs factor | 0 | 1 + 1 | {' | '.join(f'{100 * value:.2f}' for value in figures)} |" in text
    for row in ("factor against off", "alrs factor", "alrs off"):
        assert row in out
    # Two steps of 32 images of the 64 in either phase; the rates are those of timing.json.
    training = json.loads((pair[1] / "timing.json").read_text())["sessions"][0]["training"]
    rates = [2 * 32 / training["float"]["seconds"], 3 * 2 * 32 / training["joint"]["seconds"]]
    assert f"| alrs off | 0 | {rates[0]:.0f} | {rates[1]:.0f} | {rates[0] / rates[1]:.2f} |" in text
    plots = sorted(path.name for path in (tmp_path / "out_plots").iterdir())
    assert plots == ["accuracy.png", "accuracy_by_epoch.png", "alrs_gradients_1.png", "code_histograms.png"]
    assert str(pair[0].parent) not in text
    values = json.loads((tmp_path / "out.json").read_text())
    assert [run["accuracy"] for each in values["configurations"] for run in each["runs"]] == [
        on["accuracy"],
        off["accuracy"],
    ]
    first = snapshot(tmp_path)
    assert main(words) == 0
    assert snapshot(tmp_path) == first


def test_shown_commands_run_the_same_configuration(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(pair[1]), "--output", str(tmp_path / "out.md")]) == 0
    (line,) = re.findall(r"^bitswitch (train .*)$", (tmp_path / "out.md").read_text("utf-8"), re.MULTILINE)
    capsys.readouterr()
    # A finished run prints its results again; another configuration would be refused.
    assert main([*line.split(), "--runs", str(pair[1].parent), "--name", "off"]) == 0
    assert "was started with" not in capsys.readouterr().err


def test_without_files_only_the_pages_are_written(pair: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in pair[0].parent.iterdir()}
    assert main(["report", str(pair[0])]) == 0
    out = capsys.readouterr().out
    assert "digits-on/report.html" in out
    assert "comparison:" not in out
    assert {path.name for path in pair[0].parent.iterdir()} == before


@pytest.mark.parametrize("option", ["--json", "--output"])
def test_files_that_cannot_be_written(
    option: str, pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "file").touch()
    before = snapshot(pair[0])
    assert main(["report", str(pair[0]), option, str(tmp_path / "folder.md")]) == 1
    assert f"{option} is a file; {tmp_path / 'folder.md'} is a folder" in capsys.readouterr().err
    assert main(["report", str(pair[0]), option, str(tmp_path / "file" / "a.md")]) == 1
    assert f"cannot be written, {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert main(["report", str(pair[0]), option, str(pair[0] / "a.md")]) == 1
    assert f"{option} is a file outside of the run folders" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.md")
    assert main(["report", str(pair[0]), option, str(tmp_path / "pipe.md")]) == 1
    assert "pipe.md is a device or pipe" in capsys.readouterr().err
    assert snapshot(pair[0]) == before


def test_outputs_do_not_replace_each_other(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(pair[0]), "--output", str(tmp_path / "a.md"), "--json", str(tmp_path / "x" / ".." / "a.md")]
    assert main(words) == 1
    assert "--output and --json are one file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["twice", "unfinished", "no run", "no name"])
def test_errors_name_the_folder_and_write_nothing(
    kind: str, pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pair[0], tmp_path / "digits-good")
    shutil.copytree(pair[1], tmp_path / "digits-bad")
    bad, output = tmp_path / "digits-bad", tmp_path / "out.md"
    if kind == "twice":
        bad, message = tmp_path / "digits-good", "digits-good is given twice"
    elif kind == "unfinished":
        (bad / "results.json").unlink()
        message = "digits-bad is not finished; go on with: bitswitch train --resume"
    elif kind == "no run":
        bad, message = tmp_path, "is not a run folder: it has no config.json with a recipe"
    else:
        output, message = tmp_path / "out.txt", "its name ends in .md"
    for page in tmp_path.glob("*/report.html"):
        page.unlink()
    before = snapshot(tmp_path)
    words = [str(tmp_path / "digits-good"), str(bad), "--output", str(output), "--json", str(tmp_path / "o.json")]
    assert main(["report", *words]) == 1
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_title_is_that_of_the_page(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", str(pair[0]), "--title", "With ALRS"]
    assert main([*words, "--output", str(tmp_path / "out.md")]) == 0
    assert (tmp_path / "out.md").read_text("utf-8").startswith("# With ALRS\n")
    assert main(words) == 1
    assert "name the page with --output" in capsys.readouterr().err


def test_at_least_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) != 0
    assert "run" in capsys.readouterr().err
