"""Batches as a pure function of seed, epoch, step and rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch.data import BatchOrder
from bitswitch.data.order import derive_seed
from bitswitch.errors import ConfigError


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_ranks_together_are_one_process(samples: int, per_rank: int, world: int, train: bool, epoch: int) -> None:
    size = per_rank * world
    if train and size > samples:
        return
    single = BatchOrder(samples, size, train, seed=3).batches(epoch)
    ranks = [BatchOrder(samples, size, train, 3, rank, world).batches(epoch) for rank in range(world)]
    for step, batch in enumerate(single):
        assert torch.equal(torch.cat([parts[step] for parts in ranks]), batch)
        if train:
            assert {len(parts[step]) for parts in ranks} == {per_rank}


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 5))
def test_evaluation_sees_every_sample_once(samples: int, size: int, world: int) -> None:
    seen = [i for r in range(world) for part in BatchOrder(samples, size, False, 0, r, world).batches(0) for i in part]
    assert sorted(map(int, seen)) == list(range(samples))


def test_evaluation_is_in_order() -> None:
    assert torch.cat(BatchOrder(10, 3, train=False, seed=5).batches(7)).tolist() == list(range(10))


def test_training_shuffles_each_epoch_and_drops_the_rest() -> None:
    order = BatchOrder(10, 3, train=True)
    first, second = (torch.cat(order.batches(epoch)).tolist() for epoch in (0, 1))
    assert len(first) == len(set(first)) == 9
    assert first != second
    assert first == torch.cat(BatchOrder(10, 3, train=True).batches(0)).tolist()
    assert first != torch.cat(BatchOrder(10, 3, train=True, seed=1).batches(0)).tolist()


def test_start_step_cuts_the_front() -> None:
    order = BatchOrder(20, 3, train=True, seed=2)
    for start in range(order.num_steps + 1):
        assert [b.tolist() for b in order.batches(4, start)] == [b.tolist() for b in order.batches(4)[start:]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, True), "from 0 samples"),
        ((8, 0, True), "batches of 0"),
        ((8, 9, True), "needs more than the 8 samples"),
        ((8, 4, True, -1), "seed must not be negative"),
        ((8, 4, True, 0, 2, 2), r"rank must lie in 0…1; got 2"),
        ((8, 5, True, 0, 0, 2), "does not divide evenly among 2"),
    ],
)
def test_impossible_orders(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchOrder(*arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -1), (0, 4)])
def test_impossible_steps(epoch: int, step: int) -> None:
    with pytest.raises(ConfigError, match="an epoch has 3 steps"):
        BatchOrder(9, 3, train=True).batches(epoch, step)


def test_seeds_do_not_collide() -> None:
    keys = [(a, b, c) for a in range(9) for b in range(9) for c in range(9)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
