"""Arrays in files: `.npy`, `.npz`, and folders that Hugging Face's `datasets` saved."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.runtimes.artifact import require
from mirabelle.sources.pictures import LABELS, PART_NAMES
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.samples import Table, UnreadableError

INPUTS = ("x", "inputs", "input", "images", "image", "data", "features", "samples")
TARGETS = ("labels", "targets", *LABELS)


@dataclass(frozen=True)
class Rows:
    """One row of each array. Arrays of .npy files stay on the disk until they are read.

    how: for bytes as (height, width, channels), which are pictures; other values are taken as they
    are.
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray | None
    how: Preprocessing | None

    def __call__(self, index: int) -> tuple[Any, Any]:
        found = {n: self._one(a[index]) for n, a in self.inputs.items()}
        target = None if self.target is None else self.target[index]
        if isinstance(target, np.ndarray) and target.ndim == 0:
            target = target.item()
        if isinstance(target, np.integer):
            target = int(target)
        return found[""] if "" in found else found, target

    def _one(self, value: np.ndarray) -> np.ndarray:
        if self.how is None or value.dtype != np.uint8 or value.ndim not in (2, 3):
            return np.array(value)
        if value.ndim == 3 and value.shape[0] in (1, 3) and value.shape[2] not in (1, 3):
            value = value.transpose(1, 2, 0)
        if value.ndim == 3 and value.shape[2] == 1:
            value = value[:, :, 0]
        image = require("PIL.Image", "images").fromarray(np.ascontiguousarray(value))
        return self.how.normalized(self.how.pixels(image))


def _checked(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise InputError(
            f"{path}: {name or 'the array'} is {array.dtype} of shape {array.shape}; expected "
            "numbers with a row for each sample"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def npy(path: Path, how: Preprocessing | None) -> Table:
    """A `.npy` file of inputs, a row for each sample; labels in `NAME_labels.npy` beside it."""
    inputs = _checked(_mapped(path), path, "")
    beside = path.with_name(f"{path.stem}_labels.npy")
    target = _checked(_mapped(beside), beside, "") if beside.is_file() else None
    return _table({"": inputs}, target, how, path)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path} is no .npy file of numbers ({error}); objects are not read, as that runs code"
        ) from None


def npz(path: Path, how: Preprocessing | None) -> Table:
    """A `.npz` file: inputs as `x` (or `images`, `data`, ...), labels as `y` (or `labels`, ...),
    and parts as `x_train`, `y_train`, `x_test`, `y_test`. Other names are inputs by name.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {n: _checked(file[n], path, n) for n in file.files}
    except InputError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy
        raise InputError(
            f"{path} is no .npz file of numbers ({error}); objects are not read, as that runs code"
        ) from None
    parts = {n.rpartition("_")[2]: n for n in arrays if n.rpartition("_")[2] in PART_NAMES}
    if parts:
        return _in_parts(arrays, how, path)
    target = next((n for n in TARGETS if n in arrays), None)
    inputs = {n: a for n, a in arrays.items() if n != target}
    if not inputs:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected inputs as 'x'")
    if len(inputs) == 1 and next(iter(inputs)) in INPUTS:
        inputs = {"": next(iter(inputs.values()))}
    return _table(inputs, None if target is None else arrays[target], how, path)


def _in_parts(arrays: dict[str, np.ndarray], how: Preprocessing | None, path: Path) -> Table:
    """`x_train` and the like, one after the other."""
    inputs, targets, parts = [], [], []
    for name, array in arrays.items():
        kind, _, part = name.rpartition("_")
        if kind not in INPUTS or part not in PART_NAMES:
            continue
        inputs.append(array)
        parts += [PART_NAMES[part]] * len(array)
        label = next((f"{t}_{part}" for t in TARGETS if f"{t}_{part}" in arrays), None)
        targets.append(None if label is None else arrays[label])
    if not inputs:
        raise InputError(f"{path} holds {', '.join(arrays)}; expected inputs such as 'x_train'")
    labeled = all(t is not None for t in targets)
    try:
        whole = np.concatenate(inputs)
        target = np.concatenate(targets) if labeled else None
    except ValueError as error:
        raise InputError(f"{path}: its parts do not fit together ({error})") from None
    return _table({"": whole}, target, how, path, parts)


def _table(
    inputs: dict[str, np.ndarray],
    target: np.ndarray | None,
    how: Preprocessing | None,
    path: Path,
    parts: list[str] | None = None,
) -> Table:
    lengths = {n or "inputs": len(a) for n, a in inputs.items()}
    if target is not None:
        lengths["labels"] = len(target)
        if target.ndim == 2 and target.shape[1] == 1 and target.dtype.kind in "iu":
            target = target[:, 0]
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
        said = ", ".join(f"{n} {length}" for n, length in lengths.items())
        raise InputError(f"{path}: its arrays have other numbers of samples ({said})")
    count = next(iter(lengths.values()))
    names = [f"{path.name}[{i}]" for i in range(count)]
    return Table(Rows(inputs, target, how), names, target is not None, parts=parts)


@dataclass(frozen=True)
class Records:
    """Rows of a `datasets.Dataset`. image: the column of pictures; else all columns of numbers."""

    rows: Any
    image: str | None
    columns: list[str]
    label: str | None
    how: Preprocessing | None

    def __call__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        target = None if self.label is None else row[self.label]
        if self.image is not None:
            assert self.how is not None
            return self.how.normalized(self.how.pixels(_decoded(row[self.image], index))), target
        found = {n: np.asarray(row[n]) for n in self.columns}
        return found, target


def _decoded(value: Any, index: int) -> Any:
    if not isinstance(value, Mapping):
        return value
    content = value.get("bytes")
    try:
        image = require("PIL.Image", "images").open(
            value["path"] if content is None else io.BytesIO(content)
        )
        image.load()
        return image
    except Exception as error:
        raise UnreadableError(f"picture {index} is damaged ({error})") from error


def saved_dataset(path: Path, how: Preprocessing | None) -> Table:
    """A folder that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    datasets = require("datasets", "datasets")
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"{path} is no saved dataset ({type(error).__name__}: {error})") from error
    parts = None
    if isinstance(found, Mapping):
        kept = {n: d for n, d in found.items() if n in PART_NAMES}
        if not kept:
            raise InputError(f"{path} has the parts {', '.join(found)}; expected train or test")
        parts = [PART_NAMES[n] for n, d in kept.items() for _ in range(len(d))]
        found = datasets.concatenate_datasets(list(kept.values()))
    features = found.features
    image = next((n for n, f in features.items() if type(f).__name__ == "Image"), None)
    label = next((n for n in TARGETS if n in features), None)
    if image is not None and how is None:
        raise InputError(f"{path} holds pictures; give --size and the network's mean and std")
    classes = tuple(getattr(features[label], "names", ()) or ()) if label is not None else ()
    columns = [n for n in features if n != label]
    names = [f"{path.name}[{i}]" for i in range(len(found))]
    return Table(
        Records(found, image, columns, label, how), names, label is not None, None, parts, classes
    )
