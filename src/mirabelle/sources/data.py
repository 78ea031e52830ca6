"""Data by name: folders of pictures, lists, arrays, saved datasets, `module:callable`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt
from typing_extensions import Doc

from mirabelle.base.errors import InputError
from mirabelle.base.options import Check, Expected, OneOf, declared, options_of
from mirabelle.sources import arrays, pictures
from mirabelle.sources.callables import Loaders, build_data
from mirabelle.sources.preprocessing import (
    COLORS,
    INTERPOLATIONS,
    LAYOUTS,
    RESIZES,
    Preprocessing,
    given,
)
from mirabelle.sources.samples import BATCH, PARTS, Samples, Table, split

PICTURES = (
    "size",
    "mean",
    "std",
    "scale",
    "layout",
    "color",
    "resize",
    "interpolation",
)  # what says how a picture becomes an input
FORMS = (
    "a folder of pictures, a .csv of paths and labels, .npz, .npy, a folder of Hugging Face's "
    "datasets, or module:callable"
)


@dataclass(frozen=True)
class Data:
    """What a name of data stands for. how: as pictures are brought to the network, None for other
    data. table: None where a callable made the loaders. made_up: that there are none, what stands
    for them, and what that means.
    """

    loaders: Loaders
    name: str
    how: Preprocessing | None = None
    table: Table | None = None
    made_up: str = ""

    @property
    def labeled(self) -> bool | None:
        """None where only a look at the data says it."""
        return None if self.table is None else self.table.labeled

    def __str__(self) -> str:
        if self.table is None:
            return self.name
        parts = ", ".join(
            f"{len(p.indices)} {n}"
            for n in PARTS
            if isinstance(p := getattr(self.loaders, n), Samples)
        )
        kinds = f", {len(self.table.classes)} classes" if self.table.classes else ""
        labels = kinds if self.table.labeled else ", without labels"
        return f"{self.name}: {len(self.table)} samples{labels} ({parts})"


def _check_size(value: Any) -> None:
    if isinstance(value, (list, tuple)) and len(value) != 2:
        raise InputError("expected one number, or height and width")


@declared()
def read(
    name: str | Path,
    *,
    size: Annotated[
        int | Sequence[int] | None,
        Check(_check_size),
        Expected("pixels: one number, or height and width"),
        Doc("of pictures in pixels, height and width; None is what the network says"),
    ] = None,
    mean: Annotated[
        float | Sequence[float] | None, Doc("of the channels; None is what the network says")
    ] = None,
    std: Annotated[
        float | Sequence[float] | None, Doc("of the channels; None is what the network says")
    ] = None,
    scale: Annotated[
        float | None, Gt(0), Doc("white before mean and std: 1, or 255; None is as the mean says")
    ] = None,
    layout: Annotated[
        str | None, OneOf(LAYOUTS), Doc("of the batch; None is what the network says")
    ] = None,
    color: Annotated[
        str | None, OneOf(COLORS), Doc("order of the channels; None is what the network says")
    ] = None,
    resize: Annotated[
        str | None, OneOf(RESIZES), Doc("shorter side and center crop, stretched, or padded")
    ] = None,
    interpolation: Annotated[
        str | None, OneOf(INTERPOLATIONS), Doc("with which pictures are resized")
    ] = None,
    as_part: Annotated[
        str | None, OneOf(PARTS), Doc("all samples are this part; None splits them by a hash")
    ] = None,
    batch: Annotated[int, Ge(1), Doc("samples that are read together")] = BATCH,
    strict: Annotated[bool, Doc("damaged pictures are errors, else they are left out")] = False,
    known: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Data:
    """The data that `name` stands for, split into train, calibration, validation and test.

    name: a folder of pictures (in folders of classes, or without labels), a CSV file of paths and
    labels, `.npz`, `.npy`, a folder that Hugging Face's `datasets` saved, or `module:callable`.
    known: the network's own preprocessing. classes: the network's, in its order.

    Data that come in parts keep these; else a hash of each sample's name, or of its group, and the
    seed put it into one. A part that there is not is another: validation is calibration, test is
    validation. Nothing is read before it is needed, and every pass reads the same samples.
    Raises `InputError` where there is no such data, or what it takes is not said.
    """
    options = {k: v for k, v in locals().items() if k in PICTURES}
    text = str(name)
    path = Path(text)
    if ":" in text and not path.exists():
        _check_plain(text, options)
        return Data(build_data(text), text)
    if not path.exists():
        raise InputError(f"there is no data {text!r}; expected {FORMS}")
    how = None
    if _holds_pictures(path) or known is not None or any(v is not None for v in options.values()):
        how = given(known, options)
    table = _table(path, how, classes)
    parts = split(table, as_part, batch, seed, strict)
    return Data(_loaders(parts), text, how, table)


def _check_plain(text: str, options: Mapping[str, Any]) -> None:
    if told := [k for k, v in options.items() if v is not None]:
        raise InputError(
            f"data {text!r} is made by a callable, which brings its own {told[0]}; leave the "
            "option out"
        )


def _is_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _holds_pictures(path: Path) -> bool:
    return path.suffix == ".csv" or (path.is_dir() and not _is_dataset(path))


def _table(path: Path, how: Preprocessing | None, classes: Sequence[str] | None) -> Table:
    if path.is_dir():
        if _is_dataset(path):
            return arrays.saved_dataset(path, how)
        assert how is not None
        return pictures.folder(path, how, classes)
    if path.suffix == ".csv":
        assert how is not None
        return pictures.listed(path, how, classes)
    readers = {".npy": arrays.npy, ".npz": arrays.npz}
    if path.suffix not in readers:
        raise InputError(f"data {str(path)!r} ends in {path.suffix!r}; expected {FORMS}")
    return readers[path.suffix](path, how)


def _loaders(parts: Mapping[str, Samples]) -> Loaders:
    """Every part, with another in the place of one that there is not."""
    instead = {
        "train": ("calibration", "validation", "test"),
        "calibration": ("train", "validation", "test"),
        "test": ("validation", "calibration", "train"),
    }
    found = dict(parts)
    train, calibration = parts.get("train"), parts.get("calibration")
    if train is not None and calibration is not None:
        # What was trained on may calibrate, too, and few samples calibrate badly.
        both = np.concatenate([calibration.indices, train.indices])
        found["calibration"] = replace(calibration, indices=both)
    for name, others in instead.items():
        if name not in found:
            other = next(parts[o] for o in others if o in parts)
            # What calibrates is no secret; the order of a training pass changes, though.
            found[name] = Samples(other.table, other.indices, other.batch, None, other.strict)
    return Loaders(
        train=found["train"],
        calibration=found["calibration"],
        test=found["test"],
        validation=found.get("validation"),
    )


def from_any(
    named: str | Path | Mapping[str, Any] | Loaders | Iterable,
    known: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Data:
    """Data as a recipe has them: a name, or a mapping of a name, as `folder`, and options."""
    if isinstance(named, Loaders):
        return Data(named, "loaders")
    if isinstance(named, (str, Path)):
        return read(named, known=known, classes=classes, seed=seed)
    if isinstance(named, Mapping):
        options = dict(named)
        name = options.pop("folder")
        return read(name, known=known, classes=classes, seed=seed, **options)
    raise InputError(f"data is a {type(named).__name__}; expected {FORMS}")


def check_named(value: Any) -> None:
    """`InputError` for what names no data as a recipe does."""
    if isinstance(value, str):
        return
    if not isinstance(value.get("folder", ""), str):
        raise InputError(f"a mapping of data names them as 'folder': {FORMS}")
    if "folder" not in value and (other := set(value) - set(PICTURES)):
        raise InputError(
            f"{min(other)} is of data that are named, as 'folder': {FORMS}; without data there "
            f"are {', '.join(PICTURES)}, of pictures that are made up"
        )
    options_of(read).in_recipes.check(
        {k: v for k, v in value.items() if k != "folder"}, recipe=True
    )


def code_of(named: Any) -> str | None:
    """The `module:callable` that data come from; None where they come from files."""
    text = named if isinstance(named, str) else None
    return text if text is not None and ":" in text and not Path(text).exists() else None


def files_of(named: Any) -> list[Path]:
    """The files that data come from, in the order of their paths."""
    if code_of(named) is not None:
        return []
    path = Path(named if isinstance(named, str) else named["folder"])
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
