"""The direction of imports, the public names, and that they are documented."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import bitswitch as bs

SOURCE = Path(bs.__file__).parent
# Each module may import from the levels before its own, and from its own level only within one package.
LEVELS = [
    {"errors", "precision", "rounding", "kernels", "_files", "_planes"},
    {"quantizers"},
    {"layers"},
    {
        "_trace",
        "_bare",
        "_ties",
        "_plan",
        "_fits",
        "_initial",
        "_batch_norm",
        "_prepare",
        "_calibrate",
        "switching",
        "_summary",
    },
    {"training", "mixed", "checkpoint", "runtime"},
    {"_deploy", "export", "integrations", "models", "data"},
    {"report", "recipes", "bench"},
    {"cli", "__main__"},
]
SEPARATE = [{"training", "mixed", "checkpoint", "runtime"}]


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "bitswitch":
                names |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("bitswitch."):
                names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bitswitch.")}
    return names


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_arrow_points_back(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in imported(path) - {own} - set(bs.__all__):
        assert level(name) <= level(own), f"{own} imports {name}"
        assert not any(own in group and name in group for group in SEPARATE), f"{own} imports {name}"


def test_at_most_twenty_public_names() -> None:
    assert len(bs.__all__) <= 20
    for name in bs.__all__:
        assert hasattr(bs, name)


@pytest.mark.parametrize("name", bs.__all__)
def test_public_names_are_documented(name: str) -> None:
    public = getattr(bs, name)
    text = inspect.getdoc(public) or ""
    assert len(text.splitlines()[0]) > 20
    if inspect.isfunction(public):
        for parameter in inspect.signature(public).parameters:
            assert f"{parameter}:" in text, f"{name} does not document {parameter}"
        assert "Raises:" in text
