"""The two phases of a job: training of the float network, and joint training of all widths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitswitch.data import Loader
from bitswitch.errors import DivergenceError
from bitswitch.layers.table import unwrap
from bitswitch.recipes.config import JointConfig, Recipe, StartConfig
from bitswitch.training import CrossEntropy, Distillation, JointTrainer, distributed, evaluate, wrap_ddp
from bitswitch.training.evaluate import accuracy
from bitswitch.training.optimizers import adam, flatten_state, restore_state, sgd
from bitswitch.training.run_metrics import FLOAT_BITS
from bitswitch.training.samplers import Sampler
from bitswitch.training.schedule import cosine


@dataclass(frozen=True)
class Evaluated:
    """Images to evaluate on, and which they are: one of `run_metrics.EVALUATED`."""

    images: Loader
    split: str


class _Base:
    """What both phases have in common: their batches."""

    def __init__(self, name: str, epochs: int, training: Loader, evaluated: Evaluated, device: torch.device) -> None:
        self.name = name
        self.epochs = epochs
        self.device = device
        self.steps_per_epoch = training.steps_per_epoch
        self.total_steps = max(1, epochs * self.steps_per_epoch)
        self._training = training
        self.split = evaluated.split
        self._evaluated = evaluated.images

    def batches(self, epoch: int, start_step: int) -> Iterator[Any]:
        """Return the batches of an epoch from a step on."""
        return self._training.epoch(epoch, start_step)


class FloatPhase(_Base):
    """Ordinary training of the float network with a cosine schedule.

    Args:
        network: on its device.
        config: optimizer, learning rate, epochs.
        autocast: type of the forward pass, or None.
        training: batches to train on.
        evaluated: what to evaluate on after epochs.
        device: of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        config: StartConfig,
        autocast: torch.dtype | None,
        training: Loader,
        evaluated: Evaluated,
        device: torch.device,
    ) -> None:
        super().__init__("float", config.epochs, training, evaluated, device)
        self.model: nn.Module = network
        if distributed.world_size() > 1 and config.epochs:
            ids = None if device.index is None else [device.index]
            self.model = DistributedDataParallel(network, device_ids=ids)
        self.config = config
        self.autocast = autocast
        self.loss_fn = CrossEntropy(config.label_smoothing)
        self.num_steps = 0
        self._names = {parameter: name for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._optimizer = _optimizer(config, list(self._names))

    def step(self, batch: Any) -> Mapping[int, Mapping[str, float]]:
        """Train on a batch.

        Raises:
            DivergenceError: the loss is NaN or infinite; nothing was updated.
        """
        lr = self.config.lr * cosine(self.num_steps, self.total_steps)
        self.model.train()
        self._optimizer.zero_grad()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss, _ = self.loss_fn(self.model, batch)
        loss.backward()
        value = float(distributed.sum_over_processes(loss.detach())) / distributed.world_size()
        if not math.isfinite(value):
            raise DivergenceError(f"the loss of the float network became {value} at step {self.num_steps}")
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.num_steps += 1
        return {FLOAT_BITS: {"loss": value, "lr": lr}}

    def evaluate(self) -> Mapping[int, float]:
        """Return the accuracy of the float network."""
        return {FLOAT_BITS: float_accuracy(unwrap(self.model), self._evaluated, self.device)}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the optimizer's state."""
        tensors, values = flatten_state(self._optimizer, self._names)
        return tensors, {"step": self.num_steps, "values": values}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Put back what `state` returned."""
        restore_state(self._optimizer, self._names, tensors, meta["values"])
        self.num_steps = meta["step"]


class JointPhase(_Base):
    """Joint training of all widths.

    Args:
        network: prepared and calibrated, on its device.
        teacher: the float network, used if the recipe distills from it.
        recipe: all settings.
        training: batches to train on.
        evaluated: what to evaluate on after epochs.
        device: of the network.
        sampler: draws widths for the layers; None trains every width as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        recipe: Recipe,
        training: Loader,
        evaluated: Evaluated,
        device: torch.device,
        sampler: Sampler | None = None,
    ) -> None:
        config = recipe.joint
        super().__init__("joint", config.epochs, training, evaluated, device)
        self.model: nn.Module = wrap_ddp(network) if distributed.world_size() > 1 else network
        self.trainer = JointTrainer(
            self.model,
            CrossEntropy(config.label_smoothing),
            lr=config.lr,
            scale_lr=config.scale_lr,
            optimizer=sgd if config.optimizer == "sgd" else adam,
            total_steps=self.total_steps,
            algorithm=config.algorithm,
            alrs=None if config.alrs == "off" else config.alrs,
            alrs_scope=config.alrs_scope,
            moments=config.moments,
            weight_decay=config.weight_decay,
            distill=_distillation(config, teacher),
            clip_grad_norm=config.clip_grad_norm,
            autocast=autocast_type(recipe),
            schedule=config.schedule,
            turns=config.turns,
            sampler=sampler,
            compile=recipe.run.compile,
        )

    def step(self, batch: Any) -> Mapping[int, Mapping[str, float]]:
        """Train every width on a batch."""
        result = self.trainer.step(batch)
        return {
            bits: {
                "loss": width.loss,
                "lr": result.lr,
                "scale_lr": width.scale_lr,
                "scale_gradient": width.scale_gradient,
                "scaled_gradient": width.scaled_gradient,
            }
            for bits, width in result.widths.items()
        }

    def evaluate(self) -> Mapping[int, float]:
        """Return the accuracy at every width."""
        return {bits: value for bits, value in evaluate(self.model, self._evaluated).items() if isinstance(bits, int)}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the trainer's state."""
        return self.trainer.state_tensors(), self.trainer.state_meta()

    def load_state(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Put back what `state` returned."""
        self.trainer.load_state(tensors, meta)


def autocast_type(recipe: Recipe) -> torch.dtype | None:
    """Return the type of the forward passes in training, None for float32."""
    return torch.bfloat16 if recipe.run.autocast == "bfloat16" else None


@torch.no_grad()
def float_accuracy(network: nn.Module, held_out: Loader, device: torch.device) -> float:
    """Return the share of right answers of a float network, over all processes."""
    distributed.share_buffers(network)
    network.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in held_out:
        right, count = accuracy(network, batch)
        totals += torch.tensor([float(right), float(count)], dtype=torch.float64)
    right, count = distributed.sum_over_processes(totals.to(device)).tolist()
    return right / count


def _optimizer(config: StartConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return sgd(parameters, config.lr, config.weight_decay)
    return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)


def _distillation(config: JointConfig, teacher: nn.Module) -> Distillation | None:
    if config.distill == "none":
        return None
    return Distillation(
        teacher if config.distill == "float" else "self",
        weight=config.distill_weight,
        temperature=config.temperature,
        task_weight=config.task_weight,
    )
