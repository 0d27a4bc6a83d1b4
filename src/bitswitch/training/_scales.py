"""The quantization scales of a model, as training sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bitswitch.errors import ConfigError, PrepareError
from bitswitch.layers import SwitchableLayer, iter_layers
from bitswitch.training import alrs
from bitswitch.training.optimizers import Rate, total_norm

# So many passes, from the first on, and no weight scale with a gradient: that is no chance. Where all quantized layers
# are skipped in half of the passes, it happens once in a million trainings.
NUM_PASSES_TO_REACH = 20


@dataclass(frozen=True)
class LayerStep:
    """A layer whose weight scale has a gradient.

    Attributes:
        name: the layer's name.
        parameter: the learned parameter of its weight scale.
        gradient: ∇s, the gradient of the raw scale.
        bits: the active width.
        eta: η of that width, Eq. (7).
        activation: the parameters of its input quantizer, and of those of layers that share the scale, of all widths.
    """

    name: str
    parameter: nn.Parameter
    gradient: Tensor
    bits: int
    eta: float
    activation: tuple[nn.Parameter, ...]


class Scales:
    """The scale parameters of a prepared model: of weights and of activations.

    Args:
        network: a prepared model without wrappers.

    Raises:
        PrepareError: a layer holds stored integers and cannot be trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: list[tuple[str, SwitchableLayer]] = list(iter_layers(network))
        for name, layer in self.layers:
            if layer.is_frozen:
                raise PrepareError(
                    f"layer {name!r} holds stored integers; call bitswitch.unfreeze(model) before training"
                )
        self.activation: dict[str, tuple[nn.Parameter, ...]] = {
            name: () if layer.input_quantizer is None else tuple(layer.input_quantizer.parameters())
            for name, layer in self.layers
        }
        own = [parameter for _, layer in self.layers for parameter in layer.weight_quantizer.parameters()]
        own += [parameter for parameters in self.activation.values() for parameter in parameters]
        members = set(own)
        names = network.named_parameters()
        self.names: dict[nn.Parameter, str] = {p: name for name, p in names if p in members and p.requires_grad}
        self._all = list(network.parameters())
        self._reached = False
        self._num_missed = 0

    @property
    def any_learns(self) -> bool:
        """Whether the weight scale of any layer, of its active width, is trained."""
        return any(layer.weight_quantizer.scale_for(layer.bits).parameter.requires_grad for _, layer in self.layers)

    def in_use(self) -> list[LayerStep]:
        """Return the layers whose weight scale has received a gradient, at their active widths.

        Layers that share a scale are one entry, with the lowest of their widths: its gradient dominates.
        """
        found: dict[nn.Parameter, LayerStep] = {}
        for name, layer in self.layers:
            scale = layer.weight_quantizer.scale_for(layer.bits)
            known = found.get(scale.parameter)
            gradient = scale.raw_grad() if known is None else known.gradient
            if gradient is None:
                continue
            activation = self.activation[name] + (() if known is None else known.activation)
            if known is not None and known.bits <= layer.bits:
                found[scale.parameter] = replace(known, activation=activation)
                continue
            eta = alrs.eta(layer.stored_bits, layer.bits)
            found[scale.parameter] = LayerStep(name, scale.parameter, gradient, layer.bits, eta, activation)
        return list(found.values())

    def input_norm(self, *, read: bool) -> Tensor | None:
        """Return the norm of the gradients of what input quantizers learn, float32 scalar, if they learn.

        `read` is as in `total_norm`.
        """
        found = [p.grad for parameters in self.activation.values() for p in parameters if p.grad is not None]
        return total_norm(found, read=read) if found else None

    def check_reached(self, used: list[LayerStep]) -> None:
        """Take note of a pass, and refuse a loss that does not depend on the quantized layers.

        LayerDrop and stochastic depth skip all of them in a pass now and then, which is no mistake. A loss that has
        reached one of them is taken to depend on them from then on.

        Args:
            used: what `in_use` returned after the pass.

        Raises:
            ConfigError: no pass has given a weight scale a gradient, and there have been `NUM_PASSES_TO_REACH`, or this
                one gave no parameter of the model a gradient.
        """
        if self._reached or used or not self.any_learns:
            self._reached = self._reached or bool(used)
            return
        self._num_missed += 1
        if self._num_missed >= NUM_PASSES_TO_REACH or all(parameter.grad is None for parameter in self._all):
            raise ConfigError(
                f"no weight scale received a gradient (passes so far: {self._num_missed}); did the loss depend on any "
                "quantized layer?"
            )


@dataclass(frozen=True)
class ScaleRule:
    """How fast scales learn, see `JointTrainer`."""

    form: alrs.Form | None
    activations_too: bool
    separate: bool

    def rate(self, lr: float, eta: float, damping: alrs.Number) -> alrs.Number | float:
        """Return λ_b of Eq. (6), or the base rate if ALRS is off."""
        return lr if self.form is None else alrs.scaled(lr, eta, damping, self.form)

    def rates(self, lr: float, used: list[LayerStep], damping: alrs.Number, scales: Scales) -> list[Rate]:
        """Return the rate of every scale parameter that may move in this step."""
        chosen: dict[nn.Parameter, Rate] = {}
        # One object for each η: the optimizer groups parameters by rate, and a tensor is equal to itself only.
        by_eta = {eta: self.rate(lr, eta, damping) for eta in {layer.eta for layer in used}}
        for layer in used:
            own = by_eta[layer.eta]
            chosen[layer.parameter] = Rate(layer.parameter, own, str(layer.bits) if self.separate else "shared")
            for parameter in layer.activation:
                chosen[parameter] = Rate(parameter, own if self.activations_too else lr)
        # Where a weight scale is kept fixed, the activation scales of its layer learn all the same.
        for parameters in scales.activation.values():
            for parameter in parameters:
                chosen.setdefault(parameter, Rate(parameter, lr))
        return list(chosen.values())


def maxima_of(used: list[LayerStep], scales: Scales) -> Tensor:
    """Return max|∇s^i| of every layer, shape (L,); a single 0 where no weight scale has a gradient.

    So it is where all weight scales are kept fixed, or the pass has skipped all quantized layers: no scale takes a step
    that could be damped.
    """
    if not used:
        _, layer = scales.layers[0]
        return torch.zeros(1, device=layer.weight_quantizer.scale_for(layer.bits).parameter.device)
    return alrs.largest([layer.gradient for layer in used])


def first_bad(used: list[LayerStep], maxima: Tensor) -> str | None:
    """Return the name of the first layer whose scale gradient is not finite."""
    bad = torch.nonzero(~maxima.isfinite()).flatten().tolist()
    return used[bad[0]].name if bad else None
