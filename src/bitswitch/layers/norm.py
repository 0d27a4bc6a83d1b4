"""BatchNorm with statistics and an affine map of every width's own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class PerWidthNorm(nn.Module):
    """Mixin that stands before a BatchNorm class: one normalisation a width, of which the active one runs.

    Activations of different widths have different statistics. While one width trains, the parameters of the others have
    no gradient at all, so no optimizer moves them. `weight`, `bias`, `running_mean` and `running_var` read those of the
    active width.

    Attributes:
        norms: one normalisation of the original class a width, under the width as a string.
        bits: the active width.
    """

    norms: nn.ModuleDict
    bits: int

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Normalise with the statistics and the affine map of the active width."""
        return self.norms[str(self.bits)](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in _PER_WIDTH_TENSORS and "norms" in modules:
            return getattr(modules["norms"][str(self.bits)], name)
        return super().__getattr__(name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # BatchNorm's own version adds a missing num_batches_tracked, which here only the norms inside have.
        nn.Module._load_from_state_dict(self, *args, **kwargs)

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.bits} of {tuple(int(b) for b in self.norms)}"


_PER_WIDTH_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})


class PerWidthBatchNorm1d(PerWidthNorm, nn.BatchNorm1d):
    """Per-width `torch.nn.BatchNorm1d`."""


class PerWidthBatchNorm2d(PerWidthNorm, nn.BatchNorm2d):
    """Per-width `torch.nn.BatchNorm2d`."""


class PerWidthBatchNorm3d(PerWidthNorm, nn.BatchNorm3d):
    """Per-width `torch.nn.BatchNorm3d`."""


class PerWidthSyncBatchNorm(PerWidthNorm, nn.SyncBatchNorm):
    """Per-width `torch.nn.SyncBatchNorm`."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: PerWidthBatchNorm1d,
    nn.BatchNorm2d: PerWidthBatchNorm2d,
    nn.BatchNorm3d: PerWidthBatchNorm3d,
    nn.SyncBatchNorm: PerWidthSyncBatchNorm,
}


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a float BatchNorm of any kind, subclasses included, that keeps per-width copies well."""
    return isinstance(module, _BatchNorm) and not isinstance(module, PerWidthNorm)


def make_per_width(norm: nn.Module, bits: tuple[int, ...]) -> None:
    """Change a BatchNorm in place into one that has a copy of it for every width."""
    kind = type(norm)
    if kind not in _CLASSES:
        # A BatchNorm of another library, such as timm's with an activation inside.
        _CLASSES[kind] = type(f"PerWidth{kind.__name__}", (PerWidthNorm, kind), {"__module__": __name__})
    copies = {str(b): copy.deepcopy(norm) for b in bits}
    norm._parameters.clear()
    norm._buffers.clear()
    norm._modules.clear()
    norm.__class__ = _CLASSES[kind]
    norm.norms = nn.ModuleDict(copies)
    norm.bits = bits[0]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
