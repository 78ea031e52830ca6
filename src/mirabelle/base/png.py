"""Small pictures inside of text: PNG without a library for pictures, and data URIs."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np

from mirabelle.base.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLORS = {1: 0, 3: 2}  # PNG's color types by channels: gray and RGB
URI = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def encode(pixels: np.ndarray) -> bytes:
    """A PNG file of bytes.

    pixels: (height, width, 1 or 3) of uint8, gray or red, green, blue.
    Raises `InputError` for other shapes or types. Equal pixels give equal bytes with the same
    zlib. Every row has filter 0. PNG specification, third edition, sections 5 and 11.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in COLORS or pixels.dtype != np.uint8:
        raise InputError(
            f"a PNG file is made of (height, width, 1 or 3) of uint8, got {pixels.shape} of "
            f"{pixels.dtype}"
        )
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLORS[channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 9)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def uri(file: bytes) -> str:
    """The data URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """(height, width, channels) of bytes with no side longer than `side`: each pixel is the mean
    of a square of pixels. What is small enough stays; rows and columns that fill no square go.
    """
    step = -(-max(pixels.shape[:2]) // side)
    if step == 1:
        return pixels
    step = min(step, *pixels.shape[:2])
    height, width = (s // step for s in pixels.shape[:2])
    squares = pixels[: height * step, : width * step].reshape(height, step, width, step, -1)
    return np.rint(squares.mean((1, 3))).astype(np.uint8)
