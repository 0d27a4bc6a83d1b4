from __future__ import annotations

import gc
import threading
from collections.abc import Hashable

from bitswitch.runtime.cache import DerivedCache


def put(cache: DerivedCache, key: Hashable, size: int = 1) -> object:
    return cache.get(key, object, lambda _: size)


def test_an_item_is_built_once() -> None:
    cache = DerivedCache(10)
    assert put(cache, "a") is put(cache, "a")
    assert len(cache) == 1


def test_the_least_recently_used_leaves_first() -> None:
    cache = DerivedCache(3)
    first = [put(cache, key) for key in "abc"]
    assert put(cache, "a") is first[0]
    put(cache, "d")
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.num_bytes == 3


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    cache = DerivedCache(3)
    put(cache, "a")
    put(cache, "huge", 4)
    assert "huge" not in cache
    assert "a" in cache


def test_a_lower_limit_drops_at_once() -> None:
    cache = DerivedCache(3)
    for key in "abc":
        put(cache, key)
    cache.limit = 1
    assert [key in cache for key in "abc"] == [False, False, True]
    cache.clear()
    assert cache.num_bytes == len(cache) == 0


class Listener:
    def __init__(self) -> None:
        self.keys: list[Hashable] = []

    def heard(self, key: Hashable) -> None:
        self.keys.append(key)


def test_listeners_hear_what_leaves_and_what_is_never_kept() -> None:
    cache, listener = DerivedCache(2), Listener()
    cache.notify(listener.heard)
    for key in "abc":
        put(cache, key)
    put(cache, "huge", 9)
    assert listener.keys == ["a", "huge"]
    del listener
    gc.collect()
    cache.clear()


def test_threads_share_items_and_the_count_stays_right() -> None:
    cache = DerivedCache(50)
    found: list[set[int]] = [set() for _ in range(20)]

    def work() -> None:
        for _ in range(200):
            for key in range(20):
                found[key].add(id(put(cache, key)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(ids) == 1 for ids in found)
    assert cache.num_bytes == 20
