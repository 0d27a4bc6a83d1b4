"""What is derived from the stored weights and can be derived again, kept within a limit of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakMethod

T = TypeVar("T")


class DerivedCache:
    """A least-recently-used cache that is safe to use from many threads.

    An item that leaves the cache lives on as long as somebody holds it, such as the precision that is running.

    Args:
        limit: bytes that the items may take together; an item that is larger than that is not kept.

    Attributes:
        expected: bytes of optional items that one precision would use in turn. Where they do not fit together, each
            would push out the next one that is needed, so that it is better not to make any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self.expected = 0
        self._lock = threading.RLock()
        self._listeners: list[WeakMethod[Callable[[Hashable], None]]] = []

    @property
    def limit(self) -> int:
        """Bytes that the items may take together; assign to change it."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._limit = limit
            dropped = self._shrink()
        self._tell(dropped)

    @property
    def num_bytes(self) -> int:
        """Bytes that the items take now."""
        return self._bytes

    def __contains__(self, key: Hashable) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, build: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Return the item of a key, building it if it is not there.

        Two threads that ask at once for what is not there may both build it; both then get the same one.

        Args:
            key: what identifies the item.
            build: makes it; it runs without the lock, so other threads go on meanwhile.
            size_of: bytes that an item takes.
        """
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                self._items.move_to_end(key)
                return found[0]
        item = build()
        size = size_of(item)
        dropped: list[Hashable] = [key]
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                return found[0]
            if size <= self._limit:
                self._items[key] = (item, size)
                self._bytes += size
                dropped = self._shrink()
        self._tell(dropped)
        return item

    def clear(self) -> None:
        """Drop all items."""
        with self._lock:
            dropped = list(self._items)
            self._items.clear()
            self._bytes = 0
        self._tell(dropped)

    def notify(self, listener: Callable[[Hashable], None]) -> None:
        """Call a bound method, held weakly, with the key of every item that leaves or was never kept."""
        with self._lock:
            self._listeners = [known for known in self._listeners if known() is not None]
            self._listeners.append(WeakMethod(listener))

    def _shrink(self) -> list[Hashable]:
        dropped: list[Hashable] = []
        while self._bytes > self._limit:
            key, (_, size) = self._items.popitem(last=False)
            self._bytes -= size
            dropped.append(key)
        return dropped

    def _tell(self, dropped: list[Hashable]) -> None:
        # Without the lock: a listener has locks of its own.
        for reference in list(self._listeners) if dropped else ():
            listener = reference()
            if listener is not None:
                for key in dropped:
                    listener(key)
