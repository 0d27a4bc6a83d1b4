"""Bind a fitted plan to one precision: every node becomes kernel calls on places in memory, or a call of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch import kernels
from bitswitch.runtime import conv_kernels
from bitswitch.runtime.conv_reference import Epilogue, Quantizer, channel_stride
from bitswitch.runtime.graph.arena import new_block
from bitswitch.runtime.graph.geometry import ConvGeometry, Geometries, LinearGeometry, pool_window
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, MeanNode, Node, PoolNode, TorchNode
from bitswitch.runtime.graph.operands import Bound, LayerOperands
from bitswitch.runtime.graph.program import KernelStage, Program, TorchStage, View
from bitswitch.runtime.graph.purity import may_view
from bitswitch.runtime.graph.reference import float_conv
from bitswitch.runtime.graph.shapes import Fit, Shape, code_bytes, elements, in_arena
from bitswitch.runtime.graph.values import is_channels_last, operation, view_nchw
from bitswitch.runtime.tiles import FEW_ROWS

Place = tuple[int, int]
_NOWHERE: Place = (-1, 0)
_ARENA = 0
_PLANAR, _CHANNELS_LAST = torch.contiguous_format, torch.channels_last
_UNBOUNDED = Epilogue().clamp


def compile_plan(fit: Fit, geometries: Geometries, bound: Bound, model: nn.Module) -> Program:
    """Return the program of a fitted plan at one precision. It holds the operands that it needs, but not `bound`."""
    return _Compiler(fit, geometries, bound, model).program()


class _Compiler:
    def __init__(self, fit: Fit, geometries: Geometries, bound: Bound, model: nn.Module) -> None:
        self.fit, self.plan, self.shapes = fit, fit.plan, fit.shapes
        self.geometries, self.bound, self.model = geometries, bound, model
        self.index = {node.name: i for i, node in enumerate(self.plan.nodes)}
        self.readers = {node.name: node for node in self.plan.nodes if isinstance(node, ConvNode)}
        # Values in the arena as views of a block like it, whose memory nothing touches.
        self.arena = new_block(fit.size)
        self.fixed = {
            node.name: self._float_view(node)
            for node in self.plan.nodes
            if in_arena(node) and (node.name, None) in fit.places
        }
        self.stages: list[KernelStage | TorchStage] = []
        self.memories: dict[tuple[str, torch.memory_format], int] = {}
        # The samples that the nodes of the head are compiled for just now, and ops for that many.
        self.part: range | None = None
        self.ops: dict[tuple[str, int], Any] = {}

    def program(self) -> Program:
        """Compile all nodes."""
        head, nodes = self.fit.head, self.plan.nodes
        if head is not None:
            for first in range(0, head.batch, head.samples):
                self.part = range(first, min(first + head.samples, head.batch))
                self._nodes(nodes[: head.nodes])
            self.part, nodes = None, nodes[head.nodes :]
        self._nodes(nodes)
        stages = tuple(self.stages)
        outputs = self._views(self.plan.output_values)
        return Program(stages, 1 + len(self.memories), self.plan.output, outputs, self._is_by_sample())

    def _nodes(self, nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            if isinstance(node, TorchNode):
                self._torch(node)
            elif isinstance(node, ConvNode):
                self._conv(node)
            elif isinstance(node, LinearNode):
                self._linear(node)
            elif isinstance(node, FloatConvNode):
                self._float_conv(node)
            else:
                self._pool(node)

    def _is_by_sample(self) -> bool:
        """Whether kernels compute everything, and every value is the batch's samples one after the other."""
        sizes = {self.shapes[name][:1] for _, name in self.plan.arguments}
        if len(self.stages) != 1 or not isinstance(self.stages[0], KernelStage) or len(sizes) != 1:
            return False
        (size,) = sizes
        if not size or any(self.shapes[node.name][:1] != size for node in self.plan.nodes):
            return False
        for node in self.plan.nodes:
            if isinstance(node, TorchNode):
                view = self.fixed[node.name]
                whole = view.numel() == self.fixed[node.inputs[0]].numel()
                if not whole or not (view.is_contiguous() or is_channels_last(view)):
                    return False
        return all(name in self.fixed for name in self.plan.output_values)

    # Values.

    def _float_view(self, node: Node) -> Tensor:
        shape, offset = self.shapes[node.name], self.fit.places[node.name, None] // 4
        flat = self.arena[offset:]
        if isinstance(node, LinearNode) or len(shape) != 4:
            return flat[: torch.Size(shape).numel()].view(shape)
        batch, channels, height, width = shape
        head = self.fit.head
        if head is not None and self.index[node.name] < head.nodes and (node.name, None) not in head.whole:
            batch = head.samples
        rows = flat[: batch * channels * height * width]
        return view_nchw(rows.view(batch, height, width, channels))

    def _views(self, names: tuple[str, ...]) -> dict[str, View]:
        found = {name: self.fixed[name] for name in names if name in self.fixed}
        return {name: (tuple(t.shape), t.stride(), int(t.storage_offset())) for name, t in found.items()}

    def _kernels(self) -> KernelStage:
        """Return the stage that further kernel calls belong to."""
        if not self.stages or not isinstance(self.stages[-1], KernelStage):
            self._new_stage()
        stage = self.stages[-1]
        assert isinstance(stage, KernelStage)
        return stage

    def _new_stage(self) -> None:
        assert kernels.native is not None
        self.stages.append(KernelStage(kernels.native.Program()))

    def _floats(self, name: str, layout: torch.memory_format) -> Place:
        """Return where kernels find a float value in a layout."""
        fixed = self.fixed.get(name)
        if fixed is not None and fixed.dtype is torch.float32 and fixed.is_contiguous(memory_format=layout):
            return _ARENA, 4 * int(fixed.storage_offset()) + self._shift(name, None)
        key = (name, layout)
        if key not in self.memories:
            self.memories[key] = 1 + len(self.memories)
            if fixed is not None:
                # Copied from the arena, so what comes before must have run.
                self._new_stage()
                self._kernels().views.update(self._views((name,)))
            self._kernels().loads.append((self.memories[key], name, self.shapes[name], layout))
        return self.memories[key], 0 if self.part is None else 4 * elements(self._shape(name)[1:]) * self.part.start

    def _codes(self, source: str, reader: str) -> Place:
        return _ARENA, self.fit.places[source, reader] + self._shift(source, reader)

    def _shift(self, value: str, reader: str | None) -> int:
        """Return how far from a buffer's beginning the samples are that are compiled for."""
        head = self.fit.head
        if self.part is None or head is None or (value, reader) not in head.whole:
            return 0
        sample = (1, *self.shapes[value][1:])
        return self.part.start * (4 * elements(sample) if reader is None else code_bytes(sample))

    def _shape(self, name: str) -> Shape:
        shape = self.shapes[name]
        return shape if self.part is None else (len(self.part), *shape[1:])

    def _op(self, node: Node, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return a node's op for as many samples as are compiled for."""
        key = node.name, 0 if self.part is None else len(self.part)
        if key not in self.ops:
            self.ops[key] = make(*args, **options)
        return self.ops[key]

    def _outputs(self, node: Node) -> tuple[Place, list[Place]]:
        """Return where the float result goes, if it is wanted, and the codes."""
        offset = self.fit.places.get((node.name, None))
        codes = [self._codes(node.name, reader) for reader in self.plan.code_readers.get(node.name, ())]
        return (_NOWHERE if offset is None else (_ARENA, offset + self._shift(node.name, None))), codes

    def _epilogue(self, node: Node, clamp: tuple[float, float]) -> Epilogue:
        readers = [self.readers[name] for name in self.plan.code_readers.get(node.name, ())]
        quantizers = tuple(self._operands(reader).quantizer for reader in readers)
        return Epilogue(clamp, quantizers, node.name in self.plan.float_values)

    def _operands(self, node: ConvNode | LinearNode) -> LayerOperands:
        operands = self.bound.operands[node.layer, node.norm]
        assert isinstance(operands, LayerOperands)
        return operands

    # Nodes.

    def _torch(self, node: TorchNode) -> None:
        function = operation(node.operation, self.bound, self.model)
        if may_view(node.operation, self.bound.modules) and all(name in self.fixed for name in node.inputs):
            result = function(self.fixed)
            if isinstance(result, Tensor) and result.untyped_storage()._cdata == self.arena.untyped_storage()._cdata:
                # A view of the arena is the same one every time, so there is nothing to run.
                self.fixed[node.name] = result
                return
        self.stages.append(TorchStage(node.name, function, self._views(node.inputs)))

    def _float_conv(self, node: FloatConvNode) -> None:
        geometry = self.geometries[node.layer]
        assert isinstance(geometry, ConvGeometry)
        run: Callable[..., Tensor] = partial(float_conv, node, geometry, self.bound.operands[node.layer, node.norm])
        source = node.source
        stage = TorchStage(node.name, lambda values: run(values[source]), self._views(node.inputs))
        self.stages.append(stage)

    def _pool(self, node: PoolNode | MeanNode) -> None:
        shape, epilogue = self._shape(node.source), self._epilogue(node, _UNBOUNDED)
        if isinstance(node, PoolNode):
            op = self._op(node, conv_kernels.max_pool_op, pool_window(node.pool, shape), shape[1], epilogue)
        else:
            op = self._op(node, conv_kernels.mean_pool_op, shape[0], shape[2] * shape[3], shape[1], epilogue)
        x = self._floats(node.source, _CHANNELS_LAST)
        self._kernels().native.add(op, x, _NOWHERE, *self._outputs(node))

    def _conv(self, node: ConvNode) -> None:
        operands, geometry = self._operands(node), self.geometries[node.layer]
        assert isinstance(geometry, ConvGeometry)
        shape = self._shape(node.source)
        codes = self._codes(node.source, node.name)
        if not self.plan.takes_codes(node):
            self._quantize(node.source, shape, operands.quantizer, codes)
        op = self._op(
            node,
            conv_kernels.conv_op,
            operands.packed,
            geometry.window(shape),
            self._epilogue(node, node.clamp or _UNBOUNDED),
            multiplier=operands.multiplier[:, 0].contiguous(),
            bias=operands.bias,
            zero_point=operands.quantizer.zero_point,
            residual=node.residual is not None,
        )
        residual = _NOWHERE if node.residual is None else self._floats(node.residual, _CHANNELS_LAST)
        self._kernels().native.add(op, codes, residual, *self._outputs(node))

    def _quantize(self, source: str, shape: tuple[int, ...], quantizer: Quantizer, codes: Place) -> None:
        """Quantize a value (N, C, H, W), in the layout that it has, by division."""
        last = source in self.fixed or source in self.fit.channels_last
        op = conv_kernels.quantize_op(shape[0], shape[1], shape[2] * shape[3], quantizer, last)
        x = self._floats(source, _CHANNELS_LAST if last else _PLANAR)
        self._kernels().native.add(op, x, _NOWHERE, _NOWHERE, [codes])

    def _linear(self, node: LinearNode) -> None:
        operands, geometry = self._operands(node), self.geometries[node.layer]
        assert isinstance(geometry, LinearGeometry)
        rows, size = geometry.rows(self.shapes[node.source]), geometry.in_features
        codes, out = self._codes(node.source, node.name), (_ARENA, self.fit.places[node.name, None])
        quantize = conv_kernels.quantize_op(1, size, rows, operands.quantizer, True)
        x = self._floats(node.source, _PLANAR)
        stage = self._kernels()
        stage.native.add(quantize, x, _NOWHERE, _NOWHERE, [codes])
        self._planes(stage, operands, geometry, rows, codes, out)
        if node.clamp is not None:
            bounds = conv_kernels.add_op(rows, geometry.out_features, Epilogue(node.clamp))
            stage.native.add(bounds, out, _NOWHERE, out, [])

    def _planes(
        self, stage: KernelStage, operands: LayerOperands, geometry: LinearGeometry, rows: int, codes: Place, out: Place
    ) -> None:
        """Multiply by the bit planes as they are, or by tiles that are kept."""
        weights, bits, bias = operands.weights, operands.bits, operands.bias
        planes, group_size = weights.planes(bits), operands.group_size if operands.multiplier.shape[1] > 1 else 0
        tiles = weights.kept_tiles(bits) if rows > FEW_ROWS and not group_size else None
        stage.held.append((planes, operands.multiplier, bias, tiles))
        form = weights.form(bits)
        stage.native.add_linear(
            [plane.data_ptr() for plane in planes],
            form["stored_bits"],
            form["bits"],
            geometry.out_features,
            geometry.in_features,
            weights.row_bytes,
            group_size,
            operands.multiplier.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            codes,
            rows,
            channel_stride(geometry.in_features),
            operands.quantizer.zero_point,
            out,
            0 if tiles is None else tiles.data.data_ptr(),
            0 if tiles is None else tiles.row_sums.data_ptr(),
        )
