"""prepare: what is quantized, what is not and why, and that the float model stays as it is."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import ArgumentError, BitswitchWarning, CalibrationError, PrecisionError, PrepareError
from bitswitch.layers import PerWidthNorm, SwitchableLayer
from bitswitch.layers.table import LayerTable, state_of
from tests.networks import QUANTIZED, Residual, images, residual


def table_of(model: nn.Module) -> LayerTable:
    return state_of(model).table


def test_the_layer_table_of_a_residual_network() -> None:
    model = bs.prepare(residual(), bits=(2, 8, 4), example_inputs=images())
    table = table_of(model)
    assert list(table) == list(dict.fromkeys(n for n, _ in residual().named_modules() if n))
    assert [entry.name for entry in table.select("quantized")] == list(QUANTIZED)
    assert all(table[name].bits == (8, 4, 2) and table[name].input == "unsigned" for name in QUANTIZED)
    assert (table["stem"].status, table["stem"].reason) == ("float", "first layer")
    assert (table["head"].status, table["head"].reason) == ("float", "last layer")
    # A BatchNorm follows the layer that feeds it; the stem's is fed by a float layer and feeds two.
    assert {n: table[n].width_from for n in ("stem_bn", "bn1", "bn2", "project_bn")} == {
        "stem_bn": "conv1",
        "bn1": "conv1",
        "bn2": "conv2",
        "project_bn": "project",
    }
    assert LayerTable.from_json(table.to_json()).to_json() == table.to_json()


def test_layers_are_still_themselves() -> None:
    network = residual()
    model = bs.prepare(network, example_inputs=images())
    assert type(model) is type(network)
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.conv1, SwitchableLayer)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert isinstance(model.bn1, PerWidthNorm)
    assert type(model.stem) is nn.Conv2d


def test_the_float_model_stays_as_it_is() -> None:
    network = residual().train()
    before = copy.deepcopy(network.state_dict())
    bs.calibrate(bs.prepare(network, example_inputs=images()), [images()])
    assert network.training
    assert list(before) == list(network.state_dict())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert type(network.conv1) is nn.Conv2d


def test_a_copy_of_a_prepared_model_is_independent() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [images()])
    other = copy.deepcopy(model)
    bs.switch(other, 2)
    assert model.conv1.bits == 8
    assert other.conv1.bits == 2
    assert str(state_of(model).precision) == "8"
    other.conv1.weight_quantizer.scale.set_(torch.tensor(1.0))
    assert model.conv1.weight_quantizer.scale.value().item() != 1.0


@pytest.mark.parametrize("example", [images(), (images(),), {"x": images()}])
def test_forms_of_example_inputs(example: object) -> None:
    assert table_of(bs.prepare(residual(), example_inputs=example)).available.keys() == set(QUANTIZED)


def test_without_example_inputs_the_first_batch_completes_the_model() -> None:
    model = bs.prepare(residual())
    with pytest.raises(PrepareError, match="not complete yet; call bitswitch.calibrate"):
        bs.switch(model, 4)
    bs.calibrate(model, [(images(), torch.zeros(4))])
    assert table_of(model).to_json() == table_of(bs.prepare(residual(), example_inputs=images())).to_json()
    bs.switch(model, 4)


def test_pinned_first_and_last_layers() -> None:
    model = bs.prepare(residual(), bits=(4, 3, 2), first_last=8, example_inputs=images())
    table = table_of(model)
    assert table["stem"].bits == table["head"].bits == (8,)
    assert table["stem"].input == "signed"
    assert table["stem"].reason == "first layer, 8 bits"
    assert table["stem_bn"].width_from == "conv1"
    bs.switch(model, 2)
    assert (model.stem.bits, model.conv1.bits, model.head.bits) == (8, 2, 8)


def test_skip_and_force() -> None:
    model = bs.prepare(residual(), skip=["conv*"], force=nn.Linear, example_inputs=images())
    assert list(table_of(model).available) == ["project", "head"]
    assert table_of(model)["conv1"].reason == "skipped on request"
    model = bs.prepare(residual(), skip=nn.Conv2d, force=["conv2", "head"], example_inputs=images())
    assert list(table_of(model).available) == ["conv2", "head"]


def test_a_container_name_covers_what_is_inside() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4))
    network.append(nn.Linear(4, 4))
    model = bs.prepare(network, skip="1", example_inputs=torch.zeros(1, 4))
    assert list(table_of(model).available) == ["2"]


def test_granularity_by_pattern() -> None:
    model = bs.prepare(
        residual(),
        granularity={"conv1": "channel", "conv2": "group"},
        group_size=8,
        example_inputs=images(),
    )
    shapes = {name: model.get_submodule(name).weight_quantizer.scale_shape for name in QUANTIZED}
    assert shapes == {"conv1": (8,), "conv2": (8, 9), "project": ()}


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"bits": (8, 1)}, PrecisionError, "between 2 and 8"),
        ({"bits": 8}, ArgumentError, "collection of integers"),
        ({"skip": "nothing"}, PrepareError, "skip='nothing' matches no layer"),
        ({"force": nn.Embedding}, PrepareError, "force='Embedding' matches no layer"),
        ({"skip": 3}, (ArgumentError, TypeError), ""),
        ({"skip": [3]}, ArgumentError, "skip takes layer names"),
        ({"first_last": 4}, PrepareError, "first_last must be 'float' or 8"),
        ({"granularity": "row"}, PrepareError, "granularity must be one of tensor, channel, group"),
        ({"granularity": {"nothing": "channel"}}, PrepareError, "matches no layer"),
        ({"granularity": "group"}, PrepareError, "layer 'conv1': granularity 'group' needs a group_size"),
        ({"granularity": "group", "group_size": 5}, PrepareError, "divides 36; got 5"),
        ({"scale_parametrization": "exp"}, PrepareError, "scale_parametrization"),
        ({"activation_bits": {3: 4}}, PrepareError, "activation_bits: 3 is not among the widths (8, 6, 4, 2)"),
        ({"activation_bits": {2: 9}}, PrecisionError, "activation_bits: bit-widths must lie between 2 and 8"),
        ({"activation_bits": (8, 6, 4, 4)}, ArgumentError, "activation_bits must be a mapping such as {2: 4}"),
        ({"activation_bits": {2: 4}, "activations": False}, PrepareError, "inputs stay float with activations=False"),
        ({"midrise": (3,)}, PrepareError, "midrise: (3,) are not among the widths (8, 6, 4, 2)"),
        ({"midrise": (2, 1)}, PrecisionError, "between 2 and 8"),
        ({"midrise": 2}, ArgumentError, "midrise must be a collection of widths such as (2,); got 2"),
        ({"activation_bits": []}, ArgumentError, "activation_bits must be a mapping"),
        ({"activation_bits": {2: True}}, ArgumentError, "activation_bits: bit-widths must be integers"),
        ({"bits": (8,), "midrise": (8,)}, PrepareError, "midrise: at most 7 bits; got 8"),
        ({"bits": (4, 2), "midrise": (4, 2)}, PrepareError, "midrise: 4 bits are stored, and lower widths are rounded"),
        ({"skip": nn.Conv2d}, PrepareError, "no layer of this model would be quantized"),
    ],
)
def test_bad_requests(kwargs: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        bs.prepare(residual(), example_inputs=images(), **kwargs)  # pyright: ignore[reportArgumentType]
    assert words in str(caught.value)


def test_inputs_can_have_another_width_than_weights() -> None:
    x = images()
    model = bs.prepare(residual(), bits=(8, 2), activation_bits={8: 6, 2: 4}, example_inputs=x)
    bs.calibrate(model, [x])
    layer: Any = model.get_submodule("conv1")
    values = torch.linspace(-2, 30, 1000)
    for bits, top in ((8, 63), (2, 15)):
        scale = layer.input_quantizer.scale_for(bits).value()
        expected = (values / scale).round().clamp(0, top)
        assert torch.equal(layer.input_quantizer.codes(values, bits), expected)
        assert torch.equal(layer.input_quantizer(values, bits), expected * scale)
    assert "Inputs have 6 bits at 8-bit weights, 4 bits at 2-bit weights." in str(bs.summary(model))
    same = bs.prepare(residual(), bits=(8, 2), activation_bits={8: 8}, example_inputs=x)
    assert "Inputs have" not in str(bs.summary(same))


def test_a_model_is_prepared_once() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    with pytest.raises(PrepareError, match="prepared already"):
        bs.prepare(model, example_inputs=images())
    with pytest.raises(PrepareError, match="not prepared"):
        bs.switch(residual(), 4)
    with pytest.raises(ArgumentError, match="takes a torch.nn.Module; got str"):
        bs.prepare("resnet18")  # pyright: ignore[reportArgumentType]


class OwnLinear(nn.Linear):
    """Overrides forward, so nobody knows what it does with its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.abs(), self.bias)


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (OwnLinear(4, 4), "OwnLinear overrides the forward of Linear"),
        (torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "computed by a parametrization"),
    ],
)
def test_what_cannot_be_handled_is_named(middle: nn.Module, reason: str) -> None:
    with pytest.warns(BitswitchWarning, match=reason):
        model = bs.prepare(chain(middle), example_inputs=torch.zeros(1, 4))
    assert reason in table_of(model)["1"].reason
    assert list(table_of(model).available) == ["2"]
    with pytest.raises(PrepareError, match=f"layer '1' cannot be quantized: .*{reason}"):
        bs.prepare(chain(middle), force="1", example_inputs=torch.zeros(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bs.prepare(chain(middle), skip="1", example_inputs=torch.zeros(1, 4))  # asked for, so no warning


def test_recurrent_layers_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = chain()
            self.lstm = nn.LSTM(4, 4)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.layers(x))[0])

    with pytest.warns(BitswitchWarning, match="lstm: LSTM is not supported"):
        bs.prepare(Recurrent(), example_inputs=torch.zeros(2, 4))


