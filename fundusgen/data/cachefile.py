"""The file format of the cache: framed pixels, mapped into memory, that prove to be whole.

    offset 0      magic, pixel bytes, trailer bytes, SHA-256 of pixels and trailer
    offset 4096   pixels, uint8, NHWC
    after them    trailer, JSON: key, shape, which rows were kept, problems of the others

The digest and the lengths are written last, so a file that broke off is never taken for whole.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundusgen.storage import replacing

MAGIC = b"FUNDUSC2"
HEADER = struct.Struct("<8sQQ32s")
PIXELS_OFFSET = 4096
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class CacheContent:
    """What a cache file holds.

    Attributes:
        images_NHWC: uint8, mapped read-only.
        trailer: What was written beside the pixels.
    """

    images_NHWC: np.memmap[Any, np.dtype[np.uint8]]
    trailer: Mapping[str, Any]


def write_cache(
    path: Path, images: Iterable[NDArray[np.uint8]], size_px: int, trailer: dict[str, Any]
) -> None:
    """Write a cache file at once, readable by its owner only.

    Args:
        path: File to write or replace.
        images: Framed images one after the other, uint8, (size_px, size_px, 3).
        size_px: Side of each.
        trailer: Goes after the pixels as JSON; may still be filled while `images` is consumed.
    """
    with replacing(path, mode=0o600) as temporary, temporary.open("wb") as stream:
        stream.write(bytes(PIXELS_OFFSET))
        digest = hashlib.sha256()
        count = 0
        for image_HWC in images:
            content = image_HWC.tobytes()
            digest.update(content)
            stream.write(content)
            count += 1
        trailer["shape"] = [count, size_px, size_px, 3]
        text = json.dumps(trailer).encode()
        digest.update(text)
        stream.write(text)
        pixel_bytes = count * size_px * size_px * 3
        stream.seek(0)
        stream.write(HEADER.pack(MAGIC, pixel_bytes, len(text), digest.digest()))


def read_cache(path: Path, key: str) -> CacheContent | None:
    """Open a cache file if it is there, whole and of the given key.

    Args:
        path: The file.
        key: What its trailer must hold under `key`.

    Returns:
        Its content, or None if it is absent, damaged, of another key, or without images.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(HEADER.size)
            if len(head) < HEADER.size:
                return None
            magic, pixel_bytes, trailer_bytes, expected = HEADER.unpack(head)
            length = stream.seek(0, 2)
            if magic != MAGIC or length != PIXELS_OFFSET + pixel_bytes + trailer_bytes:
                return None
            stream.seek(PIXELS_OFFSET)
            digest = hashlib.sha256()
            remaining = pixel_bytes
            while remaining:
                chunk = stream.read(min(CHUNK_BYTES, remaining))
                digest.update(chunk)
                remaining -= len(chunk)
                if not chunk:
                    return None
            text = stream.read(trailer_bytes)
            digest.update(text)
            if digest.digest() != expected or not pixel_bytes:
                return None
            trailer = json.loads(text)
            if trailer["key"] != key:
                return None
            # Mapped from the open file: another process may replace the name meanwhile.
            images_NHWC = np.memmap(
                stream, np.uint8, "r", offset=PIXELS_OFFSET, shape=tuple(trailer["shape"])
            )
    except OSError:
        return None
    return CacheContent(images_NHWC, trailer)
