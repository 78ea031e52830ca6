"""The user's data in the parts that a search needs, each for its own purpose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mirabelle.base.data import Batch, batches, samples
from mirabelle.base.errors import InputError
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.training.holdout import split

NAMES = ("train", "calibration", "validation", "test")
SHARE = 0.15  # of the samples that are held back, for validation and for the test each
MOST = 5000  # samples of each
NUMBERS = 2**28  # that each may hold: a gigabyte
CALIBRATION = 512  # samples
FEWEST = 60  # samples, of which three parts can be made


@dataclass(frozen=True)
class Parts:
    """train: what is trained on. calibration: batches without labels, for statistics and grids.
    validation: what chooses. test: read once, at the end. how: where each comes from.
    """

    train: Iterable
    calibration: list[Batch]
    validation: Iterable
    test: Iterable
    labeled: bool
    how: dict[str, str]

    @property
    def example(self) -> Batch:
        """One sample."""
        return self.calibration[0].head(1)


@dataclass(frozen=True)
class Source:
    """What the user called the network and the data; None for objects. how: pictures are brought to
    the network so. classes: their names.
    """

    model: str | None = None
    data: Any = None
    how: Preprocessing | None = None
    classes: tuple[str, ...] = ()


NAMELESS = Source()


def parts(data: Any, seed: int) -> Parts:
    """The parts of `data`: an iterable of inputs or (inputs, target), or a dict or object with some
    of `NAMES`, `train` among them. What is not given is held back from `train`.

    Raises `InputError` where the data is an iterator, which can be read only once, or has too few
    samples to be split.
    """
    given = _given(data)
    for name, loader in given.items():
        if isinstance(loader, Iterator):
            raise InputError(
                f"{name} is an iterator, which can be read only once; give a list, a DataLoader or "
                "another iterable"
            )
    train, how = given["train"], {n: "given" for n in given}
    first = next(batches(train, 1, what="the training data"))
    most = max(64, min(MOST, NUMBERS // max(1, first.numbers // first.size)))
    held: dict[str, Any] = {}
    for number, name in enumerate(("test", "validation")):
        if name in given:
            continue
        train, held[name] = split(train, SHARE, seed + number, most=most)
        if not held[name]:
            raise InputError(
                f"no {name} data can be held back from the training data; give at least {FEWEST} "
                f"samples in several batches, or {name}= data of its own"
            )
        count = sum(b.size for b in held[name])
        how[name] = f"{count} samples held back from the training data"
    if "calibration" not in given:
        how["calibration"] = "of the training data"
    source = given.get("calibration", train)
    calibration = [
        b._replace(target=None) for b in samples(source, CALIBRATION, "the calibration data")
    ]
    validation = given.get("validation") or held["validation"]
    judged = next(batches(validation, what="the validation data"))
    return Parts(
        train,
        calibration,
        validation,
        given.get("test") or held["test"],
        judged.target is not None,
        how,
    )


def _given(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping) and "train" in data:
        if unknown := [k for k in data if k not in NAMES]:
            raise InputError(f"data has {unknown[0]!r}; expected some of {', '.join(NAMES)}")
        found = dict(data)
    elif not callable(getattr(data, "train", callable)):
        found = {n: getattr(data, n, None) for n in NAMES}
    else:
        found = {"train": data}
    return {n: found[n] for n in NAMES if found.get(n) is not None}
