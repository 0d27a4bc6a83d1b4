"""A plan in plain PyTorch, one node after the other: what the compiled execution equals bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitswitch.runtime import conv_reference
from bitswitch.runtime.conv_reference import Epilogue, Window
from bitswitch.runtime.graph.geometry import ConvGeometry, Geometries, pool_window
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, Node, PoolNode, TorchNode
from bitswitch.runtime.graph.operands import Bound, FloatOperands, LayerOperands
from bitswitch.runtime.graph.plan import Plan
from bitswitch.runtime.graph.values import (
    as_float,
    as_nhwc,
    fill,
    is_channels_last,
    operation,
    planar,
    summand,
    view_nchw,
)

_UNBOUNDED = Epilogue().clamp

Watch = Callable[[str, Tensor], None]
"""Called with the name of each integer layer and the codes of its input, uint8 of the shape of the input."""


@torch.no_grad()
def execute_reference(
    plan: Plan,
    geometries: Geometries,
    bound: Bound,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    watch: Watch | None = None,
) -> Any:
    """Run a plan on integer references.

    Args:
        plan: the plan of a network.
        geometries: the shapes of its layers.
        bound: operands of one precision.
        model: the network, for what is left to PyTorch.
        inputs: input tensors by the names of their values.
        watch: sees the codes that layers compute with.

    Returns:
        What the network returns.
    """
    run = _Run(plan, geometries, bound, model, dict(inputs), watch)
    for node in plan.nodes:
        run.execute(node)
    keeps_format = any(is_channels_last(value) for value in inputs.values())
    output = fill(plan.output, lambda node: run.values[node.name])
    return output if keeps_format else pytree.tree_map(planar, output)


class _Run:
    def __init__(
        self,
        plan: Plan,
        geometries: Geometries,
        bound: Bound,
        model: nn.Module,
        values: dict[str, Any],
        watch: Watch | None,
    ) -> None:
        self.plan, self.geometries, self.bound, self.model = plan, geometries, bound, model
        self.values, self.watch = values, watch
        # Codes of a value, by the node that reads them.
        self.codes: dict[tuple[str, str], Tensor] = {}
        self.readers = {node.name: node for node in plan.nodes if isinstance(node, ConvNode)}

    def execute(self, node: Node) -> None:
        if isinstance(node, TorchNode):
            self.values[node.name] = operation(node.operation, self.bound, self.model)(self.values)
        elif isinstance(node, ConvNode):
            self._conv(node)
        elif isinstance(node, LinearNode):
            self._linear(node)
        elif isinstance(node, FloatConvNode):
            operands = self.bound.operands[node.layer, node.norm]
            self.values[node.name] = float_conv(node, self._geometry(node), operands, self.values[node.source])
        elif isinstance(node, PoolNode):
            x = as_nhwc(self.values[node.source])
            window = pool_window(node.pool, tuple(x.shape))
            rows = x.permute(0, 2, 3, 1)
            self._keep(node, *conv_reference.max_pool2d(rows, window, self._epilogue(node, _UNBOUNDED)))
        else:
            x = as_nhwc(self.values[node.source])
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            y, copies = conv_reference.mean_pool(rows, self._epilogue(node, _UNBOUNDED))
            self._keep(node, None if y is None else y[:, None, None], [copy[:, None, None] for copy in copies])
            if not node.keep:
                self.values[node.name] = y

    def _geometry(self, node: ConvNode | LinearNode | FloatConvNode) -> Any:
        return self.geometries[node.layer]

    def _operands(self, node: ConvNode | LinearNode) -> LayerOperands:
        operands = self.bound.operands[node.layer, node.norm]
        assert isinstance(operands, LayerOperands)
        return operands

    def _epilogue(self, node: Node, clamp: tuple[float, float]) -> Epilogue:
        readers = [self.readers[name] for name in self.plan.code_readers.get(node.name, ())]
        quantizers = tuple(self._operands(reader).quantizer for reader in readers)
        return Epilogue(clamp, quantizers, node.name in self.plan.float_values)

    def _keep(self, node: Node, y: Tensor | None, copies: list[Tensor]) -> None:
        if y is not None:
            self.values[node.name] = view_nchw(y.contiguous())
        for reader, copy in zip(self.plan.code_readers.get(node.name, ()), copies, strict=True):
            self.codes[node.name, reader] = copy

    def _input_codes(self, node: ConvNode, operands: LayerOperands) -> Tensor:
        known = self.codes.get((node.source, node.name))
        if known is not None:
            return known
        x = as_nhwc(self.values[node.source])
        self._geometry(node).window(tuple(x.shape))
        rows = x.permute(0, 2, 3, 1)
        codes = conv_reference.quantize(rows.flatten(1, 2), operands.quantizer, True)
        return codes.reshape(*rows.shape[:3], codes.shape[-1])

    def _conv(self, node: ConvNode) -> None:
        operands = self._operands(node)
        x = self._input_codes(node, operands)
        geometry: ConvGeometry = self._geometry(node)
        if self.watch is not None:
            self.watch(node.layer, x[..., : geometry.in_channels].permute(0, 3, 1, 2))
        window: Window = geometry.window((x.shape[0], geometry.in_channels, x.shape[1], x.shape[2]))
        residual = None
        if node.residual is not None:
            shape = (x.shape[0], geometry.out_channels, *window.out_size)
            residual = summand(node, self.values[node.residual], shape).permute(0, 2, 3, 1)
        result = conv_reference.conv2d(
            x,
            operands.weights.factors(operands.bits),
            window,
            self._epilogue(node, node.clamp or _UNBOUNDED),
            multiplier=operands.multiplier[:, 0],
            bias=operands.bias,
            zero_point=operands.quantizer.zero_point,
            groups=geometry.groups,
            residual=residual,
        )
        self._keep(node, *result)

    def _linear(self, node: LinearNode) -> None:
        operands, geometry = self._operands(node), self._geometry(node)
        x = as_float(self.values[node.source])
        rows = geometry.rows(tuple(x.shape))
        flat = x.reshape(rows, geometry.in_features)
        codes = conv_reference.quantize(flat[None], operands.quantizer, True)[0, :, : geometry.in_features]
        if self.watch is not None:
            self.watch(node.layer, codes.reshape(x.shape))
        y = _linear_sums(codes, operands)
        y = y if operands.bias is None else y + operands.bias
        y = y if node.clamp is None else y.clamp(*node.clamp)
        self.values[node.name] = y.reshape(*x.shape[:-1], geometry.out_features)


def _linear_sums(codes: Tensor, operands: LayerOperands) -> Tensor:
    """Return Σ_g float(Σ_k (x̃ − zp)·w̃)·m[n, g], groups added in order."""
    weight = operands.weights.factors(operands.bits).flatten(1).double()
    centred = codes.double() - operands.quantizer.zero_point
    size = operands.group_size or weight.shape[1]
    y = torch.zeros(codes.shape[0], weight.shape[0], dtype=torch.float32, device="cpu")
    for group in range(operands.multiplier.shape[1]):
        part = slice(group * size, (group + 1) * size)
        y = y + (centred[:, part] @ weight[:, part].T).float() * operands.multiplier[:, group]
    return y


def float_conv(node: FloatConvNode, geometry: ConvGeometry, operands: Any, value: Any) -> Tensor:
    """Run a float convolution with its BatchNorm folded in; both executions call this."""
    assert isinstance(operands, FloatOperands)
    x = as_nhwc(value)
    top, bottom, left, right = geometry.padding
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    y = F.conv2d(x, operands.weight, operands.bias, geometry.stride, padding, geometry.dilation, geometry.groups)
    return y if node.clamp is None else y.clamp_(*node.clamp)
