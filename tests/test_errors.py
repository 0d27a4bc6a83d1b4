"""Every error is the library's own and also the built-in one that a caller would catch."""

from __future__ import annotations

import inspect

from bitswitch import errors


def test_every_error_has_a_builtin_parent() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if not issubclass(kind, Warning)]
    assert len(kinds) > 5
    for kind in kinds:
        assert issubclass(kind, errors.BitswitchError)
        if kind is not errors.BitswitchError:
            assert issubclass(kind, (ValueError, TypeError, KeyError))


def test_unknown_layer_reads_as_a_sentence() -> None:
    assert str(errors.UnknownLayerError("no layer 'a'")) == "no layer 'a'"
