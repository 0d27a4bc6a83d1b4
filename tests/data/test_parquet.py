"""Parquet files in the layout of Hugging Face, whole and damaged; CIFAR-10 in its usual folders."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from bitswitch.data import CIFAR10_CLASSES, load_cifar10, read_parquet
from bitswitch.errors import ConfigError


def _pixels(n: int, height: int = 5, width: int = 4, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, channels), np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "png")
    return buffer.getvalue()


def _write(path: Path, images: list[Any], labels: list[Any], metadata: dict[str, Any] | None = None) -> Path:
    rows = [image if image is None else {"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(rows, struct), "label": pa.array(labels, pa.int64())})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_reads_exactly_what_was_written(tmp_path: Path) -> None:
    pixels = _pixels(8)
    path = _write(tmp_path / "a.parquet", [_png(p) for p in pixels], [0, 1, 2, 0, 1, 2, 0, 1])
    data = read_parquet(path)
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert data.classes == ("0", "1", "2")
    assert data.images.is_contiguous()


def test_several_files_and_more_rows_than_a_thread_takes(tmp_path: Path) -> None:
    pixels = _pixels(600, 2, 2)
    encoded = [_png(p) for p in pixels]
    a = _write(tmp_path / "a.parquet", encoded[:590], [0] * 590)
    b = _write(tmp_path / "b.parquet", encoded[590:], [1] * 10)
    data = read_parquet(a, b, classes=("x", "y"))
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [0] * 590 + [1] * 10


def test_grey_images_and_class_names_from_the_metadata(tmp_path: Path) -> None:
    pixels = _pixels(2, channels=1)
    metadata = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    path = _write(tmp_path / "a.parquet", [_png(p) for p in pixels], [1, 0], metadata)
    data = read_parquet(path, mode="L")
    assert data.classes == ("cat", "dog")
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert read_parquet(path).images.shape == (2, 3, 5, 4)


@pytest.mark.parametrize("metadata", [{}, {"info": None}, {"info": {"features": {"label": {"names": None}}}}])
def test_odd_metadata_is_no_obstacle(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = _write(tmp_path / "a.parquet", [_png(p) for p in _pixels(2)], [1, 0], metadata)
    assert read_parquet(path).classes == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"ok", b"broken"], [0, 1], r"a\.parquet, row 1 \(1\.png\): not a readable image"),
        ([b"ok", b"cut"], [0, 1], r"a\.parquet, row 1 \(1\.png\): not a readable image"),
        ([b"ok", b"larger"], [0, 1], r"row 1 \(1\.png\): 5×6 pixels, but the images before it have 4×5"),
        ([b"ok", None], [0, 1], r"a\.parquet, row 1: 'img' holds no image bytes"),
        ([b"ok", b""], [0, 1], r"row 1: 'img' holds no image bytes \(path: 1\.png\)"),
        ([b"ok", b"ok"], [0, None], r"a\.parquet, row 1: None is not a label"),
        ([b"ok", b"ok"], [0, -1], r"a\.parquet, row 1: -1 is not a label"),
        ([b"ok", b"ok"], [0, 3], r"a\.parquet, row 1: 3 is not a label of 2 classes"),
        ([b"ok", b"ok"], [1, 1], r"a\.parquet has no image of 1 of 2 classes: cat"),
        ([], [], r"a\.parquet has no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, images: list[Any], labels: list[Any], message: str) -> None:
    good = _png(_pixels(1)[0])
    content = {b"ok": good, b"broken": b"broken", b"cut": good[:-30], b"larger": _png(_pixels(1, 6, 5)[0])}
    path = _write(tmp_path / "a.parquet", [content.get(image, image) for image in images], labels)
    with pytest.raises(ConfigError, match=message):
        read_parquet(path, classes=("cat", "dog"))


def test_files_of_different_sizes(tmp_path: Path) -> None:
    a = _write(tmp_path / "a.parquet", [_png(_pixels(1)[0])], [0])
    b = _write(tmp_path / "b.parquet", [_png(_pixels(1, 6, 6)[0])], [0])
    with pytest.raises(ConfigError, match="differ in size"):
        read_parquet(a, b)


def test_bad_files_and_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.parquet does not exist"):
        read_parquet(tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="at least one file"):
        read_parquet()
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 noise")
    with pytest.raises(ConfigError, match=r"noise\.parquet is not a readable Parquet file"):
        read_parquet(tmp_path / "noise.parquet")
    path = _write(tmp_path / "a.parquet", [_png(_pixels(1)[0])], [0])
    with pytest.raises(ConfigError, match="has no column 'image'; its columns are img, label"):
        read_parquet(path, image_column="image")
    with pytest.raises(ConfigError, match="column 'label' is int64, not a struct with the field 'bytes'"):
        read_parquet(path, image_column="label")
    with pytest.raises(ConfigError, match=r"column 'img' is struct<.*>, not integers"):
        read_parquet(path, label_column="img")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"reading Parquet files needs the package pyarrow: pip install"):
        read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["test.parquet", "test-00000-of-00001.parquet", "plain_text/test-0.parquet"])
def test_cifar10_as_parquet(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    pixels = _pixels(10, 32, 32)
    _write(tmp_path / name, [_png(p) for p in pixels], list(range(10)))
    data = load_cifar10(tmp_path, "test")
    assert data.classes == CIFAR10_CLASSES
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_cifar10_as_torchvision_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = _pixels(10, 32, 32)
    flat = pixels.transpose(0, 3, 1, 2).reshape(10, -1)
    with open(folder / "test_batch", "wb") as file:
        pickle.dump({"data": flat, "labels": list(range(10))}, file)
    with open(folder / torchvision.datasets.CIFAR10.meta["filename"], "wb") as file:
        pickle.dump({"label_names": list(CIFAR10_CLASSES)}, file)
    data = load_cifar10(tmp_path, "test")
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.labels.tolist() == list(range(10))


def test_cifar10_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no CIFAR-10 in .*: expected train\.parquet"):
        load_cifar10(tmp_path, "train")
    with pytest.raises(ConfigError, match="got 'valid'"):
        load_cifar10(tmp_path, "valid")  # pyright: ignore[reportArgumentType]
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ConfigError, match="cannot read CIFAR-10"):
        load_cifar10(tmp_path, "train")
