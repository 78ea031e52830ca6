"""Where a user's loader is read: what it raises becomes ours, with the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mirabelle.base.errors import InputError, MirabelleError


def items(loader: Iterable, what: str) -> Iterator[Any]:
    """What a loader yields. Where it fails, `InputError` says on which batch and how."""
    number, iterator = 0, None
    while True:
        try:
            iterator = iter(loader) if iterator is None else iterator
            item = next(iterator)
        except StopIteration:
            return
        except MirabelleError:
            raise
        except Exception as error:
            place = "its first batch" if number == 0 else f"batch {number}"
            raise InputError(
                f"{what} failed on {place}: {type(error).__name__}: {error}"
            ) from error
        yield item
        number += 1
