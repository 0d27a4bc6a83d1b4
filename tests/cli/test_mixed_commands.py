"""The commands for mixed precision on a tiny run: sensitivity, search, frontier."""

from __future__ import annotations

import csv
import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bitswitch.training
from bitswitch.cli import main
from bitswitch.cli.mixed_options import silent_solver
from bitswitch.data import ImageSet, load_digits
from bitswitch.mixed import Sensitivity
from bitswitch.precision import Precision
from bitswitch.recipes import loaders

LAYERS = ("block.conv1", "block.conv2", "down", "depthwise", "pointwise")
# A few measurements, so that it is quick.
FEW = ("--average-bits", "3", "5", "--random", "4", "--rounds", "1", "--neighbours", "2", "--seeds", "2")


@pytest.fixture(scope="module")
def run(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run with a sensitivity."""
    folder = tmp_path_factory.mktemp("mixed") / "digits-a"
    shutil.copytree(runs / "digits-a", folder)
    assert main(["sensitivity", str(folder), "--images", "32", "--batch-size", "16", "--max-probes", "4"]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_sensitivity_of_a_run_and_of_a_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", "40", "--batch-size", "16", "--method", "hessian", "--inputs", "--max-probes", "2"]
    assert main(["sensitivity", str(run / "checkpoint"), *words, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "hessian, 48 images, 2 probes of each batch" in out
    assert "over the weights of the highest width, as there is no float network here" in out
    tables = [[line.split()[0] for line in part.splitlines() if line.split()[:1]] for part in out.split("per input")]
    assert all(set(LAYERS) < set(layers) for layers in tables)
    of_checkpoint, of_run = (Sensitivity.load(folder / "sensitivity.json") for folder in (tmp_path, run / "mixed"))
    assert of_checkpoint.fingerprint == of_run.fingerprint
    assert set(LAYERS) < set(of_run) == set(of_checkpoint)
    assert of_checkpoint.inputs
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_search(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--average-bits", "3", "5", "--solutions", "3", "--output", str(tmp_path)]
    words += ["--sensitivity", str(run / "mixed" / "sensitivity.json"), "--layer-bits", "down=8", "block.*=8,4"]
    assert main(["search", str(run), *words]) == 1
    assert "the smallest feasible average width is 4 bits, not 3" in capsys.readouterr().err
    words[1:3] = ["4.4", "5"]
    assert main(["search", str(run), *words]) == 0
    out = capsys.readouterr().out
    found = read(tmp_path / "search.json")["subnets"]
    assert [(row["budgets"]["average_bits"], row["rank"]) for row in found] == [
        (b, r) for b in (4.4, 5) for r in (1, 2, 3)
    ]
    for row in found:
        widths = dict(Precision.parse(row["precision"]).layers)
        assert widths["down"] == 8
        assert {widths["block.conv1"], widths["block.conv2"]} <= {8, 4}
        assert row["average_bits"] <= row["budgets"]["average_bits"]
        assert "".join(str(widths[name]) for name in LAYERS) in out
        assert row["bitops"] > 0
    objectives = [row["objective"] for row in found]
    assert objectives[:3] == sorted(objectives[:3])
    with open(tmp_path / "search.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["precision"] for row in rows] == [row["precision"] for row in found]
    assert [float(row["budget_average_bits"]) for row in rows] == [4.4] * 3 + [5] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"search.json", "search.csv", "search.png"}


def test_search_with_several_budgets_and_a_latency_table(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "latency.json"
    table.write_text(json.dumps({name: {"8": 3e-3, "4": 2e-3, "2": 1e-3} for name in LAYERS}))
    words = ["--latency", "0.009", "--latency-table", str(table), "--bytes", "3500", "--objective", "weighted-bits"]
    assert main(["search", str(run), *words, "--output", str(tmp_path)]) == 0
    (found,) = read(tmp_path / "search.json")["subnets"]
    assert found["latency"] <= 0.009 + 1e-9
    assert found["weight_bytes"] <= 3500


def test_the_subnet_found_is_saved_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone"
    words = ["--average-bits", "3.4", "--save", str(alone), "--output", str(tmp_path)]
    assert main(["search", str(run), *words]) == 0
    (found,) = read(tmp_path / "search.json")["subnets"]
    capsys.readouterr()
    assert main(["evaluate", str(alone)]) == 0
    own = capsys.readouterr().out.splitlines()[3].split()
    assert main(["evaluate", str(run / "checkpoint"), "--precision", found["precision"]]) == 0
    whole = capsys.readouterr().out.splitlines()[3].split()
    assert own[-2] == whole[-2]
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (alone, run / "checkpoint")
    ]
    assert sizes[0] < 0.7 * sizes[1]
    # A source without a recipe leaves none of an earlier one behind.
    shutil.copytree(run / "checkpoint", tmp_path / "bare", ignore=shutil.ignore_patterns("recipe.json"))
    words += ["--sensitivity", str(run / "mixed" / "sensitivity.json")]
    assert (alone / "recipe.json").exists()
    assert main(["search", str(tmp_path / "bare"), *words]) == 0
    assert not (alone / "recipe.json").exists()


def test_a_subnet_is_saved_over_nothing_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(run / "config.json", other)
    for source, save, message in (
        (run, run, "is the folder of the network that is searched"),
        (run, run / "checkpoint", "is the folder of the network that is searched"),
        (run / "checkpoint", run / "checkpoint", "is the folder of the network that is searched"),
        (run / "checkpoint", run, "does not belong to a checkpoint"),
        (run, other, "does not belong to a checkpoint"),
    ):
        before = {path: path.read_bytes() for folder in (run, other) for path in folder.rglob("*") if path.is_file()}
        words = ["--average-bits", "4", "--sensitivity", str(run / "mixed/sensitivity.json"), "--save", str(save)]
        assert main(["search", str(source), *words, "--output", str(tmp_path / "results")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "results").exists()
        assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "give at least one budget: --average-bits, --weighted-bits, --bytes, --bitops, --latency"),
        (["search", "--average-bits", "2", "3", "--bytes", "1", "2", "3"], "--average-bits has 2, --bytes has 3"),
        (["search", "--bytes", "10"], "the smallest feasible size is"),
        (["search", "--average-bits", "nan"], "must be a positive number"),
        (["search", "--average-bits", "4", "--layer-bits", "dwn=8"], "'dwn' matches no quantized layer"),
        (["search", "--average-bits", "4", "--layer-bits", "down"], "cannot read 'down'"),
        (["search", "--average-bits", "4", "--solutions", "0"], "--solutions must be at least 1"),
        (["search", "--latency", "1"], "--latency needs --latency-table"),
        (["search", "--average-bits", "4", "--layer-bits", "down=8", "down=4"], "'down' is given twice"),
        (["search", "--latency", "1", "--latency-table", "none.json"], "no latency table none.json"),
        (["search", "--average-bits", "4", "--sensitivity", "none.json"], "cannot be read"),
        (["frontier", "--average-bits", "1"], "the smallest feasible average width is 2 bits"),
        (["frontier", "--seeds", "0"], "--seeds must be at least 1"),
        (["frontier", "--search-share", "1"], "fraction to split off"),
        (["sensitivity", "--images", "0"], "--images must be at least 1"),
    ],
)
def test_refusals(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words[0], str(run), *words[1:]]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sensitivity"], ["search", "--average-bits", "4"], ["frontier"]])
def test_results_need_a_folder(
    run: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path, message in (("file", "--output is a folder;"), ("file/mixed", "cannot be written")):
        assert main([command[0], str(run), *command[1:], "--output", str(tmp_path / path)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--device", "cpu"], ["--data-folder", "nowhere"]])
def test_a_search_has_no_options_without_effect(run: Path, option: list[str]) -> None:
    assert main(["search", str(run), "--average-bits", "4", *option]) == 2


def test_what_is_missing_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "digits-a"
    assert main(["search", str(run), "--average-bits", "4"]) == 1
    assert f"run: bitswitch sensitivity {run}" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "none"), "--average-bits", "4"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("checkpoint"))
    assert main(["search", str(tmp_path / "unfinished"), "--average-bits", "4"]) == 1
    assert "is not finished" in capsys.readouterr().err


def test_frontier(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "frontier",
        str(run),
        *FEW,
        "--output",
        str(tmp_path),
        "--sensitivity",
        str(run / "mixed/sensitivity.json"),
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()] == ["1 of 2", "2 of 2", "best with the fitted objective"]
    found = read(tmp_path / "frontier.json")
    subnets = {row["precision"]: row for row in found["subnets"]}
    assert len(subnets) == len(found["subnets"])
    assert len(found["uniform"]) == 3
    assert (found["search_images"]["number"], found["unseen_images"]["number"]) == (20, 20)
    for part in found["within"]:
        programme, refined = subnets[part["programme"]], subnets[part["refined"]]
        assert refined["search_accuracy"] >= programme["search_accuracy"]
        assert refined["average_bits"] <= part["budgets"]["average_bits"]
        assert 0 <= refined["unseen_accuracy"] <= 1
    assert set(found["frontier"]) == {"average_bits", "weighted_bits", "weight_bytes", "bitops"}
    assert all(subnets[name]["unseen_accuracy"] is not None for names in found["frontier"].values() for name in names)
    assert set(found["correlations"]) == {"perturbation", "weighted-bits", "average bits"}
    assert "best of 4 random" in out
    assert "Spearman" in out
    with open(tmp_path / "frontier.csv", encoding="utf-8") as file:
        assert [row["precision"] for row in csv.DictReader(file)] == list(subnets)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    scores = {"scores_search.json", "scores_unseen.json"}
    assert set(files) == {"frontier.json", "frontier.csv", "frontier.png", "frontier_widths.png", *scores}

    def refuse(*_: Any) -> None:
        raise AssertionError("everything has been measured")

    monkeypatch.setattr(bitswitch.training, "evaluate", refuse)
    assert main(words) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert main([*words, "--reestimate", "32"]) == 1
    assert "measurements of another network or other data" in capsys.readouterr().err


def test_the_number_of_random_subnets_is_that_found(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--average-bits", "2", "4", "--random", "3", "--rounds", "0", "--fitted", "0", "--output", str(tmp_path)]
    assert main(["frontier", str(run), *words]) == 0
    assert "best of 1 … 3 random" in capsys.readouterr().out


def test_scores_of_other_images_are_not_used(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["frontier", str(run), "--average-bits", "4", "--random", "0", "--rounds", "0", "--fitted", "0"]
    plain, own = (
        [*words, "--reestimate", count, "--output", str(tmp_path / count), "--batch-size"] for count in ("0", "32")
    )
    for command in ([*plain, "128"], [*plain, "64"], [*own, "32"]):
        assert main(command) == 0
    capsys.readouterr()
    assert main([*own, "16"]) == 1
    assert "measurements of another network or other data" in capsys.readouterr().err

    def negatives(seed: int) -> tuple[ImageSet, ...]:
        return tuple(ImageSet(255 - part.images, part.labels, part.classes) for part in load_digits(seed))

    monkeypatch.setattr(loaders, "load_digits", negatives)
    assert main([*plain, "128"]) == 1
    assert "measurements of another network or other data" in capsys.readouterr().err


@pytest.mark.parametrize("reestimate", ["0", "48"])
def test_frontier_of_the_engine(run: Path, tmp_path: Path, reestimate: str) -> None:
    words = ["frontier", str(run), "--average-bits", "4", "--random", "3", "--rounds", "0", "--reestimate", reestimate]
    assert main([*words, "--output", str(tmp_path / "float")]) == 0
    assert main([*words, "--engine", "--output", str(tmp_path / "engine")]) == 0
    simulated, engine = (read(tmp_path / name / "frontier.json") for name in ("float", "engine"))
    assert (simulated["engine"], engine["engine"]) == (False, True)
    for one, other in zip(simulated["subnets"], engine["subnets"], strict=True):
        assert one["precision"] == other["precision"]
        # Float sums in another order may move single codes, and with them an image or two.
        assert one["search_accuracy"] == pytest.approx(other["search_accuracy"], abs=0.03)


def test_frontier_with_statistics_of_its_own(run: Path, tmp_path: Path) -> None:
    words = ["--average-bits", "4", "--random", "0", "--rounds", "0"]
    for count in ("0", "48"):
        output = tmp_path / count
        assert main(["frontier", str(run), *words, "--reestimate", count, "--output", str(output)]) == 0
    plain, own = (read(tmp_path / count / "frontier.json") for count in ("0", "48"))
    assert (plain["reestimate"], own["reestimate"]) == (0, 48)
    assert [row["precision"] for row in plain["subnets"]] == [row["precision"] for row in own["subnets"]]
    scores = [[row["search_accuracy"] for row in found["subnets"]] for found in (plain, own)]
    assert scores[0] != scores[1]
    assert plain["correlations"] == {}


def test_prints_of_c_code_are_thrown_away(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        libc = ctypes.CDLL(None)
    except TypeError:
        pytest.skip("no C library to print with")
    with silent_solver():
        libc.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
    libc.puts(b"kept")
    libc.fflush(None)
    assert capfd.readouterr().out == "kept\n"
