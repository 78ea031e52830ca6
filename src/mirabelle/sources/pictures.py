"""Folders and lists of pictures."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.runtimes.artifact import require
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.samples import PARTS, Table, UnreadableError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "calib": "calibration",
    "test": "test",
}
PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
LABELS = ("label", "target", "class", "y", "category")
GROUPS = ("group", "groups", "group_id", "patient", "scene", "source")
LARGEST_PICTURE = 2**28  # pixels
LARGEST_TABLE = 10**7  # rows


@dataclass(frozen=True)
class Picture:
    """How a sample of a folder or a list is read."""

    paths: Sequence[Path]
    targets: Sequence[Any] | None
    how: Preprocessing

    def __call__(self, index: int) -> tuple[np.ndarray, Any]:
        pixels = self.how.pixels(opened(self.paths[index]))
        target = None if self.targets is None else self.targets[index]
        return self.how.normalized(pixels), target


def opened(path: Path) -> Any:
    """The PIL image in a file, turned as its camera says. `UnreadableError` where it is damaged."""
    image_of, turned = require("PIL.Image", "images"), require("PIL.ImageOps", "images")
    try:
        with warnings.catch_warnings():  # of cameras' own fields, and of sizes checked here
            warnings.simplefilter("ignore")
            image = image_of.open(path)
            if image.width * image.height > LARGEST_PICTURE:
                raise ValueError(f"{image.width}x{image.height} pixels")
            image.load()
            return turned.exif_transpose(image)
    except Exception as error:  # of a dozen decoders
        raise UnreadableError(
            f"{path} is no whole picture ({type(error).__name__}: {error})"
        ) from error


def folder(path: Path, how: Preprocessing, classes: Sequence[str] | None) -> Table:
    """Pictures of a folder and those below it, read when they are needed.

    Folders in it that are called after parts (train, val, test) are these; folders below are
    classes, numbered in the order of their names, or as `classes` says. A folder of pictures alone
    has no labels.
    """
    require("PIL.Image", "images")
    parts = _part_folders(path)
    found: list[tuple[str | None, str | None, Path]] = []  # part, class, file
    for part, where in parts or [(None, path)]:
        found += [(part, name, file) for name, file in _in_classes(where)]
    if not found:
        raise InputError(f"{path} holds no picture; expected files such as {', '.join(SUFFIXES)}")
    names = sorted({c for _, c, _ in found if c is not None})
    known = list(classes) if classes else names
    if strangers := [n for n in names if n not in known]:
        raise InputError(
            f"{path}: the folder {strangers[0]!r} is none of the network's {len(known)} classes"
            f"{did_you_mean(strangers[0], known)}"
        )
    number = {name: i for i, name in enumerate(known)}
    labeled = bool(names) and all(c is not None for _, c, _ in found)
    if names and not labeled:
        stray = next(f for _, c, f in found if c is None)
        raise InputError(
            f"{path} holds folders of classes and pictures beside them, such as {stray.name}; "
            "move these into a class, or give a folder of pictures alone"
        )
    files = [f for _, _, f in found]
    targets = [number[c] for _, c, _ in found if c is not None] if labeled else None
    return Table(
        Picture(files, targets, how),
        [str(f.relative_to(path)) for f in files],
        labeled,
        parts=[p for p, _, _ in found if p is not None] if parts else None,
        classes=tuple(known) if labeled else (),
    )


def _part_folders(path: Path) -> list[tuple[str, Path]]:
    inner = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [(PART_NAMES[p.name.lower()], p) for p in inner if p.name.lower() in PART_NAMES]
    return found if found and len(found) == len(inner) else []


def _in_classes(path: Path) -> Iterator[tuple[str | None, Path]]:
    """(class, file): the class is the first folder below; None for files that lie in none."""
    for inner in sorted(path.iterdir()):
        if inner.name.startswith("."):
            continue
        if inner.is_dir():
            yield from ((inner.name, f) for f in sorted(inner.rglob("*")) if _is_picture(f))
        elif _is_picture(inner):
            yield None, inner


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def listed(path: Path, how: Preprocessing, classes: Sequence[str] | None) -> Table:
    """A CSV file: a column of paths, from the file's folder on, and where there are any a column of
    labels, of groups that stay together, and of parts (train, calibration, validation, test).
    """
    require("PIL.Image", "images")
    rows = _rows(path)
    columns = {c.strip().lower(): c for c in rows[0]}
    where = _column(columns, PATHS)
    if where is None:
        raise InputError(
            f"{path} has no column of paths; expected one called {', '.join(PATHS[:3])}, found "
            f"{', '.join(rows[0])}"
        )
    label, group = _column(columns, LABELS), _column(columns, GROUPS)
    part = _column(columns, ("part", "split", "set"))
    files = [path.parent / row[where] for row in rows]
    for number, file in enumerate(files, 2):
        if not file.is_file():
            raise InputError(f"{path}, line {number}: {file} is not there")
    targets, names = (None, ()) if label is None else _labels(rows, label, classes, path)
    return Table(
        Picture(files, targets, how),
        [row[where] for row in rows],
        label is not None,
        None if group is None else [row[group] for row in rows],
        None if part is None else _parts(rows, part, path),
        names,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has not as many fields as the first")
                rows.append(row)
                if len(rows) > LARGEST_TABLE:
                    raise ValueError(f"more than {LARGEST_TABLE} lines")
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise InputError(f"{path} is no CSV file with a line of names first ({error})") from None
    if not rows:
        raise InputError(f"{path} has no lines below the first")
    return rows


def _column(columns: dict[str, str], names: Sequence[str]) -> str | None:
    return next((columns[n] for n in names if n in columns), None)


def _labels(
    rows: list[dict[str, str]], column: str, classes: Sequence[str] | None, path: Path
) -> tuple[list[Any], tuple[str, ...]]:
    """Numbers as they are, and names by their place among `classes`, or in alphabetical order."""
    values = [row[column].strip() for row in rows]
    if all(v.lstrip("-").isdigit() for v in values):
        return [int(v) for v in values], ()
    known = list(classes) if classes else sorted(set(values))
    number = {name: i for i, name in enumerate(known)}
    for line, value in enumerate(values, 2):
        if value not in number:
            raise InputError(
                f"{path}, line {line}: {value!r} is none of the network's classes"
                f"{did_you_mean(value, known)}"
            )
    return [number[v] for v in values], tuple(known)


def _parts(rows: list[dict[str, str]], column: str, path: Path) -> list[str]:
    found = []
    for line, row in enumerate(rows, 2):
        name = PART_NAMES.get(row[column].strip().lower())
        if name is None:
            raise InputError(
                f"{path}, line {line}: {row[column]!r} is no part; expected {', '.join(PARTS)}"
            )
        found.append(name)
    return found