class ReadsWeights(nn.Module):
    """Uses the weight of a layer without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.layers(x), self.hidden.weight, self.hidden.bias))


def test_a_layer_whose_forward_never_runs_is_not_silently_float() -> None:
    with pytest.warns(BitswitchWarning, match="hidden: its forward is not called"):
        model = bs.prepare(ReadsWeights(), example_inputs=torch.zeros(2, 4))
    assert table_of(model)["hidden"].status == "float"
    with pytest.raises(PrepareError, match="layer 'hidden' cannot be quantized: its forward is not called"):
        bs.prepare(ReadsWeights(), force="hidden", example_inputs=torch.zeros(2, 4))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.code, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.code(F.relu(self.first(x))))
        return self.last(F.linear(x, self.code.weight.t()))


def test_a_weight_that_other_code_reads_stays_float() -> None:
    reason = "its weight is read by other code too"
    with pytest.warns(BitswitchWarning, match=f"code: {reason}"):
        model = bs.prepare(TiedAutoencoder(), example_inputs=torch.zeros(2, 4))
    assert list(table_of(model).available) == ["middle"]
    with pytest.raises(PrepareError, match=f"layer 'code' cannot be quantized: {reason}"):
        bs.prepare(TiedAutoencoder(), force="code", example_inputs=torch.zeros(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bs.prepare(TiedAutoencoder(), skip="code", example_inputs=torch.zeros(2, 4))


class SometimesSkips(nn.Module):
    """Calls a layer only while `use` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()
        self.extra = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)
        self.use = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return self.head(self.extra(x) if self.use else x)


