"""Classes of a mixin and a layer class that someone else wrote, made when they are needed; instances can be pickled."""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any

from torch import nn


@cache
def derived_class(mixin: type[nn.Module], kind: type[nn.Module], name: str) -> type[Any]:
    """Return the class of `mixin` before `kind`, the same one every time.

    No module holds the class under its name, where pickle would look for it, so its instances are pickled as what it is
    made of; `kind` has to be importable, as for any pickled module.
    """

    def reduce(self: nn.Module, protocol: Any) -> str | tuple[Any, ...]:
        reduced = super(made, self).__reduce_ex__(protocol)
        if type(self) is not made or isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # pyright: ignore[reportAttributeAccessIssue]
            return reduced
        return _new, (mixin, kind, name, *reduced[1][1:]), *reduced[2:]

    made: Any = type(name, (mixin, kind), {"__module__": __name__, "__reduce_ex__": reduce})
    return made


def _new(mixin: type[nn.Module], kind: type[nn.Module], name: str, *arguments: Any) -> Any:
    """Make an instance without initialising it, as unpickling does."""
    made = derived_class(mixin, kind, name)
    return made.__new__(made, *arguments)
