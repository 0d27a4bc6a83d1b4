"""Training under torch.compile: one graph a width, the numbers of eager training, mixed maps as they are."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, parameters_of, quantized_mlp
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import bitswitch as bs
from bitswitch.errors import BitswitchWarning
from bitswitch.layers.base import layer_of
from bitswitch.training import JointTrainer
from bitswitch.training.samplers import Uniform


class Counting:
    """A backend that counts the graphs it is given and runs them operator by operator."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs.append(graph)
        return aot_eager(graph, inputs)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def trained(model: nn.Module, steps: int = 3, **options: Any) -> JointTrainer:
    trainer = JointTrainer(model, "cross_entropy", total_steps=10, **options)
    for batch in make_batches(steps):
        trainer.step(batch)
    return trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "channel"}, {"scale_parametrization": "raw", "shared": False}, {"first_last": 8}],
    ids=["tensor", "channel", "raw", "pinned"],
)
def test_one_graph_a_width_and_no_more_after_the_first_step(options: dict[str, Any]) -> None:
    model, backend = make_model(**options), Counting()
    trainer = JointTrainer(model, "cross_entropy", total_steps=10, compile={"backend": backend, "fullgraph": True})
    first, *others = make_batches(4)
    trainer.step(first)
    assert len(backend.graphs) == 3
    for batch in others:
        trainer.step(batch)
    bs.evaluate(model, others)
    bs.switch(model, 4)
    trainer.step(first)
    assert len(backend.graphs) == 3


@pytest.mark.parametrize(("autocast", "midrise"), [(None, ()), (None, (2,)), (torch.bfloat16, ())])
def test_training_is_that_of_eager_mode(autocast: torch.dtype | None, midrise: tuple[int, ...]) -> None:
    eager, compiled = make_model(midrise=midrise), make_model(midrise=midrise)
    trained(eager, autocast=autocast)
    trained(compiled, autocast=autocast, compile={"backend": Counting(), "fullgraph": True})
    tolerance = 1e-5 if autocast is None else 2e-3
    for name, expected in parameters_of(eager).items():
        torch.testing.assert_close(parameters_of(compiled)[name], expected, rtol=tolerance, atol=tolerance, msg=name)


def test_signed_inputs_and_linear_layers() -> None:
    model, backend = quantized_mlp(force=("*",)), Counting()
    trainer = JointTrainer(model, "cross_entropy", total_steps=9, compile={"backend": backend, "fullgraph": True})
    for _ in range(2):
        trainer.step((torch.randn(4, 5), torch.randint(0, 3, (4,))))
    assert len(backend.graphs) == 3


class Mixed(Uniform):
    """Draws a map of layers at every width but the highest."""

    def sample(self, *, bits: int, **others: Any) -> bs.Precision:
        return bs.Precision.of(8) if bits == 8 else bs.Precision.of({"conv2": 2}, default=bits)


def test_maps_of_layers_train_eagerly_with_one_warning() -> None:
    model, backend = make_model(), Counting()
    trainer = JointTrainer(model, "cross_entropy", total_steps=9, sampler=Mixed(), compile={"backend": backend})
    first, second = make_batches(2)
    with pytest.warns(BitswitchWarning, match=r"conv2=2.*train without torch\.compile") as caught:
        trainer.step(first)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(second)
    assert len(backend.graphs) == 1


def test_scales_are_an_operator_of_their_own() -> None:
    """A compiler must not fuse the exponential: it could round it otherwise, and all codes with it."""
    model, backend = make_model(), Counting()
    trained(model, steps=1, compile={"backend": backend})
    for graph in backend.graphs:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert sum("scale_of" in name for name in called) == 4
        assert not any(name.endswith("exp") for name in called)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("midrise", [(), (2,)])
def test_inductor_keeps_codes(midrise: tuple[int, ...]) -> None:
    """What a compiled forward pass rounds to is what stored integers stand for, bit for bit."""
    layer = layer_of(make_model(bits=(8, 2), midrise=midrise), "conv2")
    operands = torch.compile(layer._operands, fullgraph=True)
    layer.weight_quantizer.scale.parameter.data.add_(0.1)
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1)).relu()
    for layer.bits in (8, 2):
        for compiled, expected in zip(operands(x), layer._operands(x), strict=True):
            assert torch.equal(compiled, expected)