def test_calibrate_refuses_a_prepared_layer_that_never_runs() -> None:
    model = bs.prepare(SometimesSkips(), example_inputs=torch.zeros(2, 4))
    model.use = False
    with pytest.raises(PrepareError, match="their forward was never called: extra; leave them out with skip="):
        bs.calibrate(model, [torch.randn(8, 4)])
    with pytest.raises(CalibrationError, match="calibrate"):
        model(torch.zeros(2, 4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.body(self.embed(tokens))))


def test_tied_weights_share_one_quantizer() -> None:
    tokens = torch.arange(6).view(2, 3)
    model = bs.prepare(Tied(), force=["embed", "head"], example_inputs=tokens)
    table = table_of(model)
    assert (table["embed"].alias_of, table["head"].alias_of) == (None, "embed")
    assert model.head.weight is model.embed.weight
    assert model.head.weight_quantizer is model.embed.weight_quantizer
    bs.calibrate(model, [tokens])
    bs.switch(model, {"embed": 8, "head": 2}, default=4)
    model(tokens).sum().backward()
    assert torch.equal(model.embed.weight_codes(2), model.head.weight_codes())


def test_tied_weights_stay_float_together() -> None:
    tokens = torch.arange(6).view(2, 3)
    model = bs.prepare(Tied(), example_inputs=tokens)
    assert list(table_of(model).available) == ["body"]
    with pytest.raises(PrepareError, match="'head' cannot be quantized: it shares its weight with 'embed'"):
        bs.prepare(Tied(), force="head", example_inputs=tokens)


