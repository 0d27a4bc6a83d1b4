"""Many processes: initialisation from torchrun's environment, ranks, DistributedDataParallel, exact shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitswitch.errors import BitswitchError, ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def init(backend: str | None = None) -> torch.device:
    """Join the process group that torchrun describes, if it does, and return this process's device.

    Without torchrun's variables (RANK, WORLD_SIZE) nothing is started, and everything in this module treats the process
    as the only one. Calling it twice is harmless.

    Args:
        backend: "gloo", "nccl", …; by default nccl where there is CUDA, else gloo.

    Returns:
        The GPU with the number LOCAL_RANK (made the current one), or the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and backend != "gloo"
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not is_initialized():
        dist.init_process_group(backend or ("nccl" if cuda else "gloo"))
    return device


def is_initialized() -> bool:
    """Return whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, 0 if it is the only one."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if is_initialized():
        dist.barrier()


def share_refusal(error: BitswitchError | None) -> None:
    """Raise in every process what the main one was refused for, if it was; all must call this together.

    Args:
        error: of the main process; what the others give is not looked at.

    Raises:
        BitswitchError: the error in the main process, a ConfigError with its text in the others.
    """
    found = [None if error is None else str(error)]
    if is_initialized():
        dist.broadcast_object_list(found, src=0)
    if found[0] is not None:
        raise error if error is not None and is_main() else ConfigError(found[0])


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_initialized():
        dist.destroy_process_group()


def main_process_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make a function do nothing and return None in every process but the main one."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_main() else None

    return wrapper


def shard(length: int) -> range:
    """Return the indices of this process's share of `length` items: each item in exactly one process, none repeated.

    Unlike `torch.utils.data.DistributedSampler`, which repeats items to make shares equal, this keeps metrics exact.
    """
    return range(rank(), length, world_size())


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes; the tensor itself if there is only one."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give the floating-point buffers of a model, such as running statistics, the values that process 0 has.

    DistributedDataParallel does so when a forward pass begins, so that after the last step of a training every process
    has statistics of its own. Every process must call this; without a group it does nothing.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.broadcast(buffer, src=0)


def wrap_ddp(model: nn.Module, **options: Any) -> DistributedDataParallel:
    """Wrap a prepared model so that its gradients are averaged over the processes.

    While one width trains, the parameters of the other widths (their BatchNorm, their activation scales) take no part.
    DistributedDataParallel must look for them, or it would wait for their gradients; it leaves them None, so that an
    optimizer does not move them by their momentum.

    Args:
        model: a prepared model on this process's device.
        options: further arguments of DistributedDataParallel.
    """
    options = {"find_unused_parameters": True, **options}
    device = next(model.parameters()).device
    if device.type == "cuda":
        options.setdefault("device_ids", [device.index])
    return DistributedDataParallel(model, **options)
