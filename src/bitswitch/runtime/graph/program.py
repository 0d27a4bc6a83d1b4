"""A fitted plan at one precision, as stages: stretches of kernel calls that run as one, and PyTorch between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bitswitch.runtime.graph.geometry import ShapeError
from bitswitch.runtime.graph.values import as_float, fill, is_channels_last, planar

# A view of the arena: shape, strides and offset in elements.
View = tuple[tuple[int, ...], tuple[int, ...], int]
Load = tuple[int, str, tuple[int, ...], torch.memory_format]


class Run:
    """What one run has: its values by name, its arena, and where the memories begin that kernels use."""

    def __init__(self, arena: Tensor, inputs: Mapping[str, Any], num_memories: int) -> None:
        self.arena = arena
        self.values: dict[str, Any] = dict(inputs)
        self.starts = [arena.data_ptr(), *[0] * (num_memories - 1)]
        # Copies of values that kernels read.
        self.held: list[Tensor] = []

    def view(self, name: str, view: View) -> None:
        """Make a value in the arena a tensor."""
        if name not in self.values:
            self.values[name] = self.arena.as_strided(*view)


@dataclass(frozen=True, eq=False)
class KernelStage:
    """Kernel calls in one go.

    Attributes:
        native: the compiled program.
        views: values in the arena that are first needed as tensors here.
        loads: values that kernels read from elsewhere: number of the memory, name, and the shape and layout to read.
        held: tensors whose addresses the program knows.
    """

    native: Any
    views: dict[str, View] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)

    def run(self, run: Run) -> None:
        """Run the stage."""
        for name, view in self.views.items():
            run.view(name, view)
        for memory, name, shape, layout in self.loads:
            tensor = as_float(run.values[name])
            if tensor.shape != shape:
                raise ShapeError(f"a value has the shape {tuple(tensor.shape)} and not {shape}, which it had before")
            tensor = tensor.contiguous(memory_format=layout)
            run.held.append(tensor)
            run.starts[memory] = tensor.data_ptr()
        self.native.run(run.starts)


@dataclass(frozen=True, eq=False)
class TorchStage:
    """One operation of PyTorch.

    Attributes:
        name: of the value that it computes.
        function: from values by name.
        views: values in the arena that are first needed as tensors here.
    """

    name: str
    function: Callable[[Mapping[str, Any]], Any]
    views: dict[str, View]

    def run(self, run: Run) -> None:
        """Run the stage."""
        for name, view in self.views.items():
            run.view(name, view)
        run.values[self.name] = self.function(run.values)


@dataclass(frozen=True, eq=False)
class Program:
    """All stages, and what comes out.

    Attributes:
        stages: in order.
        num_memories: how many memories kernels use, the arena being the first.
        output: what the network returns, with values as torch.fx nodes.
        output_views: values of it that are in the arena.
        by_sample: whether the samples of a batch have nothing to do with each other, wherever they are.
    """

    stages: tuple[KernelStage | TorchStage, ...]
    num_memories: int
    output: Any
    output_views: Mapping[str, View]
    by_sample: bool

    def run(self, arena: Tensor, inputs: Mapping[str, Any]) -> Any:
        """Run the network; tensors that it returns, alone or in tuples, lists and dicts, are in memory of their own."""
        run = Run(arena, inputs, self.num_memories)
        for stage in self.stages:
            stage.run(run)
        for name, view in self.output_views.items():
            run.view(name, view)
        storage = arena.untyped_storage().data_ptr()

        keeps_format = any(isinstance(value, Tensor) and is_channels_last(value) for value in inputs.values())

        def own(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.untyped_storage().data_ptr() != storage:
                    return value if keeps_format else planar(value)
                return value.clone(memory_format=torch.preserve_format if keeps_format else torch.contiguous_format)
            return pytree.tree_map_only(Tensor, own, value) if isinstance(value, (tuple, list, dict)) else value

        return fill(self.output, lambda node: own(run.values[node.name]))
