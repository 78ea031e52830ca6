"""A contact sheet: pictures as the network sees them, so that a wrong crop or color is seen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mirabelle.base.files import atomic
from mirabelle.base.png import uri
from mirabelle.runtimes.artifact import require
from mirabelle.sources.data import Data
from mirabelle.sources.samples import Samples, UnreadableError

COLUMNS, ROWS, SIDE = 6, 3, 96


def tiles(data: Data, count: int = COLUMNS * ROWS) -> list[tuple[np.ndarray, str]]:
    """(height, width, 3) of bytes and a caption, of the first calibration samples: what the network
    takes, turned back into colors. Empty where the data are no pictures.
    """
    loader, how = data.loaders.calibration, data.how
    if not isinstance(loader, Samples) or how is None:
        return []
    found = []
    for index in loader.indices:
        try:
            value, target = loader.table.read(int(index))
        except UnreadableError:
            continue
        if not isinstance(value, np.ndarray) or value.shape != how.shape:
            return []
        pixels = how.pixels_of(value)
        classes = loader.table.classes
        name = classes[target] if classes and isinstance(target, int) else target
        found.append(
            (np.repeat(pixels, 3 // pixels.shape[2], 2), "" if name is None else str(name))
        )
        if len(found) == count:
            break
    return found


def sheet(data: Data) -> Any:
    """The contact sheet as a PIL image; None where the data are no pictures."""
    shown = tiles(data)
    return _drawn([pixels for pixels, _ in shown]) if shown else None


def _drawn(shown: list[np.ndarray]) -> Any:
    image = require("PIL.Image", "images")
    rows = -(-len(shown) // COLUMNS)
    canvas = image.new("RGB", (COLUMNS * (SIDE + 4), rows * (SIDE + 4)), "white")
    for place, pixels in enumerate(shown):
        times = max(1, SIDE // max(pixels.shape[:2]))  # a small picture is shown larger
        tile = image.fromarray(np.ascontiguousarray(pixels.repeat(times, 0).repeat(times, 1)))
        tile.thumbnail((SIDE, SIDE))
        corner = (place % COLUMNS * (SIDE + 4) + 2, place // COLUMNS * (SIDE + 4) + 2)
        canvas.paste(tile, corner)
    return canvas


def write_sheet(data: Data, path: Any) -> bool:
    """Writes the contact sheet as PNG; whether there was one."""
    picture = sheet(data)
    if picture is None:
        return False
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return True


def described(data: Data) -> dict[str, Any] | None:
    """The contact sheet for a report: `picture`, a data URI, and `captions`, the classes of its
    tiles row by row, empty where there are none. None where the data are no pictures.
    """
    shown = tiles(data)
    if not shown:
        return None
    buffer = io.BytesIO()
    _drawn([pixels for pixels, _ in shown]).save(buffer, format="PNG", optimize=True)
    return {
        "picture": uri(buffer.getvalue()),
        "columns": COLUMNS,
        "captions": [name for _, name in shown],
    }
