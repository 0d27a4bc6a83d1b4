"""Every Python block of the documentation runs, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.layers import iter_layers
from tests.docs._markdown import ROOT, blocks, pages

PAGES = [path for path in pages() if any(block.language == "python" for block in blocks(path.read_text("utf-8")))]


def run_page(path: Path) -> None:
    """Run the Python blocks of a page in one namespace; a `text` block right after one is its output."""
    found = blocks(path.read_text("utf-8"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.language != "python":
            continue
        # Line numbers of the page, so that a traceback points there.
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        if following is not None and following.language == "text":
            shown = [line.rstrip() for line in following.text.strip().splitlines()]
            printed = [line.rstrip() for line in output.getvalue().strip().splitlines()]
            assert printed == shown, f"{path.name}, line {following.line}: this is not what the block above prints"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(path)


def test_the_training_loop_moves_a_scale_that_layers_share_once_a_step() -> None:
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    (loop,) = (block.text for block in blocks(page) if "own = make_model()" in block.text)
    x = torch.randn(32, 8)

    def make_model() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        net[2].weight = net[0].weight
        model = bs.prepare(net, example_inputs=x, force="*")
        bs.calibrate(model, [x])
        return model

    namespace: dict[str, Any] = {
        "torch": torch,
        "F": F,
        "bs": bs,
        "make_model": make_model,
        "make_batch": lambda: (x, x.argmax(1) % 3),
    }
    exec(loop, namespace)
    own, optimizer = namespace["own"], namespace["scales_optimizer"]
    first, second, last = (layer.weight_quantizer.scale.parameter for _, layer in iter_layers(own))
    assert first is second
    # Three batches at four widths.
    assert {parameter: state["step"].item() for parameter, state in optimizer.state.items()} == {first: 12, last: 12}


def test_a_wrong_output_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="line 6"):
        run_page(page)
