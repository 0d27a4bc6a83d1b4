"""Image sets stored as Parquet files in the layout of Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitswitch.data.decode import Mode, decode_images
from bitswitch.data.images import ImageSet
from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import import_optional


def read_parquet(
    *paths: str | PathLike[str],
    image_column: str = "img",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
    mode: Mode = "RGB",
) -> ImageSet:
    """Read labelled images of one size into memory.

    Args:
        *paths: the files of one split, in order.
        image_column: column of structs {bytes, path}; the encoded image is in `bytes`.
        label_column: column of integers.
        classes: names of the classes; None takes them from the file's metadata, or numbers them.
        mode: "RGB", or "L" for grey.

    Raises:
        ConfigError: a file is missing or damaged, a column is missing or of another type, an image cannot be decoded
            or has another size, a label is missing or outside the classes, a class has no image. The message names
            the file and the row.
    """
    if not paths:
        raise ConfigError("read_parquet needs at least one file")
    tables = [_read_table(Path(path), image_column, label_column) for path in paths]
    names = tuple(classes or _stored_classes(tables[0], label_column))
    images, labels = [], []
    for path, table in zip(paths, tables, strict=True):
        rows = table.column(image_column).to_pylist()
        images.append(_images(rows, mode, str(path), image_column))
        labels.append(_labels(table.column(label_column).to_pylist(), len(names), str(path)))
    if any(part.shape[1:] != images[0].shape[1:] for part in images):
        raise ConfigError(f"the images in {', '.join(map(str, paths))} differ in size")
    all_labels = torch.cat(labels)
    names = names or tuple(str(label) for label in range(int(all_labels.max()) + 1))
    _check_classes_present(all_labels, names, ", ".join(map(str, paths)))
    return ImageSet(torch.cat(images), all_labels, names)


def _read_table(path: Path, image_column: str, label_column: str) -> Any:
    parquet = import_optional("pyarrow.parquet", "reading Parquet files")
    types = import_optional("pyarrow.types", "reading Parquet files")
    if not path.is_file():
        raise ConfigError(f"the data file {path} does not exist")
    try:
        schema = parquet.read_schema(path)
        for column in (image_column, label_column):
            if column not in schema.names:
                raise ConfigError(f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}")
        image_type, label_type = (schema.field(column).type for column in (image_column, label_column))
        if not types.is_struct(image_type) or "bytes" not in [image_type[i].name for i in range(image_type.num_fields)]:
            raise ConfigError(f"{path}: column {image_column!r} is {image_type}, not a struct with the field 'bytes'")
        if not types.is_integer(label_type):
            raise ConfigError(f"{path}: column {label_column!r} is {label_type}, not integers")
        table = parquet.read_table(path, columns=[image_column, label_column])
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from error
    if table.num_rows == 0:
        raise ConfigError(f"{path} has no rows")
    return table


def _stored_classes(table: Any, label_column: str) -> list[str]:
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata)["info"]["features"][label_column]["names"] if metadata else []
        return [str(name) for name in names]
    except (ValueError, KeyError, TypeError):
        return []


def _images(rows: list[Any], mode: Mode, path: str, column: str) -> Tensor:
    encoded, names = [], []
    for i, row in enumerate(rows):
        data = row and row["bytes"]
        inner = row and row.get("path")
        if not data:
            raise ConfigError(f"{path}, row {i}: {column!r} holds no image bytes (path: {inner})")
        encoded.append(data)
        names.append(f"{path}, row {i}" + (f" ({inner})" if inner else ""))
    return torch.from_numpy(decode_images(encoded, mode, names)).permute(0, 3, 1, 2).contiguous()


def _labels(values: list[int | None], num_classes: int, path: str) -> Tensor:
    for i, value in enumerate(values):
        if value is None or value < 0 or (num_classes and value >= num_classes):
            limit = f" of {num_classes} classes" if num_classes else ""
            raise ConfigError(f"{path}, row {i}: {value} is not a label{limit}")
    return torch.tensor(values, dtype=torch.int64)


def _check_classes_present(labels: Tensor, classes: tuple[str, ...], paths: str) -> None:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise ConfigError(f"{paths} has no image of {len(empty)} of {len(classes)} classes: {', '.join(empty[:8])}")
