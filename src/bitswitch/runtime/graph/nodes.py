"""The nodes of a plan: layers with what their kernels compute besides, and what is left to PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from bitswitch.runtime.graph.operations import MaxPool


@dataclass(frozen=True)
class ConvNode:
    """An integer convolution: codes in, then normalisation, addition and clamp, then a float tensor and codes.

    Attributes:
        name: of the value that it computes.
        layer: name of the convolution in the network.
        call: name of its call in the traced network.
        source: name of its input.
        norm: name of the BatchNorm folded into its affine map.
        residual: name of the float value that is added.
        addition: name of that addition in the traced network.
        clamp: bounds of the result.
    """

    name: str
    layer: str
    call: str
    source: str
    norm: str | None = None
    residual: str | None = None
    addition: str | None = None
    clamp: tuple[float, float] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return (self.source,) if self.residual is None else (self.source, self.residual)


@dataclass(frozen=True)
class LinearNode:
    """An integer linear layer: float rows in, which it quantizes, float rows out. Fields as in `ConvNode`."""

    name: str
    layer: str
    call: str
    source: str
    norm: str | None = None
    clamp: tuple[float, float] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return (self.source,)


@dataclass(frozen=True)
class FloatConvNode:
    """A float convolution, with the BatchNorm of each width folded into a copy of its weight.

    Fields as in `ConvNode`.
    """

    name: str
    layer: str
    call: str
    source: str
    norm: str
    clamp: tuple[float, float] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return (self.source,)


@dataclass(frozen=True)
class PoolNode:
    """Maximum pooling of a float tensor, to a float tensor and codes."""

    name: str
    source: str
    pool: MaxPool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return (self.source,)


@dataclass(frozen=True)
class MeanNode:
    """The mean of a float tensor over height and width, to a float tensor and codes.

    Attributes:
        name: of the value that it computes.
        source: name of its input.
        keep: whether the result has a height and width of one.
    """

    name: str
    source: str
    keep: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return (self.source,)


@dataclass(frozen=True)
class TorchNode:
    """Anything else: run by PyTorch on float tensors.

    Attributes:
        name: of the value that it computes.
        operation: the torch.fx node.
        inputs: names of the values that it reads.
    """

    name: str
    operation: fx.Node = field(compare=False)
    inputs: tuple[str, ...] = ()


Node = ConvNode | LinearNode | FloatConvNode | PoolNode | MeanNode | TorchNode
