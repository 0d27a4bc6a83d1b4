"""BatchNorm with statistics and an affine map of every width's own, or of every pair of widths."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitswitch.layers.derived import derived_class


def norm_key(bits: int, next_bits: int | None = None) -> str:
    """Return the name of the normalisation of a width, or of a width and that of the next layer.

    >>> norm_key(4), norm_key(4, 2)
    ('4', '4-2')
    """
    return str(bits) if next_bits is None else f"{bits}-{next_bits}"


class PerWidthNorm(nn.Module):
    """Mixin that stands before a BatchNorm class: several normalisations, of which the active one runs.

    Activations of different widths have different statistics. While one width trains, the parameters of the others have
    no gradient at all, so no optimizer moves them. `weight`, `bias`, `running_mean` and `running_var` read those of the
    active one. A transitional BatchNorm (Bit-Mixer, arXiv:2103.17267) has one normalisation for every pair of its own
    width and the width of the next layer, n² for n widths.

    Attributes:
        norms: normalisations of the original class by `norm_key`.
        key: of the active one.
    """

    norms: nn.ModuleDict
    key: str

    @property
    def bits(self) -> int:
        """The active width."""
        return int(self.key.split("-")[0])

    @property
    def is_transitional(self) -> bool:
        """Whether there is one normalisation for every pair of widths."""
        return any("-" in key for key in self.norms)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Normalise with the statistics and the affine map that are active."""
        return self.norms[self.key](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in _PER_WIDTH_TENSORS and "norms" in modules:
            return getattr(modules["norms"][self.key], name)
        return super().__getattr__(name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # BatchNorm's own version adds a missing num_batches_tracked, which here only the norms inside have.
        nn.Module._load_from_state_dict(self, *args, **kwargs)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.key} of {', '.join(self.norms)}"


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


def _without_hooks(norm: nn.Module) -> nn.Module:
    """Take the hooks of every kind from a copy: the module around it keeps them, and they are to run once."""
    norm.__dict__.update({name: value for name, value in vars(nn.Module()).items() if "hook" in name})
    return norm


def make_per_width(norm: nn.Module, bits: tuple[int, ...], next_bits: tuple[int, ...] | None = None) -> None:
    """Change a BatchNorm in place into one that has a copy of it for every width.

    Args:
        norm: the BatchNorm.
        bits: its widths.
        next_bits: widths of the next layer, for a copy for every pair.
    """
    kind = type(norm)
    # None of these is a BatchNorm of another library, such as timm's with an activation inside.
    per_width = _CLASSES.get(kind) or derived_class(PerWidthNorm, kind, f"PerWidth{kind.__name__}")
    keys = [norm_key(own, following) for own in bits for following in next_bits or (None,)]
    copies = {key: _without_hooks(copy.deepcopy(norm)) for key in keys}
    norm._parameters.clear()
    norm._buffers.clear()
    norm._modules.clear()
    norm.__class__ = per_width
    norm.norms = nn.ModuleDict(copies)
    norm.key = keys[0]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
