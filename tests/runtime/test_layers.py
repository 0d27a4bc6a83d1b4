"""One layer at a time: given the same input codes, an engine's layer computes what the training forward does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import kernels
from bitswitch.errors import ArgumentError
from bitswitch.runtime import Engine

BITS = (8, 6, 4, 3, 2)
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.fixture(scope="module", params=["native", "reference"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test on the compiled kernels and on the references."""
    if request.param == "native":
        yield
        return
    native, kernels.native = kernels.native, None
    yield
    kernels.native = native


def agree(layer: nn.Module, x: Tensor, *, signed: bool, **options: Any) -> None:
    """Compare an engine of one layer with its training forward at every width."""
    net = nn.Sequential(nn.Identity() if signed else nn.ReLU(), layer)
    sample = torch.randn(x.shape) if x.numel() else torch.randn(2, *x.shape[1:])
    model = bs.prepare(net, BITS, force="1", example_inputs=sample, **options)
    bs.calibrate(model, [sample])
    model.eval()
    engine = bs.deploy(model)
    for bits in BITS:
        bs.switch(model, bits)
        with torch.no_grad():
            expected = model(x)
        found = engine(x, precision=bits)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if x.numel():
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


granularities = st.sampled_from(["tensor", "channel", "group"])
midrises = st.sampled_from([(), (2,), (6, 4, 3, 2)])


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from([1, 2, 12, 30, 63, 64, 65, 130]),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    granularities,
    midrises,
    st.integers(0, 1000),
)
def test_linear(
    lead: list[int],
    inputs: int,
    outputs: int,
    bias: bool,
    signed: bool,
    granularity: str,
    midrise: tuple[int, ...],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"granularity": granularity, "midrise": midrise}
    if granularity == "group":
        options["group_size"] = next(g for g in (32, 5, 3, 2, 1) if inputs % g == 0)
    agree(nn.Linear(inputs, outputs, bias), torch.randn(*lead, inputs), signed=signed, **options)


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 2, 3]),
    st.booleans(),
    st.sampled_from([(1, 3, 5), (1, 8, 4), (2, 2, 3), (3, 1, 2), (4, 1, 1), (8, 1, 1)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    st.booleans(),
    st.booleans(),
    granularities,
    midrises,
    st.integers(0, 1000),
)
def test_convolutions(
    dims: int,
    transposed: bool,
    channels: tuple[int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    mode: str,
    bias: bool,
    signed: bool,
    granularity: str,
    midrise: tuple[int, ...],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    groups, inputs, outputs = channels
    kind: Any = (TRANSPOSED if transposed else CONVS)[dims]
    layer = kind(
        groups * inputs,
        groups * outputs,
        kernel,
        stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode="zeros" if transposed else mode,
    )
    options: dict[str, Any] = {"granularity": granularity, "midrise": midrise}
    if granularity == "group":
        options["group_size"] = inputs * kernel
    agree(layer, torch.randn(2, groups * inputs, *(6,) * dims), signed=signed, **options)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding: str) -> None:
    torch.manual_seed(0)
    agree(nn.Conv2d(4, 5, (3, 5), padding=padding), torch.randn(2, 4, 7, 6), signed=True)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.Conv1d(4, 6, 3)])
def test_without_a_batch_dimension(layer: nn.Module) -> None:
    torch.manual_seed(0)
    agree(layer, torch.randn(4, *(7,) * len(layer.kernel_size)), signed=False)  # pyright: ignore[reportArgumentType]


def test_wide_kernels_and_memory_formats() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 8)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        agree(nn.Conv2d(6, 7, (5, 3), (2, 1), (1, 2)), given_x, signed=True)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6)])
def test_empty_batches(layer: nn.Module) -> None:
    x = torch.zeros(0, 6) if isinstance(layer, nn.Linear) else torch.zeros(0, 6, 5, 5)
    agree(layer, x, signed=False)


def test_output_size_of_a_transposed_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 3, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=(12, 11))

    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    model = bs.prepare(Net(), BITS, force="up", example_inputs=x)
    bs.calibrate(model, [x])
    with torch.no_grad():
        expected = model.eval()(x)
    assert (bs.deploy(model)(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), max_size=2), st.sampled_from([1, 7, 64, 70]), granularities, midrises)
def test_embeddings_are_bit_identical(
    shape: list[int], columns: int, granularity: str, midrise: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"granularity": granularity, "midrise": midrise}
    if granularity == "group":
        options["group_size"] = 7 if columns % 7 == 0 else 1
    index = torch.randint(11, shape)
    model = bs.prepare(nn.Sequential(nn.Embedding(11, columns)), BITS, force="0", example_inputs=index, **options)
    bs.calibrate(model, [index])
    engine = bs.deploy(model.eval())
    for bits in BITS:
        bs.switch(model, bits)
        assert torch.equal(engine(index, precision=bits), model(index))


def test_an_embedding_gives_rows_of_the_type_of_its_weight(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3)).bfloat16()

    tokens = torch.tensor([[1, 8, 0]])
    model = bs.prepare(net(), BITS, force=("0", "1"), example_inputs=tokens).eval()
    bs.calibrate(model, [tokens])
    bs.save(model, tmp_path)
    sources = (model, bs.load(tmp_path, into=net()))
    for engine in (*map(bs.deploy, sources), bs.deploy(tmp_path, into=net())):
        embed = engine.network.get_submodule("0")
        assert torch.equal(embed(tokens), model[0](tokens))
        assert embed.weight.dtype == torch.bfloat16
        assert engine(tokens).dtype == torch.bfloat16


