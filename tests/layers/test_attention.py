"""Attention modules with called projections: the same float function as PyTorch's, and quantized layers inside."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import bitswitch as bs
from bitswitch.errors import BitswitchWarning
from bitswitch.layers.adapters import adapt
from bitswitch.layers.attention import ProjectedMultiheadAttention
from bitswitch.layers.base import SwitchableLayer, iter_layers
from bitswitch.layers.table import state_of

HEADS, EMBED, BATCH, TARGET, SOURCE = 2, 8, 3, 5, 4


def attention(**options: Any) -> nn.MultiheadAttention:
    """Return an attention none of whose parameters are zero."""
    module = nn.MultiheadAttention(EMBED, HEADS, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def adapted(module: nn.Module) -> Any:
    module = copy.deepcopy(module)
    adapt(module)
    return module


def masks(kind: str, source: int, batch: int | None) -> dict[str, Tensor]:
    """Return mask arguments; no row is masked in full, which would be NaN."""
    causal = torch.ones(TARGET, source, dtype=torch.bool).triu(1)
    padding = torch.zeros((batch or 1), source, dtype=torch.bool)
    padding[0, -1] = True
    padding = padding if batch else padding[0]
    heads = torch.randn((batch or 1) * HEADS, TARGET, source, generator=torch.Generator().manual_seed(1))
    return {
        "none": {},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": heads[0]},
        "heads": {"attn_mask": heads},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "float both": {
            "attn_mask": heads,
            "key_padding_mask": torch.zeros_like(padding).float().masked_fill(padding, -9),
        },
        "hint": {"attn_mask": causal, "is_causal": True},
        "hint and padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
    }[kind]


KINDS = ["none", "bool", "float", "heads", "padding", "both", "float both", "hint", "hint and padding"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 6, "vdim": 7, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "add_bias_kv": True, "batch_first": True},
    {"dropout": 0.3},
]


def inputs(options: dict[str, Any], layout: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    batch = () if layout == "unbatched" else (BATCH,)

    def draw(length: int, size: int) -> Tensor:
        shape = (*batch, length, size) if options.get("batch_first") else (length, *batch, size)
        return torch.randn(shape, generator=generator)

    query = draw(TARGET, EMBED)
    if layout == "self":
        return query, query, query
    return query, draw(SOURCE, options.get("kdim", EMBED)), draw(SOURCE, options.get("vdim", EMBED))


def compare(first: tuple[Tensor, Tensor | None], second: tuple[Tensor, Tensor | None]) -> None:
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-6)
    if first[1] is None:
        assert second[1] is None
    else:
        torch.testing.assert_close(first[1], second[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["self", "cross", "unbatched"])
def test_the_float_function_is_the_same(options: dict[str, Any], layout: str) -> None:
    if layout == "self" and "kdim" in options:
        pytest.skip("keys of another size come from elsewhere")
    module = attention(**options).train("dropout" in options)
    other = adapted(module)
    query, key, value = inputs(options, layout)
    batch = None if layout == "unbatched" else BATCH
    source = TARGET if layout == "self" else SOURCE
    for kind, need_weights, average in itertools.product(KINDS, (True, False), (True, False)):
        arguments = {**masks(kind, source, batch), "need_weights": need_weights, "average_attn_weights": average}
        torch.manual_seed(3)
        expected = module(query, key, value, **arguments)
        torch.manual_seed(3)
        compare(other(query, key, value, **arguments), expected)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 7}, {"add_bias_kv": True, "batch_first": True}], ids=str)
def test_gradients_are_the_same(options: dict[str, Any], need_weights: bool) -> None:
    module = attention(**options)
    other = adapted(module)
    results = []
    for net in (module, other):
        given = [x.clone().requires_grad_() for x in inputs(options, "cross")]
        output, _ = net(*given, need_weights=need_weights)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append([x.grad for x in given])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    if "kdim" in options:
        expected = [module.q_proj_weight.grad, module.k_proj_weight.grad, module.v_proj_weight.grad]
    else:
        expected = list(module.in_proj_weight.grad.chunk(3))
    found = [getattr(other, f"{name}_proj").weight.grad for name in "qkv"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.out_proj.weight.grad, module.out_proj.weight.grad, rtol=1e-4, atol=1e-6)
    biases = torch.cat([getattr(other, f"{name}_proj").bias.grad for name in "qkv"])
    torch.testing.assert_close(biases, module.in_proj_bias.grad, rtol=1e-4, atol=1e-6)


def test_it_is_still_itself() -> None:
    module = attention(batch_first=True).requires_grad_(False)
    module.in_proj_weight.requires_grad_(True)
    other = adapted(module)
    assert isinstance(other, nn.MultiheadAttention)
    assert type(other.out_proj) is nn.Linear
    assert other.q_proj.weight.requires_grad
    assert not other.q_proj.bias.requires_grad
    before = list(other.state_dict())
    adapt(other)
    assert list(other.state_dict()) == before
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"is_causal": True}, "attn_mask"),
        ({"attn_mask": torch.zeros(TARGET, 1)}, "shape"),
        ({"attn_mask": torch.zeros(1, TARGET, SOURCE)}, "shape"),
        ({"key_padding_mask": torch.zeros(BATCH, 1)}, "shape"),
        ({"attn_mask": torch.zeros(TARGET, SOURCE, dtype=torch.int64)}, "bool and floating"),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        adapted(attention())(*inputs({}, "cross"), **arguments)


class Own(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Kept(nn.MultiheadAttention):
    """A subclass with the same forward."""


class Net(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(EMBED, EMBED)
        self.attention = module
        self.body = nn.Linear(EMBED, EMBED)
        self.head = nn.Linear(EMBED, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.body(self.attention(x, x, x)[0]))


def test_a_subclass_that_keeps_the_forward_is_adapted() -> None:
    module = adapted(Net(Kept(EMBED, HEADS)))
    assert isinstance(module.attention, Kept)
    assert isinstance(module.attention, ProjectedMultiheadAttention)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: Own(EMBED, HEADS), "Own overrides the forward of MultiheadAttention"),
        (lambda: weight_norm(nn.MultiheadAttention(EMBED, HEADS), "in_proj_weight"), "computed by a parametrization"),
    ],
)
def test_an_attention_that_cannot_be_adapted_is_named(module: Any, reason: str) -> None:
    net = Net(module())
    x = torch.randn(TARGET, BATCH, EMBED)
    with pytest.warns(BitswitchWarning, match=f"attention: .*{reason}"):
        model = bs.prepare(net, example_inputs=x)
    assert list(state_of(model).table.available) == ["body"]
    torch.testing.assert_close(model.attention(x, x, x)[0], net.attention(x, x, x)[0])


def test_a_weight_that_two_attentions_share_stays() -> None:
    net = Net(nn.MultiheadAttention(EMBED, HEADS))
    net.body = nn.MultiheadAttention(EMBED, HEADS)
    net.body.in_proj_weight = net.attention.in_proj_weight
    adapt(net)
    assert net.body.in_proj_weight is net.attention.in_proj_weight
    assert not isinstance(net.body, ProjectedMultiheadAttention)


class Translator(nn.Module):
    """Encoder and decoder with masks: self-attention, cross-attention, padding."""

    def __init__(self, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"batch_first": batch_first, "dropout": 0.0, "norm_first": norm_first}
        self.embed = nn.Embedding(11, EMBED)
        encoder = nn.TransformerEncoderLayer(EMBED, HEADS, 16, **options)
        decoder = nn.TransformerDecoderLayer(EMBED, HEADS, 16, **options)
        nested = batch_first and not norm_first
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=nested)
        self.decoder = nn.TransformerDecoder(decoder, 2)
        self.head = nn.Linear(EMBED, 11)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        memory = self.encoder(self.embed(source), src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(TARGET).isinf()
        return self.head(
            self.decoder(self.embed(target), memory, causal, memory_key_padding_mask=padding, tgt_is_causal=True)
        )


def sentences(batch_first: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    source = torch.randint(11, (BATCH, SOURCE), generator=generator)
    target = torch.randint(11, (BATCH, TARGET), generator=generator)
    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[1, -1] = True
    return (source, target, padding) if batch_first else (source.t(), target.t(), padding)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, False), (False, False), (True, True)])
def test_encoders_and_decoders_keep_their_function(batch_first: bool, norm_first: bool, training: bool) -> None:
    net = Translator(batch_first, norm_first).train(training)
    other = adapted(net)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        expected = net(*sentences(batch_first))
        torch.testing.assert_close(other(*sentences(batch_first)), expected, rtol=1e-4, atol=1e-5)


def test_every_projection_runs_quantized_in_evaluation_mode() -> None:
    model = bs.prepare(Translator().eval(), example_inputs=sentences())
    bs.calibrate(model, [sentences()], forward=lambda net, batch: net(*batch))
    names = {name for name, _ in iter_layers(model)}
    parts = {
        f"{attn}.{proj}"
        for attn in ("self_attn", "multihead_attn")
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    assert {f"decoder.layers.1.{part}" for part in parts} <= names
    assert len(names) == 2 * (4 + 2) + 2 * (8 + 2)
    executed: set[str] = set()
    for name, layer in iter_layers(model):
        layer.weight_quantizer.register_forward_hook(lambda *_, name=name: executed.add(name))
    with torch.no_grad():  # the case in which PyTorch would take its fast path
        model.eval()(*sentences())
    assert executed == names


def test_widths_of_attention_layers_count() -> None:
    model = bs.prepare(Net(attention()), bits=(8, 2), example_inputs=torch.randn(TARGET, BATCH, EMBED))
    x = torch.randn(TARGET, BATCH, EMBED)
    bs.calibrate(model, [x])
    high = model(x)
    bs.switch(model, {"attention.k_proj": 2}, default=8)
    assert isinstance(model.attention.k_proj, SwitchableLayer)
    assert not torch.equal(model(x), high)
    bs.switch(model, 2)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in (model.attention.q_proj.weight, model.attention.out_proj.weight))


def test_a_copy_has_projections_of_its_own() -> None:
    model = bs.prepare(Net(attention()), bits=(8, 2), example_inputs=torch.randn(TARGET, BATCH, EMBED))
    bs.calibrate(model, [torch.randn(TARGET, BATCH, EMBED)])
    twin = copy.deepcopy(model)
    bs.switch(twin, 2)
    assert (model.attention.q_proj.bits, twin.attention.q_proj.bits) == (8, 2)
