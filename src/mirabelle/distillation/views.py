"""The training data as distillation reads it: any iterable, and, with `views`, epochs whose order
and augmentation come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

from mirabelle.base.data import Generators, counted, length_of, preserved, seed_epoch
from mirabelle.base.errors import InputError


class Views:
    """A loader whose epoch e draws its order and augmentation from the seed of view e mod `views`
    (of epoch e itself where `views` is None).

    What the data draws is kept apart from what networks draw (dropout), so that the same views come
    for any student. limit: where the loader has no length, so many of its batches are an epoch,
    which makes endless loaders usable. `position` is (view, number) of the batch that was read
    last.
    Raises `InputError` for iterators, which are empty after one pass.
    """

    def __init__(
        self, loader: Iterable, seed: int = 0, views: int | None = None, limit: int | None = None
    ):
        if views is not None and (
            isinstance(views, bool) or not isinstance(views, int) or views < 1
        ):
            raise InputError(
                f"views is {views!r}; expected how many epochs have data of their own before it "
                "comes back, at least 1, or None"
            )
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise InputError(
                f"the training loader is a {type(loader).__name__}; expected a loader: an "
                "iterable of inputs or of (inputs, target)"
            )
        if isinstance(loader, Iterator):
            raise InputError(
                "the training loader is an iterator, which is empty after one pass; give a "
                "list, a DataLoader or another iterable"
            )
        self.loader, self.seed, self.views, self.limit = loader, seed, views, limit
        self.epoch = 0
        self.position = (0, 0)
        self._length: int | None = None

    @property
    def sampler(self) -> Views:
        """The training loop tells samplers the epoch; this one passes it on."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def underlying(self) -> Iterable:
        """The loader itself, for what asks of which kind the data are."""
        return self.loader

    @underlying.setter
    def underlying(self, loader: Iterable) -> None:
        self.loader, self._length = loader, None

    def __len__(self) -> int:
        if self._length is None:
            with preserved(self.loader):
                self._length = counted(self.loader, self.limit)
        return self._length

    def __iter__(self) -> Iterator[Any]:
        view = self.epoch % self.views if self.views else self.epoch
        outside = Generators(self.loader)
        try:
            seed_epoch(self.loader, self.seed * 1_000_003 + view)
            sampler: Any = getattr(self.loader, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(view)
            limit = self.limit if length_of(self.loader) is None else None
            items = islice(iter(self.loader), limit)
            inside = Generators(self.loader, devices=False)
        finally:
            outside.restore()
        for number in count():
            outside = Generators(self.loader, devices=False)
            inside.restore()
            try:
                item = next(items, _END)
            finally:
                inside = Generators(self.loader, devices=False)
                outside.restore()
            if item is _END:
                return
            self.position = (view, number)
            yield item


_END = object()
