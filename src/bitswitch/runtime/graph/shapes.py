"""A plan fitted to inputs: the shape of every value, and where in memory it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitswitch._trace import version_of
from bitswitch.runtime.conv_reference import channel_stride
from bitswitch.runtime.graph.arena import Request, place
from bitswitch.runtime.graph.geometry import Geometries, LinearGeometry, ShapeError, pool_window
from bitswitch.runtime.graph.kept import Kept
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, MeanNode, Node, PoolNode, TorchNode
from bitswitch.runtime.graph.operands import Bound
from bitswitch.runtime.graph.parts import Head, bytes_in_use, choose_head, requests_with_head
from bitswitch.runtime.graph.plan import Plan
from bitswitch.runtime.graph.values import is_channels_last, operation, view_nchw

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fit:
    """A plan for inputs of given shapes.

    Attributes:
        plan: the plan.
        shapes: of all values that are tensors.
        channels_last: values that PyTorch computes with their channels last in memory.
        places: offsets of buffers in the arena, in bytes: (value, None) of floats, (value, reader) of codes.
        size: of the arena, in bytes.
        head: nodes that run on a few samples at once.
        busy: bytes of buffers that are in use together, without what waits while the head runs.
    """

    plan: Plan
    shapes: Mapping[str, Shape]
    channels_last: frozenset[str]
    places: Mapping[Any, int]
    size: int
    head: Head | None
    busy: int


def fit_plan(plan: Plan, geometries: Geometries, bound: Bound, model: nn.Module, inputs: Mapping[str, Tensor]) -> Fit:
    """Fit a plan to inputs, by running what is left to PyTorch: on copies, and on zeros where kernels would compute.

    Random numbers that it draws are drawn again later, and what modules keep from call to call is put back: attributes,
    containers among these, tensors and buffers.

    Raises:
        ShapeError: the plan does not fit.
    """
    # Tensors of inference mode do not tell when they are changed.
    with torch.random.fork_rng(devices=()), torch.inference_mode(False), torch.no_grad(), _unchanged(model):
        shapes, last = _find_shapes(plan, geometries, bound, model, inputs)
    requests = _requests(plan, shapes)
    shared = _share(plan, requests)
    places, size = place(requests)
    head, busy = choose_head(plan, shapes, requests, size, torch.get_num_threads()), size
    if head is not None:
        busy = max(bytes_in_use(requests, len(plan.nodes))[head.nodes :])
        places, size = place(requests_with_head(requests, head))
        head = replace(head, whole=head.whole | {key for key, holder in shared.items() if holder in head.whole})
    for key, holder in shared.items():
        places[key] = places[holder]
    return Fit(plan, shapes, last, places, size, head, busy)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    kept = Kept(modules, modules)
    try:
        yield
    finally:
        kept.restore()


def _find_shapes(
    plan: Plan, geometries: Geometries, bound: Bound, model: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Shape], frozenset[str]]:
    """Return the shapes of all values, and which of them PyTorch computes with their channels last in memory."""
    # A module that is left to PyTorch may change its input.
    samples: dict[str, Any] = {name: tensor.clone() for name, tensor in inputs.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    needed = {name for node in plan.nodes if isinstance(node, TorchNode) for name in node.inputs}
    for node in plan.nodes:
        if isinstance(node, TorchNode):
            before = _versions(node, samples)
            samples[node.name] = result = operation(node.operation, bound, model)(samples)
            if _versions(node, samples) != before:
                # Codes have been made from what it was, and other values may be views of it.
                raise ShapeError(f"{node.name} changes its input in place")
            if isinstance(result, Tensor):
                shapes[node.name] = tuple(result.shape)
            continue
        _check_types(node, samples)
        shapes[node.name] = shape = _shape(node, geometries, shapes)
        if node.name in needed:
            samples[node.name] = _features(shape) if isinstance(node, LinearNode) else _image(shape)
    last = frozenset(name for name, value in samples.items() if isinstance(value, Tensor) and is_channels_last(value))
    return shapes, last


def _versions(node: TorchNode, samples: Mapping[str, Any]) -> list[int]:
    """Return how often the tensors have been changed in place that a node reads."""
    read = pytree.tree_leaves([samples[name] for name in node.inputs])
    return [version_of(leaf) for leaf in read if isinstance(leaf, Tensor)]


def _check_types(node: Node, samples: Mapping[str, Any]) -> None:
    """Leave what computes on other types than float32, or elsewhere than on the CPU, to PyTorch and its rules."""
    for name in node.inputs:
        value = samples.get(name)
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise ShapeError(f"{node.name} has an input on {value.device}")
        if isinstance(value, Tensor) and value.dtype is not torch.float32:
            raise ShapeError(f"{node.name} has an input of type {value.dtype}", _call_of(node))


def _call_of(node: Node) -> str:
    return node.call if isinstance(node, (ConvNode, LinearNode, FloatConvNode)) else node.name


def _shape(node: Node, geometries: Geometries, shapes: Mapping[str, Shape]) -> Shape:
    source = shapes.get(node.inputs[0])
    if source is None:
        raise ShapeError(f"the input of {node.name} is no tensor", _call_of(node))
    if isinstance(node, (PoolNode, MeanNode)) and len(source) != 4:
        raise ShapeError(f"{node.name} has an input of shape {source}", node.name)
    if isinstance(node, PoolNode):
        return (*source[:2], *pool_window(node.pool, source).out_size)
    if isinstance(node, MeanNode):
        return (*source[:2], 1, 1) if node.keep else source[:2]
    if isinstance(node, LinearNode) and node.norm is not None and len(source) != 2:
        raise ShapeError(f"{node.norm} normalises another dimension than the features of {source}", node.call)
    assert isinstance(node, (ConvNode, FloatConvNode, LinearNode))
    geometry = geometries[node.layer]
    try:
        if isinstance(geometry, LinearGeometry):
            geometry.rows(source)
            return (*source[:-1], geometry.out_features)
        shape = (source[0], geometry.out_channels, *geometry.window(source).out_size)
    except ShapeError as error:
        raise ShapeError(str(error), node.call) from None
    if isinstance(node, ConvNode) and node.residual is not None and shapes.get(node.residual) != shape:
        raise ShapeError(f"{node.addition} adds {shapes.get(node.residual)} to {shape}", node.addition)
    return shape


def _features(shape: Shape) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _image(shape: Shape) -> Tensor:
    if len(shape) != 4:
        return _features(shape)
    batch, channels, height, width = shape
    return view_nchw(torch.zeros(batch, height, width, channels, dtype=torch.float32, device="cpu"))


def in_arena(node: Node) -> bool:
    """Whether a node writes into buffers of the arena; the others return new tensors."""
    return isinstance(node, (ConvNode, LinearNode, PoolNode, MeanNode))


def code_bytes(shape: Shape) -> int:
    """Return the bytes of the codes of a value (N, C, H, W): channels last, rounded up."""
    return shape[0] * shape[2] * shape[3] * channel_stride(shape[1])


def elements(shape: Shape) -> int:
    """Return the number of elements of a value."""
    total = 1
    for length in shape:
        total *= length
    return total


def _requests(plan: Plan, shapes: Mapping[str, Shape]) -> dict[Any, Request]:
    """Return the buffers of a plan.

    A tensor that PyTorch computes may be a view of its inputs, so buffers that it was computed from are in use as long
    as it is.
    """
    index = {node.name: i for i, node in enumerate(plan.nodes)}
    last = dict(index)
    roots: dict[str, frozenset[str]] = {}
    for i, node in enumerate(plan.nodes):
        used = frozenset().union(*(roots.get(name, frozenset()) for name in node.inputs))
        last.update(dict.fromkeys(used, i))
        roots[node.name] = frozenset({node.name}) if in_arena(node) else used
    for name in plan.output_values:
        last.update(dict.fromkeys(roots.get(name, ()), len(plan.nodes)))
    requests: dict[Any, Request] = {}
    for i, node in enumerate(plan.nodes):
        if in_arena(node) and node.name in plan.float_values:
            requests[node.name, None] = Request(4 * elements(shapes[node.name]), i, last[node.name])
        for reader in plan.code_readers.get(node.name, ()):
            requests[node.name, reader] = Request(code_bytes(shapes[node.name]), i, index[reader])
        if isinstance(node, LinearNode):
            source = shapes[node.source]
            size = elements(source[:-1]) * channel_stride(source[-1])
            requests[node.source, node.name] = Request(size, i, i)
        elif isinstance(node, ConvNode) and not plan.takes_codes(node):
            requests[node.source, node.name] = Request(code_bytes(shapes[node.source]), i, i)
    return requests


def _share(plan: Plan, requests: dict[Any, Request]) -> dict[Any, Any]:
    """Let a sum take the place of the summand that nobody needs after it: what is in the caches already.

    Kernels read every element of the summand just before they write that of the sum.

    Args:
        plan: the plan.
        requests: its buffers. Those of such sums are taken out, and the summands' are in use as long as the sums'.

    Returns:
        Whose buffer each of these sums is in.
    """
    shared: dict[Any, Any] = {}
    for index, node in enumerate(plan.nodes):
        if not isinstance(node, ConvNode) or node.residual is None:
            continue
        key, summand = (node.name, None), (node.residual, None)
        holder = shared.get(summand, summand)
        held, wanted = requests.get(holder), requests.get(key)
        if held is not None and wanted is not None and held.last == index and held.size == wanted.size:
            del requests[key]
            requests[holder] = Request(held.size, held.first, wanted.last)
            shared[key] = holder
    return shared
