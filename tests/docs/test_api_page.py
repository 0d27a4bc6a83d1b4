"""The reference page says what the code says, and leaves no public name out."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from types import ModuleType

import pytest

import bitswitch
from bitswitch import errors
from tests.docs._markdown import ROOT

PAGE = ROOT / "docs" / "api.md"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_api", ROOT / "docs" / "generate_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = _generator()
NAMES = generator.names(PAGE.read_text("utf-8"))


def test_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert generator.fill(page) == page, "run: python docs/generate_api.py"


def test_every_public_name_is_described() -> None:
    assert {f"bitswitch.{name}" for name in bitswitch.__all__} - set(NAMES) == set()


def test_every_error_is_described() -> None:
    kinds = {f"bitswitch.errors.{name}" for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert kinds - {"bitswitch.errors.BitswitchError"} - set(NAMES) == set()


@pytest.mark.parametrize("name", NAMES)
def test_shown_signature_names_all_parameters_in_order(name: str) -> None:
    found = generator.resolve(name)
    shown = generator.signature(name, found)
    if shown:
        expected = [parameter for parameter in inspect.signature(found).parameters if parameter != "self"]
        # The signature without its owner is valid Python, so Python can say what it means.
        bare = re.sub(r"^[\w.]+[.]", "", shown)
        (function,) = ast.parse(f"def {bare}: ...").body
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        found_names = [*given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        assert [argument.arg for argument in found_names if argument is not None] == expected
