"""Networks and data that a callable makes, named by `module:callable`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from mirabelle.base.checks import check_network
from mirabelle.base.errors import InputError
from mirabelle.base.names import load


@dataclass(frozen=True)
class Loaders:
    """validation: what may choose, where the data has it; the test data may not."""

    train: Iterable
    calibration: Iterable
    test: Iterable
    validation: Iterable | None = None

    @property
    def given(self) -> list[str]:
        return [n for n, loader in vars(self).items() if loader is not None]


def build_model(reference: str) -> nn.Module:
    """Calls `module:callable`; what it raises is shown with the reference."""
    try:
        return check_network(load(reference, "model")(), reference).eval()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{reference} failed: {type(error).__name__}: {error}") from error


def build_data(reference: str) -> Loaders:
    """Calls `module:callable`, which returns train, calibration and test loaders: an object with
    these names, a dict, or a tuple in this order; a validation loader too, if there is one.
    """
    try:
        found = load(reference, "data")()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{reference} failed: {type(error).__name__}: {error}") from error
    names = ("train", "calibration", "test", "validation")
    if isinstance(found, Mapping):
        found = {n: found.get(n) for n in names}
    elif all(hasattr(found, n) for n in names[:3]):
        found = {n: getattr(found, n, None) for n in names}
    elif isinstance(found, (tuple, list)) and len(found) >= 3:
        found = {**dict.fromkeys(names), **dict(zip(names, found, strict=False))}
    else:
        raise InputError(
            f"data {reference!r} returned a {type(found).__name__}; expected train, calibration "
            "and test loaders: a tuple, a dict or an object with these names"
        )
    for name, loader in found.items():
        if loader is None and name == "validation":
            continue
        if loader is None or not hasattr(loader, "__iter__"):
            raise InputError(f"data {reference!r} gives no {name} loader")
        if iter(loader) is loader:
            raise InputError(
                f"data {reference!r}: the {name} loader is an iterator, which is empty after "
                "one pass; give a list, a DataLoader or another iterable"
            )
    return Loaders(**found)  # pyright: ignore[reportArgumentType]
