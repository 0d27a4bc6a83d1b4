"""The reference page says what the code says, and leaves no public name out."""

from __future__ import annotations

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
        scope: dict[str, object] = {}
        exec(f"from __future__ import annotations\ndef {bare}: ...", scope)
        (function,) = (value for value in scope.values() if inspect.isfunction(value))
        assert list(inspect.signature(function).parameters) == expected
