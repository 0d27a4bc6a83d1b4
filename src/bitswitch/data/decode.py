"""Image files to uint8 arrays, with errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np

from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import import_optional

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["RGB", "L"]
_CHUNK = 256


def open_image(source: bytes | str | PathLike[str], mode: Mode, name: str) -> Image.Image:
    """Decode one image.

    Args:
        source: the encoded bytes, or a path.
        mode: "RGB", or "L" for grey.
        name: what to call the image in the error.

    Raises:
        ConfigError: it cannot be decoded.
    """
    pillow = import_optional("PIL.Image", "reading images")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert(mode)
    except Exception as error:
        # Pillow's decoders raise nearly anything on damaged files (OSError, SyntaxError, struct.error …).
        raise ConfigError(f"{name}: not a readable image ({error})") from error


def decode_images(encoded: Sequence[bytes], mode: Mode, names: Sequence[str]) -> np.ndarray:
    """Decode many images of one size with a thread pool.

    Args:
        encoded: at least one encoded image.
        mode: "RGB", or "L" for grey.
        names: what to call each of them in errors.

    Returns:
        uint8 (N, H, W, C) with C = 3 or 1.

    Raises:
        ConfigError: an image cannot be decoded, or its size differs from that of the first.
    """
    width, height = open_image(encoded[0], mode, names[0]).size
    out = np.empty((len(encoded), height, width, len(mode)), np.uint8)

    def decode(first: int) -> None:
        for i in range(first, min(first + _CHUNK, len(encoded))):
            image = open_image(encoded[i], mode, names[i])
            if image.size != (width, height):
                raise ConfigError(
                    f"{names[i]}: {image.width}×{image.height} pixels, but the images before it have {width}×{height}; "
                    "images of several sizes have to be read from a folder"
                )
            out[i] = np.asarray(image).reshape(height, width, len(mode))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(0, len(encoded), _CHUNK)))
    return out
