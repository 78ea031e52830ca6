"""Test pictures whose class the compressed network changes: seen while the test data are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirabelle.base import png
from mirabelle.base.data import Batch
from mirabelle.base.files import read_json, write_json
from mirabelle.measurement.accuracy import as_tensor
from mirabelle.sources.preprocessing import Preprocessing

MOST = 12  # examples of a network on a runtime
SIDE = 64  # pixels: larger pictures are shrunk
LEAST = 8  # pixels: what is smaller is no picture
BYTES = 1_000_000  # of all pictures that are kept of a run
FILE = "changed.json"


@dataclass(frozen=True)
class Example:
    """A test sample by its place in the test data, its class before and after, its label where
    there is one, and its picture as a data URI.
    """

    index: int
    before: int
    after: int
    label: int | None
    picture: str


@dataclass(frozen=True)
class Changed:
    """How many of n test samples have another class than with the original network. gained, lost:
    how many of them are right now, and were right before; None without labels. examples: the first
    ones.
    """

    n: int = 0
    changed: int = 0
    gained: int | None = None
    lost: int | None = None
    examples: tuple[Example, ...] = ()


@dataclass
class Album:
    """The pictures of a run, each once. how: how they were brought to the network, where that is
    known; else values from the smallest to the largest of a sample are black to white.
    """

    how: Preprocessing | None = None
    pictures: dict[int, str] = field(default_factory=dict)
    bytes: int = 0

    def picture(self, index: int, batch: Batch, place: int) -> str | None:
        """The picture of a sample of a batch; None for what is no picture, and where those that
        are kept are large enough together.
        """
        if index not in self.pictures:
            pixels = pixels_of(batch, place, self.how)
            if pixels is None:
                return None
            found = png.uri(png.encode(png.shrunk(pixels, SIDE)))
            if self.bytes + len(found) > BYTES:
                return None
            self.bytes += len(found)
            self.pictures[index] = found
        return self.pictures[index]


def pixels_of(batch: Batch, place: int, how: Preprocessing | None) -> np.ndarray | None:
    """(height, width, 1 or 3) of bytes; None where no input of the batch is a picture."""
    for tensor in batch.tensors:
        if tensor.ndim != 4:
            continue
        values = tensor[place].detach().cpu().numpy()
        if how is not None and values.shape == how.shape:
            return np.ascontiguousarray(how.pixels_of(values))
        if values.shape[0] in png.COLORS and min(values.shape[1:]) >= LEAST:
            return scaled(values.transpose(1, 2, 0).astype(np.float32))
    return None


def scaled(values: np.ndarray) -> np.ndarray:
    """Bytes: 0 for the smallest value, 255 for the largest; one value alone is 0."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)


def classes(output: Any, target: Any, agreeing: bool) -> torch.Tensor | None:
    """The class of each sample, (N,); None where the outputs are no scores of classes.

    agreeing: targets are another network's outputs. Else they have to be the numbers of classes.
    """
    scores = as_tensor(output)
    if scores.ndim != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        return None
    if not agreeing and labels(target, len(scores)) is None:
        return None
    return scores.argmax(1).cpu()


def labels(target: Any, size: int) -> torch.Tensor | None:
    """Targets that are numbers of classes, (N,)."""
    if not isinstance(target, torch.Tensor) or target.shape != (size,):
        return None
    whole = not target.is_floating_point() and target.dtype != torch.bool
    return target.cpu() if whole else None


class Watch:
    """Sees what networks answer to the test data, in the loader's order: the original on a runtime
    first, then what came of it.

    album: where pictures are put. agreeing: the targets are the original's outputs.
    """

    def __init__(self, album: Album, agreeing: bool):
        self.album, self.agreeing = album, agreeing
        self.original: dict[str, list[torch.Tensor | None]] = {}
        self.found: dict[str, Changed] = {}

    def watched(
        self, predict: Callable[[Batch], Any], stage: str, runtime: str
    ) -> Callable[[Batch], Any]:
        """`predict`, which is looked at while it is called once for each batch."""
        first = runtime not in self.original
        seen = self.original.setdefault(runtime, [])
        number = 0

        def answer(batch: Batch) -> Any:
            nonlocal number
            output = predict(batch)
            now = classes(output, batch.target, self.agreeing)
            if first:
                seen.append(now)
            elif now is not None and number < len(seen):
                self._compare(f"{stage}/{runtime}", batch, seen[number], now)
            number += 1
            return output

        return answer

    def _compare(
        self, key: str, batch: Batch, before: torch.Tensor | None, after: torch.Tensor
    ) -> None:
        if before is None or len(before) != len(after):
            return
        known = self.found.get(key, Changed())
        places = (before != after).nonzero().flatten().tolist()
        target = None if self.agreeing else labels(batch.target, len(after))
        examples = list(known.examples)
        for i in places:
            index = known.n + i
            drawn = self.album.picture(index, batch, i) if len(examples) < MOST else None
            if drawn is not None:
                label = None if target is None else int(target[i])
                examples.append(Example(index, int(before[i]), int(after[i]), label, drawn))
        found = replace(known, n=known.n + len(after), changed=known.changed + len(places))
        if target is not None:
            gained = int(((after == target) & (before != target)).sum())
            lost = int(((before == target) & (after != target)).sum())
            found = replace(
                found, gained=(known.gained or 0) + gained, lost=(known.lost or 0) + lost
            )
        self.found[key] = replace(found, examples=tuple(examples))

    def write(self, folder: Path) -> None:
        """Puts what was seen into the folder of a step."""
        write_json(folder / FILE, {k: asdict(v) for k, v in self.found.items()})


def read_changed(
    folder: Path, stage: str, runtime: str, names: tuple[str, ...], exact: bool
) -> dict[str, Any] | None:
    """What a report says of a network: `Changed` with its stage and runtime; None where nothing is
    known, or no example is a picture.

    names: of the classes, which stand for their numbers. exact: the colors are those of the files.
    """
    if not (folder / FILE).is_file():
        return None
    found = read_json(folder / FILE).get(f"{stage}/{runtime}")
    return found and described(found, stage, runtime, names, exact)


def described(
    found: Mapping[str, Any], stage: str, runtime: str, names: tuple[str, ...], exact: bool
) -> dict[str, Any] | None:
    """`read_changed` of what is already there, as JSON."""
    if not found["examples"]:
        return None

    def named(number: int | None) -> str | None:
        if number is None:
            return None
        return names[number] if number < len(names) else str(number)

    examples = [
        {**e, **{k: named(e[k]) for k in ("before", "after", "label")}} for e in found["examples"]
    ]
    return {**found, "examples": examples, "stage": stage, "runtime": runtime, "colors": exact}