class TiedPair(nn.Module):
    """Two layers that share a weight between two that do not, and a quantized layer more."""

    def __init__(self, kind: type[nn.Module], one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        arguments = (4, 4) if kind is nn.Linear else (4, 4, 1)
        self.first, self.body, self.last = (kind(*arguments) for _ in range(3))
        self.one, self.other = one, other
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.first(x)))
        x = self.one(F.relu(x))
        return self.last(self.other(F.relu(x)))


class GroupsDiffer(TiedPair):
    """Transposed convolutions of one and of two groups."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d, nn.ConvTranspose2d(4, 2, 1), nn.ConvTranspose2d(4, 4, 1, groups=2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu(self.body(F.relu(self.first(x)))))
        return self.last(self.other(F.relu(torch.cat([x, x], 1))))


def test_tied_weights_in_other_layouts_stay_float() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    cases = [
        (TiedPair(nn.Linear, nn.Linear(4, 4), conv1d(4, 4)), torch.randn(2, 4)),
        (GroupsDiffer(), torch.randn(2, 4, 3, 3)),
    ]
    for network, x in cases:
        with pytest.warns(BitswitchWarning, match="2 layers(.|\n)*one: its weight is shared with other, and one of"):
            model = bs.prepare(network, example_inputs=x)
        assert list(table_of(model).available) == ["body"]
        with pytest.raises(PrepareError, match="'one' cannot be quantized: its weight is shared with other"):
            bs.prepare(network, force=["one", "other"], example_inputs=x)
    same = bs.prepare(TiedPair(nn.Linear, conv1d(4, 4), conv1d(4, 4)), example_inputs=torch.randn(2, 4))
    assert table_of(same)["other"].alias_of == "one"


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_module_around_a_prepared_network_names_it() -> None:
    for inner in (bs.prepare(residual(), example_inputs=images()), bs.prepare(residual())):
        wrapper = Wrapper(inner)
        for function in (lambda m: bs.switch(m, 4), bs.summary, bs.unfreeze, lambda m: bs.calibrate(m, [images()])):
            with pytest.raises(PrepareError, match="not prepared; the prepared network is its submodule 'inner'; pass"):
                function(wrapper)
        with pytest.raises(PrepareError, match=r"prepared already \(the prepared network is its submodule 'inner'\)"):
            bs.prepare(wrapper, example_inputs=images())
    with pytest.raises(PrepareError, match="not prepared; call bitswitch.prepare"):
        bs.summary(Wrapper(residual()))


def test_weights_only() -> None:
    model = bs.prepare(residual(), activations=False, example_inputs=images())
    assert model.conv1.input_quantizer is None
    model(images())  # needs no calibration


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value: float) -> None:
    network = residual()
    network.conv2.weight.data[0, 0, 0, 0] = value
    with pytest.raises(PrepareError, match="layer 'conv2'.* NaN or infinite"):
        bs.prepare(network, example_inputs=images())


def test_parameters_keep_their_requires_grad() -> None:
    network = Residual()
    network.conv1.weight.requires_grad_(False)
    model = bs.prepare(network, example_inputs=images())
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad


def test_a_wrapped_model_is_prepared_before_it_is_wrapped() -> None:
    for wrapped in (nn.DataParallel(residual()), torch.compile(residual())):
        assert isinstance(wrapped, nn.Module)
        with pytest.raises(PrepareError, match=f"wrapped in {type(wrapped).__name__}; take the network inside"):
            bs.prepare(wrapped, example_inputs=images())
    with pytest.raises(PrepareError, match="prepared already"):
        bs.prepare(nn.DataParallel(bs.prepare(residual(), example_inputs=images())), example_inputs=images())


def test_unfreeze_needs_a_prepared_model() -> None:
    with pytest.raises(PrepareError, match="not prepared"):
        bs.unfreeze(residual())


def test_a_state_dict_without_metadata_loads() -> None:
    source, target = (bs.prepare(residual(seed), example_inputs=images()) for seed in (0, 1))
    bs.calibrate(source, [images()])
    plain = dict(source.state_dict())  # what safetensors gives back
    target.load_state_dict(plain)
    assert all(torch.equal(plain[name], value) for name, value in target.state_dict().items())
