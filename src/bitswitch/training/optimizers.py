"""The two optimizers of Algorithm A.2, arXiv:2502.01199: one of the weights, one of the quantization scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from bitswitch.errors import CheckpointError, ConfigError

Moments = Literal["shared", "separate"]
MOMENTS: tuple[Moments, ...] = get_args(Moments)
OptimizerFactory = Callable[..., Optimizer]

_FUSED_DEVICES = ("cpu", "cuda")


def adam(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Adam:
    """Return Adam, as one fused kernel for all parameters where PyTorch has it."""
    params = list(params)
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in params)
    return Adam(params, lr=lr, weight_decay=weight_decay, fused=True if fused else None)


def sgd(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> SGD:
    """Return SGD with Nesterov momentum 0.9."""
    return SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)


class BaseRates(NamedTuple):
    """The base learning rates of one step: of the weights, and λ of Eq. (6) of the scales."""

    weights: float
    scales: float


class Rate(NamedTuple):
    """The learning rate of one scale parameter in one step, and whose moments it uses: a width's, or shared ones."""

    parameter: nn.Parameter
    lr: float | Tensor
    moments: str = "shared"


class ScaleOptimizer:
    """Adam without weight decay for quantization scales, whose learning rates differ from step to step and by layer.

    With shared moments, as Algorithm A.2 is printed, one running mean and variance of a scale's gradient serves every
    width, so that the step of one width carries the memory of the others. With separate moments every width has an Adam
    state of its own for the shared scales.

    Args:
        names: every scale parameter with its name in the model.
    """

    def __init__(self, names: Mapping[nn.Parameter, str]) -> None:
        self._names = dict(names)
        self._optimizers: dict[str, Adam] = {}

    @property
    def can_skip(self) -> bool:
        """Whether `step` takes `skip`."""
        return not self._names or can_skip(self._optimizer("shared"))

    def _optimizer(self, moments: str) -> Adam:
        if moments not in self._optimizers:
            self._optimizers[moments] = adam(self._names, lr=0.0)
        return self._optimizers[moments]

    def step(self, rates: Iterable[Rate], skip: Tensor | None = None) -> None:
        """Move the parameters given, each at its rate; those without a gradient stay exactly where they are.

        Args:
            rates: of the parameters.
            skip: see `step_unless`.
        """
        groups: dict[str, dict[float | Tensor, list[nn.Parameter]]] = {}
        for parameter, lr, moments in rates:
            if parameter.grad is not None:
                groups.setdefault(moments, {}).setdefault(lr, []).append(parameter)
        for moments, by_rate in groups.items():
            step_unless(self._set_groups(self._optimizer(moments), by_rate), skip)

    def _set_groups(self, optimizer: Adam, by_rate: Mapping[float | Tensor, list[nn.Parameter]]) -> Adam:
        # The state of Adam belongs to parameters, not to groups: who is in which group may change at every step.
        options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        optimizer.param_groups = [{**options, "params": params, "lr": lr} for lr, params in by_rate.items()]
        return optimizer

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the moments as tensors and JSON values, by names of the form "width/parameter/moment"."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for moments, optimizer in self._optimizers.items():
            found = flatten_state(optimizer, self._names, f"{moments}/")
            tensors.update(found[0])
            values.update(found[1])
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: it belongs to other parameters; the state is then that of before.
        """
        found = ScaleOptimizer(self._names)
        for moments in sorted({key.partition("/")[0] for key in (*tensors, *values)}):
            prefix = f"{moments}/"
            own = ({k: v for k, v in part.items() if k.startswith(prefix)} for part in (tensors, values))
            restore_state(found._optimizer(moments), self._names, *own, prefix=prefix)
        self._optimizers = found._optimizers


def can_skip(optimizer: Optimizer) -> bool:
    """Whether an optimizer can decide on the device not to step, as those of PyTorch with fused=True can."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def step_unless(optimizer: Optimizer, skip: Tensor | None) -> None:
    """Step an optimizer, or do nothing if the float32 scalar `skip` is 1, which the host does not read.

    Args:
        optimizer: one that `can_skip`, if `skip` is given.
        skip: 0 or 1, on the device of the parameters; None steps.
    """
    if skip is None:
        optimizer.step()
        return
    # What torch.amp.GradScaler hands to fused optimizers.
    optimizer.grad_scale, optimizer.found_inf = None, skip  # pyright: ignore[reportAttributeAccessIssue]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]


def flatten_state(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors and as JSON values, both by "prefix + parameter name/key".

    Raises:
        ConfigError: a state value is neither a tensor nor a plain value.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        assert isinstance(parameter, nn.Parameter)
        for key, value in state.items():
            name = f"{prefix}{names[parameter]}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                values[name] = value
            else:
                raise ConfigError(f"the optimizer state {name!r} is a {type(value).__name__}, which cannot be stored")
    return tensors, values


def restore_state(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Put back what `flatten_state` returned.

    Raises:
        CheckpointError: a parameter is unknown, or a tensor does not broadcast to its shape; nothing changes then.
    """
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {names[parameter]: (i, parameter) for i, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *values.items()):
        parameter_name, _, key = name.removeprefix(prefix).rpartition("/")
        if parameter_name not in index:
            raise CheckpointError(f"the optimizer state {name!r} belongs to a parameter that this model does not train")
        i, parameter = index[parameter_name]
        if isinstance(value, Tensor):
            if value.dim() and not _broadcasts(value.shape, parameter.shape):
                found, expected = tuple(value.shape), tuple(parameter.shape)
                raise CheckpointError(f"the optimizer state {name!r} has the shape {found}; expected {expected}")
            value = _laid_out(value, parameter)
        state.setdefault(i, {})[key] = value
    # PyTorch's own loader knows which values must be on which device and of which type.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Copy a state, in the memory layout of its parameter if it has its shape: fused kernels pair them in memory."""
    if value.shape != parameter.shape:
        return value.detach().clone()
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value.detach())


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a shape is that of a parameter, or has 1 in place of some sizes, as Adafactor's means of rows have."""
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def non_negative(name: str, value: float) -> float:
    """Return `value`.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0.0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a finite number and not negative; got {value}")
    return value


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None, *, read: bool) -> Tensor:
    """Return the total norm of gradients, float32 scalar; if it is above `max_norm`, scale them down to that.

    `read` is as in `total_norm`.
    """
    parameters = list(parameters)
    norm = total_norm([p.grad for p in parameters if p.grad is not None], read=read).to(parameters[0].device)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def total_norm(gradients: Sequence[Tensor], *, read: bool) -> Tensor:
    """Return the norm of all gradients together, float32 scalar; it is infinite or NaN if one of them is.

    Args:
        gradients: of any types, sparse or not.
        read: the host may read numbers of the device, which it would wait for.
    """
    if not gradients:
        return torch.zeros((), dtype=torch.float32)
    values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    # Squares of large numbers are finite in float64, which takes a processor eight times as long and Apple's GPUs lack.
    has_float64 = values[0].device.type != "mps"
    norm = _norm(values, torch.float64 if has_float64 and not read else torch.float32)
    if has_float64 and read and not norm.isfinite():
        norm = _norm(values, torch.float64)
    return norm.float()


def _norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the norm of all tensors together, computed in a type or a wider one that they have."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, dtype)) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, dtype) for norm in norms]))