def test_an_embedding_and_a_head_that_share_their_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 12)
            self.hidden = nn.Linear(12, 12)
            self.head = nn.Linear(12, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.hidden(self.embed(tokens))))

    torch.manual_seed(0)
    tokens = torch.randint(20, (3, 5))
    model = bs.prepare(Tied(), BITS, force=("embed", "head"), example_inputs=tokens)
    bs.calibrate(model, [tokens])
    engine = bs.deploy(model.eval())
    assert engine.network.get_submodule("embed").stored is engine.network.get_submodule("head").stored
    for bits in BITS:
        bs.switch(model, bits)
        torch.testing.assert_close(engine(tokens, precision=bits), model(tokens), rtol=1e-5, atol=1e-5)
    bs.switch(engine, {"embed": 8, "head": 2}, default=4)
    bs.switch(model, {"embed": 8, "head": 2}, default=4)
    torch.testing.assert_close(engine(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
def test_attention(kind: type[nn.Module]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = kind(16, 4, batch_first=True)  # pyright: ignore[reportCallIssue]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x)[0] if kind is nn.MultiheadAttention else self.inner(x)

    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    model = bs.prepare(Net().eval(), BITS, force="inner", example_inputs=x)
    bs.calibrate(model, [x])
    engine = bs.deploy(model.eval())
    for bits in BITS:
        bs.switch(model, bits)
        with torch.no_grad():
            expected = model(x)
        # Codes behind a softmax may flip where float sums round differently; here few do.
        assert (engine(x, precision=bits) - expected).abs().max() <= 0.02 * expected.abs().max()


def test_transposed_linear_of_transformers() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    agree(pytorch_utils.Conv1D(5, 12), torch.randn(2, 3, 12), signed=True)
    agree(pytorch_utils.Conv1D(5, 12), torch.randn(2, 3, 12), signed=False, granularity="group", group_size=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_have_the_type_of_inputs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 12)
    model = bs.prepare(nn.Sequential(nn.ReLU(), nn.Linear(12, 5)), BITS, force="1", example_inputs=x)
    bs.calibrate(model, [x])
    engine = bs.deploy(model)
    found = engine(x.to(dtype))
    assert found.dtype == dtype
    assert torch.equal(found, engine(x.to(dtype).float()).to(dtype))


@pytest.mark.parametrize("fuse", [True, False])
def test_inputs_of_other_sizes_are_refused(fuse: bool) -> None:
    def engine(layer: nn.Module, x: Tensor) -> Engine:
        model = bs.prepare(nn.Sequential(layer), BITS, force="0", example_inputs=x)
        bs.calibrate(model, [x])
        return bs.deploy(model, fuse=fuse)

    with pytest.raises(RuntimeError, match=r"takes \(…, 6\), not \(2, 12\)"):
        engine(nn.Linear(6, 4), torch.randn(2, 6))(torch.randn(2, 12))
    with pytest.raises(RuntimeError, match="takes 6 channels"):
        engine(nn.Conv2d(6, 4, 1), torch.randn(2, 6, 3, 3))(torch.randn(2, 12, 3, 3))
    with pytest.raises(RuntimeError, match="takes 6 channels"):
        engine(nn.Conv1d(6, 4, 1), torch.randn(2, 6, 3))(torch.randn(6))
    for index in (-1, 11):
        with pytest.raises(IndexError):
            engine(nn.Embedding(11, 4), torch.tensor([0, 10]))(torch.tensor([index]))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fuse", [True, False])
def test_kernels_that_do_not_fit_into_an_image_are_refused(fuse: bool, size: int) -> None:
    x = torch.randn(2, 3, 6, 6)
    model = bs.prepare(nn.Sequential(nn.Conv2d(3, 4, 3)), BITS, force="0", example_inputs=x)
    bs.calibrate(model, [x])
    # The references leave it to PyTorch to say so.
    with pytest.raises((ArgumentError, RuntimeError), match=r"does not fit into|can't be greater than"):
        bs.deploy(model, fuse=fuse)(x[:, :, :size, :size])


@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Conv1d(12, 5, 3), nn.ConvTranspose1d(12, 6, 3, groups=2)])
def test_dynamic_codes(layer: nn.Module) -> None:
    """Every row, or image, gets 8-bit codes of its own; the rest is exact."""
    torch.manual_seed(0)
    x = torch.randn(4, 12) if isinstance(layer, nn.Linear) else torch.randn(4, 12, 6)
    x[1] *= 100
    x[2] = 0
    net = nn.Sequential(layer)
    model = bs.prepare(net, BITS, force="0", example_inputs=x, activations=False)
    bs.calibrate(model, [x])
    model.eval()
    engine = bs.deploy(model, dynamic=True)
    scale = x.flatten(1).abs().amax(1) / 127
    scale[2] = 1
    scale = scale.view(-1, *[1] * (x.dim() - 1))
    codes = (x / scale).round().clamp(-127, 127)
    for bits in BITS:
        bs.switch(model, bits)
        with torch.no_grad():
            expected = model(codes * scale)
        found = engine(x, precision=bits)
        assert (found - expected).abs().flatten(1).amax(1).le(1e-5 * expected.abs().flatten(1).amax(1)).all()


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 3)])
def test_dynamic_codes_of_empty_batches(layer: nn.Module) -> None:
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 5, 5)
    model = bs.prepare(nn.Sequential(layer), BITS, force="0", example_inputs=x, activations=False)
    bs.calibrate(model, [x])
    assert bs.deploy(model, dynamic=True)(x[:0]).shape == model(x[:0]).shape
