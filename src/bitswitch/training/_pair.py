"""The two optimizers of Algorithm A.2 as one thing that a trainer steps, saves and loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bitswitch.errors import ConfigError
from bitswitch.training import alrs
from bitswitch.training._scales import LayerStep, ScaleRule, Scales
from bitswitch.training.optimizers import (
    BaseRates,
    OptimizerFactory,
    Rate,
    ScaleOptimizer,
    can_skip,
    clip,
    flatten_state,
    restore_state,
    step_unless,
)


class OptimizerPair:
    """The optimizer of the weights and that of the quantization scales.

    Args:
        network: a prepared model without wrappers.
        factory: makes the optimizer of everything but the scales.
        lr: peak learning rate of the weights.
        weight_decay: given to `factory`.
        rule: how fast scales learn.
        max_norm: largest total norm of the weights' gradients, or None.

    Raises:
        PrepareError: a layer of the network holds stored integers.
        ConfigError: all parameters are kept fixed.
    """

    def __init__(
        self,
        network: nn.Module,
        factory: OptimizerFactory,
        lr: float,
        weight_decay: float,
        rule: ScaleRule,
        max_norm: float | None,
    ) -> None:
        self._all = list(network.parameters())
        if not any(parameter.requires_grad for parameter in self._all):
            raise ConfigError("no parameter of the model is trained: requires_grad is False for all")
        self.rule = rule
        self.max_norm = max_norm
        self.scales = Scales(network)
        self._for_scales = ScaleOptimizer(self.scales.names)
        named = network.named_parameters()
        self._names = {p: name for name, p in named if p.requires_grad and p not in self.scales.names}
        # With frozen weights, only the scales are trained.
        self._for_weights = factory(list(self._names), lr=lr, weight_decay=weight_decay) if self._names else None
        groups = [] if self._for_weights is None else self._for_weights.param_groups
        # Groups that the factory gave rates of their own keep their ratio to the base rate.
        self._factors = [group["lr"] / lr if lr else 1.0 for group in groups]
        self._held: dict[nn.Parameter, Tensor] = {}

    @property
    def name(self) -> str | None:
        """Class of the weights' optimizer."""
        return None if self._for_weights is None else type(self._for_weights).__name__

    def clip(self, *, read: bool) -> Tensor | None:
        """Limit the norm of the weights' gradients if asked to; return the one they had, if weights are trained."""
        return clip(self._names, self.max_norm, read=read) if self._names else None

    @property
    def can_skip(self) -> bool:
        """Whether a step can be refused on the device, without the host having read why."""
        return self._for_scales.can_skip and (self._for_weights is None or can_skip(self._for_weights))

    def update(self, base: BaseRates, used: list[LayerStep], damping: alrs.Number, skip: Tensor | None = None) -> None:
        """Step both optimizers for one width (A.2), unless `skip` is 1 on the device, and clear all gradients."""
        self._step_weights(base.weights, skip)
        self._for_scales.step(self.rule.rates(base.scales, used, damping, self.scales), skip)
        self.zero_grad()

    def hold(self, used: list[LayerStep]) -> None:
        """Put the scale gradients of one width by (A.1), apart from those of the next, which are reported as well."""
        for layer in used:
            gradient = layer.parameter.grad
            assert gradient is not None
            held = self._held.get(layer.parameter)
            self._held[layer.parameter] = gradient.clone() if held is None else held + gradient
            layer.parameter.grad = None

    def update_held(self, base: BaseRates) -> None:
        """Step both optimizers with the gradients of all widths (A.1), clipped already, and clear them."""
        for parameter, gradient in self._held.items():
            parameter.grad = gradient
        self._step_weights(base.weights, None)
        self._for_scales.step(Rate(parameter, base.scales) for parameter in self.scales.names)
        self.zero_grad()

    def _step_weights(self, lr: float, skip: Tensor | None) -> None:
        if self._for_weights is not None:
            for group, factor in zip(self._for_weights.param_groups, self._factors, strict=True):
                group["lr"] = lr * factor
            step_unless(self._for_weights, skip)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        # None and not zero: Adam would move a parameter with a zero gradient by its momentum.
        for parameter in self._all:
            parameter.grad = None
        self._held.clear()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state as tensors and as JSON values, by names that begin with "weights/" or "scales/"."""
        parts = {"scales/": self._for_scales.state()}
        if self._for_weights is not None:
            parts["weights/"] = flatten_state(self._for_weights, self._names)
        tensors = {prefix + key: value for prefix, part in parts.items() for key, value in part[0].items()}
        values = {prefix + key: value for prefix, part in parts.items() for key, value in part[1].items()}
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `state` returned, or raise and change nothing.

        Raises:
            CheckpointError: it belongs to other parameters.
            ConfigError: it holds weights' moments, and the weights are frozen.
        """

        def select(prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
            of_tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            return of_tensors, {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}

        for_scales = ScaleOptimizer(self.scales.names)
        for_scales.load_state(*select("scales/"))
        of_weights = select("weights/")
        if self._for_weights is not None:
            restore_state(self._for_weights, self._names, *of_weights)
        elif any(of_weights):
            raise ConfigError("the state holds moments of weights, but no weight of this model is trained")
        self._for_scales = for_scales
