"""What modules keep, so that a trace, or a run to find out shapes, leaves it as it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_SIMPLE = (bool, int, float, str)
# torch.fx puts tensors that are no part of a network here, for the graph to read.
_CONSTANTS = ("_tensor_constant", "_torchbind_obj")


class Kept:
    """Remembers what modules have as attributes, in the containers among these, and in the tensors among all of them.

    Args:
        modules: what is remembered of; values of tensors only of those that are looked into.
        looked_into: those.
    """

    def __init__(self, modules: Iterable[nn.Module], looked_into: Iterable[nn.Module]) -> None:
        inner = set(looked_into)
        self._of = [_KeptOne(module, with_tensors=module in inner) for module in modules]

    def restore(self) -> list[nn.Module]:
        """Bring everything back that has changed, and return the modules that had it."""
        return [one.module for one in self._of if one.restore()]


class _KeptOne:
    def __init__(self, module: nn.Module, *, with_tensors: bool) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        values = list(self.attributes.values())
        self.containers = [(value, _items(value)) for value in values if isinstance(value, (list, dict, set, deque))]
        tensors = [*values, *module._buffers.values()] if with_tensors else []
        self.tensors = [(t, t._version, t.clone()) for t in tensors if isinstance(t, Tensor) and not t.is_inference()]

    def restore(self) -> bool:
        """Bring back what has changed, and return whether something has."""
        changed = False
        for tensor, version, values in self.tensors:
            if tensor._version != version:
                changed = True
                with torch.no_grad():
                    tensor.copy_(values)
        for container, items in self.containers:
            if not _same(_items(container), items):
                changed = True
                _put_back(container, items)
        before = self.attributes
        now = {k: v for k, v in self.module.__dict__.items() if k in before or not k.startswith(_CONSTANTS)}
        if not _same(list(now.items()), list(before.items())):
            changed = True
            # One by one: another thread may be running the module.
            for name in now.keys() - before.keys():
                del self.module.__dict__[name]
            self.module.__dict__.update(before)
        return changed


def _put_back(container: Any, items: list[Any]) -> None:
    """Make the items of a container those of before, without it being empty in between where that can be."""
    if isinstance(container, dict):
        kept = dict(items)
        for key in [key for key in container if key not in kept]:
            del container[key]
        container.update(kept)
    elif isinstance(container, list):
        container[:] = items
    elif isinstance(container, set):
        container.intersection_update(items)
        container.update(items)
    else:
        container.clear()
        container.extend(items)


def _items(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same(now: list[Any], before: list[Any]) -> bool:
    """Whether items, or pairs of a key and a value, are the same objects, or equal numbers or strings."""
    return len(now) == len(before) and all(_is(a, b) for a, b in zip(now, before, strict=True))


def _is(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_is(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (type(a) is type(b) and isinstance(a, _SIMPLE) and a == b)
