"""Precisions: what is accepted, what is refused and with which words, and that they survive JSON and text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitswitch.errors import ArgumentError, PrecisionError, UnknownLayerError
from bitswitch.precision import Precision, validate_widths

AVAILABLE = {"conv1": (8, 4, 2), "conv2": (8, 4, 2), "head": (8,)}
NAMES = st.text("abcxyz.0123456789_", min_size=1).filter(lambda name: name != "default")
PRECISIONS = st.one_of(
    st.integers(2, 8).map(Precision.of),
    st.tuples(st.dictionaries(NAMES, st.integers(2, 8), min_size=1), st.one_of(st.none(), st.integers(2, 8))).map(
        lambda pair: Precision.of(*pair)
    ),
)


@given(PRECISIONS)
def test_round_trips(precision: Precision) -> None:
    assert Precision.from_json(json.loads(json.dumps(precision.to_json()))) == precision
    assert Precision.parse(str(precision)) == precision
    assert hash(Precision.from_json(precision.to_json())) == hash(precision)


def test_order_of_a_mapping_does_not_matter() -> None:
    assert Precision.of({"a": 2, "b": 4}) == Precision.of({"b": 4, "a": 2})


def test_resolve_uniform_keeps_pinned_layers() -> None:
    assert Precision.of(2).resolve(AVAILABLE) == {"conv1": 2, "conv2": 2, "head": 8}


def test_resolve_mapping() -> None:
    assert Precision.of({"conv2": 8}, default=4).resolve(AVAILABLE) == {"conv1": 4, "conv2": 8, "head": 8}


@pytest.mark.parametrize(
    ("precision", "error", "words"),
    [
        (Precision.of(3), PrecisionError, "layer 'conv1' was not prepared for 3 bits; it can run at 8, 4, 2"),
        (Precision.of({"conv1": 6}, 4), PrecisionError, "layer 'conv1' was not prepared for 6 bits"),
        (Precision.of({"conv1": 4}), PrecisionError, "no width is given for layer 'conv2'"),
        (Precision.of({"head": 4}, 4), PrecisionError, "layer 'head' was not prepared for 4 bits; it can run at 8"),
        (Precision.of({"conv3": 4}, 4), UnknownLayerError, "no quantized layer is called 'conv3'; did you mean"),
        (Precision.of({"qqqq": 4}, 4), UnknownLayerError, "the 3 quantized layers are 'conv1', 'conv2', 'head'"),
    ],
)
def test_resolve_refuses(precision: Precision, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        precision.resolve(AVAILABLE)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["4", 4.0, True, None, [4], {"conv1": "4"}, {"conv1": True}, {3: 4}])
def test_wrong_types_are_refused(value: object) -> None:
    with pytest.raises(ArgumentError):
        Precision.of(value)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [1, 9, 0, -4, 32, {"conv1": 16}])
def test_widths_outside_are_refused(value: object) -> None:
    with pytest.raises(PrecisionError, match="between 2 and 8"):
        Precision.of(value)  # pyright: ignore[reportArgumentType]


def test_default_goes_with_a_mapping_only() -> None:
    with pytest.raises(ArgumentError, match="default="):
        Precision.of(4, default=2)


@pytest.mark.parametrize(
    "text", ["", "four", "4,2", "conv1=", "=4", "conv1=4,conv1=2", "conv1=4;fc=2", "4=", "-4", "²"]
)
def test_unreadable_text_is_refused(text: str) -> None:
    with pytest.raises(PrecisionError):
        Precision.parse(text)


@pytest.mark.parametrize("value", [{"layers": {}}, {"layers": [], "default": 4}, {"layers": {}, "default": 4, "x": 1}])
def test_malformed_json_is_refused(value: object) -> None:
    with pytest.raises(PrecisionError):
        Precision.from_json(value)


def test_validate_widths() -> None:
    assert validate_widths([2, 8, 6, 4]) == (8, 6, 4, 2)
    assert validate_widths({3}) == (3,)
    for wrong in ([], [1, 4], [4, 4], [9]):
        with pytest.raises(PrecisionError):
            validate_widths(wrong)
    for wrong in ("84", 8, [8.0], [True, 4]):
        with pytest.raises(ArgumentError):
            validate_widths(wrong)  # pyright: ignore[reportArgumentType]
