"""All that a phase of training needs to continue exactly: model, trainer, random numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitswitch.errors import CheckpointError
from bitswitch.layers.table import unwrap
from bitswitch.training import distributed


def random_state(device: torch.device) -> Tensor:
    """Return the states of this device's and the CPU's generator of every process, uint8 (processes, bytes).

    All processes must call it together.
    """
    own = torch.get_rng_state()
    if device.type == "cuda":
        own = torch.cat([own, torch.cuda.get_rng_state(device)])
    # A sum of one-hot rows instead of a gather: it works on every backend.
    rows = torch.zeros(distributed.world_size(), len(own), dtype=torch.int32)
    rows[distributed.rank()] = own.int()
    return distributed.sum_over_processes(rows.to(device)).to("cpu", torch.uint8)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what `random_state` returned.

    Raises:
        CheckpointError: it is of another number of processes or kind of device.
    """
    cpu, gpu = len(torch.get_rng_state()), 0
    if device.type == "cuda":
        gpu = len(torch.cuda.get_rng_state(device))
    if state.dtype != torch.uint8 or tuple(state.shape) != (distributed.world_size(), cpu + gpu):
        raise CheckpointError(
            f"the random state has the shape {tuple(state.shape)}; {distributed.world_size()} processes on "
            f"{device.type} need {(distributed.world_size(), cpu + gpu)}"
        )
    own = state[distributed.rank()]
    torch.set_rng_state(own[:cpu].clone())
    if gpu:
        torch.cuda.set_rng_state(own[cpu:].clone(), device)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the network inside wrappers, by reference."""
    return dict(unwrap(model).state_dict())


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `model_state` returned.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    network = unwrap(model)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the training state is of another network: {str(error)[:300]}") from None


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under "prefix/name"."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `with_prefix`, leaving out what is not under the prefix."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def broadcast_text(text: str, device: torch.device) -> str:
    """Return the text that the first process gave, in every process; all must call it together."""
    if distributed.world_size() == 1:
        return text
    data = text.encode() if distributed.is_main() else b""
    size = int(distributed.sum_over_processes(torch.tensor(len(data), device=device)))
    received = torch.zeros(size, dtype=torch.int32)
    received[: len(data)] = torch.tensor(list(data), dtype=torch.int32)
    return bytes(distributed.sum_over_processes(received.to(device)).tolist()).decode()
