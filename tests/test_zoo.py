"""The runs that come with the project: networks that are complete and small, and pages that say what the runs say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bitswitch as bs
from bitswitch.checkpoint import read_info, verify
from bitswitch.recipes.stored import open_checkpoint
from bitswitch.report.compare import compare
from bitswitch.report.markdown import plots_folder, write_comparison
from bitswitch.report.runs import read_run, read_runs
from bitswitch.report.settings import PATHS, flatten

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "zoo").glob("*/config.json"))
EXPERIMENTS = sorted(path.parent for path in (ROOT / "experiments").glob("*/config.json"))
PAGES = sorted((ROOT / "docs").glob("results*.md"))


def test_there_are_networks_and_pages() -> None:
    assert FOLDERS
    assert PAGES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_network_runs_at_every_width(folder: Path) -> None:
    run = read_run(folder)
    verify(folder / "checkpoint")
    info = read_info(folder / "checkpoint")
    assert (info.bytes_at, info.float_bytes) == (run.results.bytes_at, run.results.float_bytes)
    assert info.bits_available == tuple(run.widths)
    network = open_checkpoint(info).eval()
    engine = bs.deploy(network)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bits in run.widths:
            bs.switch(network, bits)
            logits = network(x)
            # Float sums in another order may move a code.
            assert (engine(x, precision=bits) - logits).abs().mean() < 0.05 * logits.abs().mean()
            assert logits.std() > 1


@pytest.mark.parametrize("folder", FOLDERS + EXPERIMENTS, ids=lambda path: path.name)
def test_a_folder_holds_nothing_of_a_machine(folder: Path) -> None:
    settings = flatten(read_run(folder).recipe)
    assert not [name for name in PATHS if str(settings[name] or "").startswith("/")]
    assert not [path.name for path in folder.rglob("*") if path.name.startswith("state")]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2 << 20


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_that_of_its_runs(path: Path, tmp_path: Path) -> None:
    page = path.read_text("utf-8")
    shown = [folder for folder in FOLDERS + EXPERIMENTS if f"# {folder.name}\n" in page]
    shown.sort(key=lambda folder: page.index(f"# {folder.name}\n"))
    title = page.partition("\n")[0].removeprefix("# ")
    write_comparison(compare(read_runs(shown)), tmp_path / path.name, title)
    assert page == (tmp_path / path.name).read_text("utf-8")
    drawn, kept = ({file.name for file in plots_folder(page).iterdir()} for page in (tmp_path / path.name, path))
    assert drawn == kept


def test_every_run_is_on_a_page() -> None:
    pages = [path.read_text("utf-8") for path in PAGES]
    assert not [folder.name for folder in EXPERIMENTS if not any(f"# {folder.name}\n" in page for page in pages)]
