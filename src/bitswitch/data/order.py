"""Which samples make up which batch: a pure function of seed, epoch, step and rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitswitch.errors import ConfigError


def derive_seed(*key: int) -> int:
    """Mix non-negative integers into one 63-bit seed; different keys give unrelated random streams.

    >>> derive_seed(0, 1) != derive_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def seeded_generator(*key: int) -> torch.Generator:
    """Return a CPU generator that depends on `key` alone."""
    return torch.Generator().manual_seed(derive_seed(*key))


@dataclass(frozen=True)
class BatchOrder:
    """The batches of every epoch, and the part of each that belongs to one process.

    For training the samples are shuffled anew every epoch and an incomplete last batch is dropped. For evaluation they
    come in order and completely.

    Attributes:
        num_samples: size of the data set.
        batch_size: samples a batch over all processes together.
        train: shuffle and drop, or neither.
        seed: of the shuffling, not negative.
        rank: this process.
        world_size: number of processes.
    """

    num_samples: int
    batch_size: int
    train: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_samples < 1:
            raise ConfigError(f"cannot make batches of {self.batch_size} from {self.num_samples} samples")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must lie in 0…{self.world_size - 1}; got {self.rank}")
        if self.seed < 0:
            raise ConfigError(f"the seed must not be negative; got {self.seed}")
        if self.train and self.batch_size % self.world_size:
            raise ConfigError(f"a batch of {self.batch_size} does not divide evenly among {self.world_size} processes")
        if self.train and self.batch_size > self.num_samples:
            raise ConfigError(f"a batch of {self.batch_size} needs more than the {self.num_samples} samples there are")

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self.num_samples, self.batch_size)
        return full if self.train else full + (rest > 0)

    def samples(self, epoch: int) -> Tensor:
        """Return the order of all samples in an epoch: int64 (num_samples,)."""
        if not self.train:
            return torch.arange(self.num_samples)
        return torch.randperm(self.num_samples, generator=seeded_generator(self.seed, epoch, 0))

    def batches(self, epoch: int, start_step: int = 0) -> list[Tensor]:
        """Return this process's sample indices of each step from `start_step` on.

        The process of rank r takes the r-th of `world_size` contiguous parts of every batch. In evaluation these parts
        may differ by one sample, and may be empty in the last batch.

        Raises:
            ConfigError: the epoch is negative, or the step is not within it.
        """
        if epoch < 0 or not 0 <= start_step <= self.num_steps:
            raise ConfigError(f"epoch {epoch}, step {start_step} does not exist; an epoch has {self.num_steps} steps")
        order = self.samples(epoch)
        parts = []
        for step in range(start_step, self.num_steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            first, last = (len(batch) * r // self.world_size for r in (self.rank, self.rank + 1))
            parts.append(batch[first:last])
        return parts
