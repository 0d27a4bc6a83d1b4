"""Files that are well hashed and wrong: each is refused with a message that names the file or the field."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from forge import Forge, Tiny, encode, make_checkpoint, seal

from bitswitch import checkpoint
from bitswitch.errors import CheckpointError, MissingPlanesError

ATTACKS: dict[str, tuple[Callable[[Forge], object], str]] = {}


def attack(name: str, message: str, change: Callable[[Forge], object]) -> None:
    assert name not in ATTACKS
    ATTACKS[name] = change, message


def put(path: str, value: object) -> Callable[[Forge], None]:
    """Return a change of one value of the config, such as "layers.2.shape"."""

    def change(forge: Forge) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        node = forge.config
        for key in parents:
            node = node[key]
        node[last] = value
        forge.keep_records = True

    return change


def row(name: str, field: str, value: object) -> Callable[[Forge], None]:
    return lambda forge: forge.layers[name].__setitem__(field, value)


def float_row(**fields: object) -> Callable[[Forge], None]:
    """Add a row of a float layer."""
    plain = {"name": "extra", "kind": "LSTM", "status": "float", "shape": [], "bits": [], "granularity": ""}

    def change(forge: Forge) -> None:
        rows = forge.config["layers"]
        rows.append({**rows[0], **plain, "reason": "", "input": "float", **fields})

    return change


def config_text(edit: Callable[[bytes], bytes]) -> Callable[[Forge], None]:
    def change(forge: Forge) -> None:
        forge.config_raw = seal(edit(encode(forge.config) + b"\n"))

    return change


def entry(name: str, field: str, value: object) -> Callable[[Forge], None]:
    return lambda forge: forge.base.header[name].__setitem__(field, value)


def scalar(name: str, kind: str, value: float) -> Callable[[Forge], None]:
    return lambda forge: forge.base.put(name, struct.pack(kind, value))


def base_raw(edit: Callable[[bytes], bytes]) -> Callable[[Forge], None]:
    return lambda forge: setattr(forge.base, "raw", edit(forge.base.build()))


def header_text(edit: Callable[[bytes], bytes]) -> Callable[[Forge], None]:
    return lambda forge: setattr(forge.base, "header_bytes", edit(encode(forge.base.header)))


# config.json: the document
attack("config-empty", "config.json: expected a document", lambda f: setattr(f, "config_raw", b""))
attack("config-seal-only", "config.json", lambda f: setattr(f, "config_raw", seal(b"{\n")))
attack("config-wrong-hash", "altered", lambda f: setattr(f, "config_raw", b'{"sha256":"' + b"0" * 64 + b'",' + b"}"))
attack(
    "config-hash-not-hex", "altered", lambda f: setattr(f, "config_raw", b'{"sha256":"' + b"\xff" * 64 + b'",' + b"}")
)
attack("config-not-an-object", "config.json: expected JSON", config_text(lambda raw: b"{]"))
attack("config-deep", "nested at most", config_text(lambda raw: raw[:-2] + b',"x":' + b"[" * 100_000 + b"\n"))
attack("config-deep-objects", "nested", config_text(lambda raw: raw[:-2] + b',"x":' + b'{"a":' * 100_000 + b"\n"))
attack("config-many-values", "at most 250000", config_text(lambda raw: raw[:-2] + b',"x":[' + b"0," * 10**6 + b"0]}"))
attack("config-too-large", "at most 4194304", config_text(lambda raw: raw + b" " * (5 << 20)))
attack("config-duplicate-key", "'bits' occurs twice", config_text(lambda raw: b'{"bits":[3,2],' + raw[1:]))
attack("config-second-seal", "one member 'sha256'", config_text(lambda raw: b'{"sha256":"x",' + raw[1:]))
attack("config-nan", "NaN is not", config_text(lambda raw: raw.replace(b'"version":1', b'"version":NaN')))
attack(
    "config-infinity", "Infinity is not", config_text(lambda raw: raw.replace(b'"version":1', b'"version":-Infinity'))
)
attack("config-overflow", "infinite", config_text(lambda raw: raw.replace(b'"version":1', b'"version":1e999')))
attack(
    "config-long-number", "digits", config_text(lambda raw: raw.replace(b'"version":1', b'"version":' + b"9" * 9999))
)
attack("config-not-utf8", "config.json: expected JSON", config_text(lambda raw: raw.replace(b"tiny", b"\xff\xfe")))
attack("config-bom", "config.json", config_text(lambda raw: b"\xef\xbb\xbf" + raw))
attack("config-trailing", "Extra data", config_text(lambda raw: raw + b"{}"))

# config.json: members
attack("member-unknown", "differs in", put("more", 1))
attack("member-missing", "differs in", lambda f: f.config.pop("options"))
attack("format", "format: expected 'bitswitch'", put("format", "other"))
attack("version-later", "version: expected 1, found 2", put("version", 2))
attack("version-bool", "version: expected 1, found True", put("version", True))
attack("version-float", "version: expected 1, found 1.0", put("version", 1.0))
attack("bits-not-a-list", "bits: expected a list", put("bits", "32"))
attack("bits-bool", "bit-widths must be integers", put("bits", [3, True]))
attack("bits-nine", "between 2 and 8", put("bits", [9, 2]))
attack("bits-others", "do not fit the widths", put("bits", [4, 2]))
attack("precision-bool", "config.json: .*True", put("precision", True))
attack(
    "precision-unknown-layer",
    "no quantized layer is called 'nix'",
    put("precision", {"layers": {"nix": 3}, "default": 2}),
)
attack("precision-unprepared", "not prepared for 8", put("precision", 8))
attack("precision-keys", "'layers' and 'default'", put("precision", {"layers": {}}))
attack("options-unknown", "options: expected exactly", put("options", {"shared": True}))
attack("options-int-for-bool", "options: shared: expected true or false", put("options.shared", 1))
attack("options-parametrization", "scale_parametrization", put("options.scale_parametrization", "exp"))
attack("options-midrise-empty", "options: midrise: expected descending widths", put("options.midrise", []))
attack("options-midrise-number", "options: midrise: expected descending widths", put("options.midrise", 2))
attack("options-midrise-order", "options: midrise: expected descending widths", put("options.midrise", [2, 4]))
attack("options-midrise-stored", "midrise: at most 7 bits; got 8", put("options.midrise", [8]))
attack("options-inputs-empty", "activation_bits: expected widths by width", put("options.activation_bits", {}))
attack("options-inputs-name", "activation_bits: expected widths by width", put("options.activation_bits", {"02": 4}))
attack("options-inputs-width", "between 2 and 8", put("options.activation_bits", {"2": 9}))
attack("options-inputs-same", "expected another width than 2, found 2", put("options.activation_bits", {"2": 2}))
attack("options-unshared", "planes: expected 0 to 0", put("options.shared", False))

# config.json: the layer table
attack("layers-not-a-list", "must be a list", put("layers", {}))
attack("layers-twice", "names a layer twice", lambda f: f.config["layers"].append(f.config["layers"][0]))
attack("layer-unknown-field", "must have the fields", row("mid", "more", 1))
attack("layer-name-type", "field 'name'", row("mid", "name", 3))
attack("layer-name-nul", "without NUL", row("head", "name", "a\0b"))
attack("layer-name-long", "at most 512", row("head", "name", "a" * 600))
attack("layer-status", "field 'status'", row("mid", "status", "integer"))
attack("layer-shape-bool", "field 'shape'", row("mid", "shape", [3, 3, 1, True]))
attack("layer-shape-negative", "field 'shape'", row("mid", "shape", [3, -3, 1, 1]))
attack("layer-shape-huge", "shape: expected at most", row("mid", "shape", [2**40, 2**40, 1, 1]))
attack("layer-shape-huge-times-zero", "shape: expected at most", row("bn", "shape", [2**60, 0]))
attack("layer-shape-empty", "weight with elements", row("mid", "shape", []))
attack("layer-bits-order", "bits: .* do not fit", row("mid", "bits", [2, 3]))
attack("layer-bits-float-layer", "bits: .* do not fit", row("head", "status", "float"))
attack("layer-granularity", "granularity: expected one of", row("mid", "granularity", "row"))
attack("layer-group-zero", "field 'group_size'", row("mid", "group_size", 0))
attack("layer-group-without", "group_size: goes with", row("mid", "granularity", "group"))
attack("alias-nowhere", "alias_of: 'nix'", row("fc2", "alias_of", "nix"))
attack("alias-of-itself", "alias_of: 'fc2'", row("fc2", "alias_of", "fc2"))
attack("alias-of-another-shape", "another shape or other bits", row("fc2", "alias_of", "head"))
attack("alias-of-a-norm", "alias_of: 'bn'", row("fc2", "alias_of", "bn"))
attack("alias-of-float-nowhere", "alias_of: 'nix'", float_row(alias_of="nix"))
attack("alias-of-float-itself", "alias_of: 'extra'", float_row(alias_of="extra"))
attack("alias-of-float-and-quantized", "alias_of: 'mid'", float_row(alias_of="mid"))
attack("alias-of-a-norm-row", "alias_of: 'mid' is not a float layer", row("bn", "alias_of", "mid"))
attack("alias-of-float-with-count", "num_weights: expected it", float_row(alias_of="mid", num_weights=3))
attack("parameter-of-bits", "expected 'float' for a parameter", row("mid", "kind", "Parameter"))
attack("parameter-nowhere", "no parameter 'extra'", float_row(kind="Parameter", shape=[2, 2]))
attack("parameter-shape", "'stem.bias' has not the shape", float_row(kind="Parameter", name="stem.bias", shape=[2, 2]))
attack("count-of-a-quantized-layer", "num_weights: expected it", row("mid", "num_weights", 3))
attack("count-huge", "num_weights: expected it", float_row(num_weights=2**41))
attack("count-negative", "field 'num_weights'", float_row(num_weights=-1))
attack("count-bool", "field 'num_weights'", float_row(num_weights=True))
attack("count-null", "field 'num_weights'", float_row(num_weights=None))
attack("width-from-nowhere", "width_from: 'nix'", row("bn", "width_from", "nix"))
attack("width-from-missing-width", "width_from: 'stem'", row("bn", "width_from", "stem"))
attack("width-to-nowhere", "width_to: 'nix'", row("bn", "width_to", "nix"))
attack("width-to-of-a-layer", "width_to: 'mid'", row("head", "width_to", "mid"))
attack("width-to-type", "field 'width_to'", row("bn", "width_to", None))
attack("norm-single-width", "width_from: 'mid'|width_from is null", row("bn", "bits", [3]))

# config.json: weights and files
attack("weights-missing", "weights: expected one entry", lambda f: f.config["weights"].pop("mid"))
attack("weights-alias", "weights: expected one entry", lambda f: f.config["weights"].update(fc2={}))
attack("weight-shape-other", "has not as many elements", put("weights.mid.shape", [3, 4, 1, 1]))
attack("weight-shape-bool", "expected positive sizes", put("weights.mid.shape", [3, 3, 1, True]))
attack("weight-shape-rank", "has not as many elements", put("weights.mid.shape", [9]))
attack("weight-planes-many", "planes: expected 3 to 3, found 4", put("weights.mid.planes", 4))
attack("weight-planes-zero", "planes: expected 3 to 3, found 0", put("weights.mid.planes", 0))
attack("weight-planes-bool", "planes: expected 3 to 3, found True", put("weights.mid.planes", True))
attack("weight-planes-pinned", "planes: expected 0 to 0, found 8", put("weights.stem.planes", 8))
attack(
    "planes-one-less", "planes: expected a list of 3", lambda f: (put("planes.0", None)(f), f.config["planes"].pop())
)
for label, name in {
    "parent": "../base-0123456789abcdef.safetensors",
    "absolute": "/etc/passwd",
    "backslash": "..\\base.safetensors",
    "nul": "base\0.safetensors",
    "empty": "",
    "device": "/dev/zero",
    "case": "BASE-0123456789abcdef.safetensors",
    "number": 3,
    "folder": ".",
}.items():
    attack(f"file-name-{label}", r"base: file: expected 'base-\w{16}\.safetensors'", put("base.file", name))
attack("file-name-of-plane", r"planes\[1\]: file: expected 'plane-1-", put("planes.1.file", "plane-0"))
attack("file-hash-upper-case", "base: sha256: expected 64", put("base.sha256", "A" * 64))
attack("file-hash-newline", "base: sha256: expected 64", put("base.sha256", "a" * 64 + "\n"))
attack("file-hash-path", "base: sha256: expected 64", put("base.sha256", "../" * 21 + "x"))
attack("file-hash-type", "base: sha256: expected 64", put("base.sha256", None))
attack("file-size-bool", "base: size: expected", put("base.size", True))
attack("file-size-negative", "base: size: expected", put("base.size", -1))
attack("file-size-huge", "base: size: expected", put("base.size", 2**60))
attack("file-size-petabyte", r"base-.*: expected 1125899906842624 bytes, found", put("base.size", 2**50))
attack("file-record-extra", "base: expected exactly", put("base.url", "http://localhost"))

# Data files: the container
attack("data-empty", "size: expected 8", base_raw(lambda raw: b""))
attack("data-short", "size: expected 8", base_raw(lambda raw: raw[:7]))
attack("data-header-only-length", "header", base_raw(lambda raw: raw[:8]))
attack("header-length-zero", r"base-.*header", base_raw(lambda raw: bytes(8) + raw[8:]))
attack("header-length-huge", "header length", base_raw(lambda raw: b"\xff" * 8 + raw[8:]))
attack("header-length-odd", "header length", base_raw(lambda raw: struct.pack("<Q", raw[0] + 1) + raw[8:]))
attack("header-length-cap", "header length", base_raw(lambda raw: struct.pack("<Q", 5 << 20) + b" " * (6 << 20)))
attack("header-list", "expected a JSON object, found list", header_text(lambda raw: b"[]"))
attack("header-deep", "nested at most", header_text(lambda raw: b'{"a":' + b"[" * 100_000))
attack("header-duplicate", "occurs twice", header_text(lambda raw: raw[:-1] + b',"mid.weight_scale":{}}'))
attack("header-nan", "NaN", header_text(lambda raw: raw.replace(b'"shape":[]', b'"shape":[NaN]', 1)))
attack("header-metadata", "__metadata__", lambda f: f.base.header.update(__metadata__={"format": "pt"}))
attack("header-not-utf8", "header: expected JSON", header_text(lambda raw: raw.replace(b"mid", b"\xff\xff\xff", 1)))
attack("header-digits", "digits", header_text(lambda raw: raw.replace(b"[0,", b"[" + b"1" * 5000 + b",", 1)))
attack("data-truncated", "but the file has", lambda f: f.base.data.pop())
attack("data-appended", "but the file has", lambda f: f.base.data.append(0))
attack("tensor-unknown-dtype", "dtype: expected one of", entry("mid.weight_scale", "dtype", "F8_E4M3"))
attack("tensor-dtype-type", "dtype: expected one of", entry("mid.weight_scale", "dtype", ["F32"]))
attack("tensor-extra-field", "exactly dtype, shape", entry("mid.weight_scale", "offset", 0))
attack("tensor-shape-bool", "shape: expected", entry("mid.weight_scale", "shape", [True, 3]))
attack("tensor-shape-negative", "shape: expected", entry("mid.weight_scale", "shape", [-3, -1]))
attack("tensor-shape-rank", "shape: expected", entry("mid.weight_scale", "shape", [1] * 17))
attack("tensor-shape-overflow", "shape: expected at most", entry("mid.weight_scale", "shape", [2**32, 2**32, 3]))
attack("tensor-shape-wraps-to-three", "shape: expected at most", entry("mid.weight_scale", "shape", [2**63 + 1, 3]))
attack("tensor-shape-huge-times-zero", "shape: expected at most", entry("mid.weight_scale", "shape", [2**62, 0]))
attack("tensor-shape-large", "data_offsets: expected", entry("mid.weight_scale", "shape", [2**30]))
attack("offsets-reversed", "data_offsets: expected", entry("mid.weight_scale", "data_offsets", [12, 0]))
attack("offsets-three", "data_offsets: expected two", entry("mid.weight_scale", "data_offsets", [0, 6, 12]))
attack("offsets-float", "data_offsets: expected two", entry("mid.weight_scale", "data_offsets", [0.0, 12]))
attack("offsets-far", "without gap or overlap", entry("mid.weight_scale", "data_offsets", [2**39, 2**39 + 12]))
attack("offsets-unaligned", "aligned", entry("mid.weight_scale", "data_offsets", [2, 14]))
attack("offsets-overlap", "without gap or overlap", entry("mid.weight_scale", "data_offsets", [0, 12]))
attack("tensor-name-long", "at most 1024", lambda f: f.base.header.update(
    {"n" * 2000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))  # fmt: skip

# Data files: contents
attack(
    "scale-nan",
    "'mid.weight_scale': expected scales",
    lambda f: f.base.put("mid.weight_scale", struct.pack("<3f", 1, float("nan"), 1)),
)
attack("scale-zero", "'fc1.weight_scale': expected scales", scalar("fc1.weight_scale", "<f", 0.0))
attack("scale-negative", "'fc1.weight_scale': expected scales", scalar("fc1.weight_scale", "<f", -1.0))
attack("scale-infinite", "'fc1.weight_scale': expected scales", scalar("fc1.weight_scale", "<f", float("inf")))
attack("scale-overflows", "'fc1.weight_scale': expected scales", scalar("fc1.weight_scale", "<f", 3e38))
attack("input-scale-negative-zero", r"'fc1.input_scale.2': expected", scalar("fc1.input_scale.2", "<f", -0.0))
attack("scale-dtype", "'fc1.weight_scale': expected torch.float32", entry("fc1.weight_scale", "dtype", "I32"))
attack("scale-shape", "'mid.weight_scale': expected .*shape .3,", entry("mid.weight_scale", "shape", [3, 1]))
attack(
    "zero-point-large", "'fc1.input_zero_point.2': expected 0 to 3, found 4", scalar("fc1.input_zero_point.2", "<i", 4)
)
attack("zero-point-negative", "'fc1.input_zero_point.3': expected 0 to 7", scalar("fc1.input_zero_point.3", "<i", -1))
attack(
    "zero-point-float",
    "'fc1.input_zero_point.3': expected torch.int32",
    entry("fc1.input_zero_point.3", "dtype", "F32"),
)
attack(
    "variance-negative",
    "'bn.norms.2.running_var': expected values",
    lambda f: f.base.put("bn.norms.2.running_var", struct.pack("<3f", 1, -1, 1)),
)
attack(
    "variance-nan",
    "'bn.norms.2.running_var': contains NaN",
    lambda f: f.base.put("bn.norms.2.running_var", struct.pack("<3f", 1, float("nan"), 1)),
)
attack(
    "mean-infinite",
    "'bn.norms.3.running_mean': expected finite",
    lambda f: f.base.put("bn.norms.3.running_mean", struct.pack("<3f", 1, float("inf"), 1)),
)
attack("batches-negative", "num_batches_tracked", scalar("bn.norms.3.num_batches_tracked", "<q", -1))
attack("bias-nan", "'mid.bias': contains NaN", lambda f: f.base.put("mid.bias", struct.pack("<3f", 0, float("nan"), 0)))
attack(
    "bias-infinite",
    "'mid.bias': has NaN or infinite",
    lambda f: f.base.put("mid.bias", struct.pack("<3f", 0, float("inf"), 0)),
)
attack(
    "tensor-renamed",
    "'mid.weight_scale'",
    lambda f: f.base.header.update({"Mid.weight_scale": f.base.header.pop("mid.weight_scale")}),
)
attack("bias-renamed", "'mid.bias'", lambda f: f.base.header.update({"mid.Bias": f.base.header.pop("mid.bias")}))
attack(
    "tensor-added",
    "nothing needs: '../x'",
    lambda f: f.base.header.update({"../x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
)
attack("pinned-codes-dtype", "'stem.weight_codes': expected torch.int8", entry("stem.weight_codes", "dtype", "U8"))
attack(
    "plane-layer-missing",
    r"plane-1-.*: lacks tensors .*'mid'",
    lambda f: f.planes[1].header.update(x=f.planes[1].header.pop("mid")),
)
attack(
    "plane-layer-unneeded",
    r"plane-1-.*nothing needs: 'stem'",
    lambda f: f.planes[1].header.update(stem={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
)
attack("plane-dtype", r"plane-0-.*'mid': expected torch.uint8", lambda f: f.planes[0].header["mid"].update(dtype="I8"))
attack(
    "plane-shape", r"plane-0-.*'mid': expected .*shape .2,", lambda f: f.planes[0].header["mid"].update(shape=[2, 1])
)
attack("plane-too-small", r"plane-0-.*'mid': expected", lambda f: (
    f.planes[0].header["mid"].update(shape=[1], data_offsets=[2, 3]), f.planes[0].data.pop()))  # fmt: skip
attack("plane-padding", r"plane-2-.*'mid': expected the 7 bits after", lambda f: f.planes[2].data.__setitem__(3, 0x81))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_checkpoint(folder)
    return folder


def test_unchanged_parts_are_accepted(good: Path, tmp_path: Path) -> None:
    Forge(good).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == Forge(good).original
    checkpoint.load(tmp_path, into=Tiny())


@pytest.mark.parametrize("name", ATTACKS)
def test_forged(name: str, good: Path, tmp_path: Path) -> None:
    change, message = ATTACKS[name]
    forge = Forge(good)
    change(forge)
    forge.write(tmp_path)
    into = Tiny()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.load(tmp_path, into=into)
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (16 << 20)
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, MissingPlanesError)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 100


@pytest.mark.parametrize("names", [("mid",), ("fc1", "fc2")])
def test_a_huge_claim_costs_nothing(names: tuple[str, ...], good: Path, tmp_path: Path) -> None:
    """The layer table, the headers and the records agree on half a terabyte; the files do not have it."""
    forge = Forge(good)
    size, name = 2**39, names[0]
    shape = [size, *[1] * (len(forge.layers[name]["shape"]) - 1)]
    for user in names:
        forge.layers[user]["shape"] = shape
    forge.config["weights"][name]["shape"] = shape
    for plane in forge.planes:
        begin = plane.header[name]["data_offsets"][0]
        plane.header[name].update(shape=[size // 8], data_offsets=[begin, begin + size // 8])
    forge.write(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="mid.weight_scale" if name == "mid" else "plane-0-.*data_offsets"):
            checkpoint.verify(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_messages_do_not_repeat_a_hostile_file(good: Path, tmp_path: Path) -> None:
    forge = Forge(good)
    forge.config["architecture"] = "x" * 1_000_000
    forge.config["precision"] = {"layers": {"y" * 100_000: 3}, "default": 2}
    forge.write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_info(tmp_path)
    assert len(str(caught.value)) < 1500
    assert not re.search("y{1000}", str(caught.value))


def test_architecture_is_any_json(good: Path, tmp_path: Path) -> None:
    forge = Forge(good)
    forge.config["architecture"] = json.loads('{"sha256": [1.5, null, "\\ud800"], "": {}}')
    forge.write(tmp_path)
    assert checkpoint.read_info(tmp_path).config.architecture["sha256"][0] == 1.5
