"""Plans in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, MeanNode, Node, PoolNode, TorchNode
from bitswitch.runtime.graph.plan import Plan

_KINDS = {
    ConvNode: "integer convolution",
    LinearNode: "integer linear",
    FloatConvNode: "float convolution",
    PoolNode: "max pool",
    MeanNode: "mean",
}


def headline(plan: Plan, reasons: Mapping[str, int]) -> str:
    """Return a line on the whole.

    Args:
        plan: the plan of a network.
        reasons: why calls ran module by module, and how many.
    """
    fused = sum(isinstance(node, (ConvNode, LinearNode)) for node in plan.nodes)
    text = f"as a graph: {fused} of {fused + len(plan.alone)} calls of integer layers fused"
    if plan.alone:
        text += f", alone: {', '.join(plan.alone[:5])}{', …' if len(plan.alone) > 5 else ''}"
    if reasons:
        causes = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
        text += f"; calls that ran module by module: {causes}"
    return text


def describe_plan(plan: Plan, others: Mapping[Any, Plan]) -> Iterator[str]:
    """Return a line for each operation.

    Args:
        plan: the plan of a network.
        others: plans that differ from it, by the shapes of inputs that they are for.
    """
    for node in plan.nodes:
        yield _line(node, plan)
    known = {_line(node, plan) for node in plan.nodes}
    for shapes, other in others.items():
        yield f"for inputs of {' and '.join(str(shape) for shape in shapes)} instead:"
        for node in other.nodes:
            line = _line(node, other)
            if line not in known:
                yield f"  {line}"


def _line(node: Node, plan: Plan) -> str:
    if isinstance(node, TorchNode):
        alone = str(node.operation.target) in plan.alone
        text = f"{node.name}: {'integer layer alone' if alone else 'PyTorch'} {_target(node)}"
    else:
        text = f"{node.name}: {_KINDS[type(node)]}"
    if isinstance(node, (ConvNode, LinearNode, FloatConvNode)):
        text += f" {node.layer}"
        text += f" + {node.norm}" if node.norm else ""
        text += f" + value {node.residual}" if isinstance(node, ConvNode) and node.residual else ""
        text += f", clamp {node.clamp[0]:g} … {node.clamp[1]:g}" if node.clamp else ""
    copies = len(plan.code_readers.get(node.name, ()))
    gives = [f"{copies} × codes"] if copies else []
    gives += ["float"] if node.name in plan.float_values else []
    return f"{text} ({', '.join(node.inputs)}) → {' and '.join(gives) or 'nothing'}"


def _target(node: TorchNode) -> str:
    target = node.operation.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
