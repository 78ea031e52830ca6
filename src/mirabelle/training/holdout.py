"""Data that are held back from training, to score the network on what it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from mirabelle.base.data import Batch, as_batch, counted, length_of, preserved, seed_epoch
from mirabelle.base.fingerprints import fingerprints

SHARE = 0.1  # of the samples
FEWEST = 20  # samples, of which some can be held back
MOST = 512  # samples: more tell little more, and each score would cost more


def split(
    loader: Any, share: float, seed: int, limit: int | None = None, most: int = MOST
) -> tuple[Any, list[Batch]]:
    """A loader of what is trained on, and the batches that are held back: about `share` of the
    samples, at most `most`. Nothing is held back of too few samples, or where a sampler of the
    user's own decides what belongs together.

    limit: the batches that are read of a loader without a length. The generators are left as they
    were. A loader is read again for this; iterators cannot be.
    """
    if hasattr(loader, "underlying"):
        loader.underlying, held = split(loader.underlying, share, seed, limit, most)
        return loader, held
    with preserved(loader):
        seed_epoch(loader, seed)
        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            return _of_dataset(loader, share, seed, most)
        if type(loader) is list or type(loader) is tuple:  # other classes may read otherwise
            return _of_list(loader, share, most)
        return _of_stream(loader, share, limit, most)


def _count(samples: int, share: float, most: int) -> int:
    """How many of the samples are held back."""
    return 0 if samples < FEWEST else min(most, max(4, round(share * samples)))


class _Without:
    """A sampler without some indices; all else of it is the sampler's own."""

    def __init__(self, sampler: Any, held: set[int], length: int):
        self.inner, self.held, self.length = sampler, held, length

    def __iter__(self) -> Iterator[int]:
        return (i for i in self.inner if i not in self.held)

    def __len__(self) -> int:
        return self.length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _of_dataset(loader: DataLoader, share: float, seed: int, most: int) -> tuple[Any, list[Batch]]:
    """By index, so that augmented samples are held back too."""
    if type(loader.batch_sampler) is not BatchSampler or not loader.batch_size:
        return loader, []
    indices = [i for i in loader.sampler]
    count = _count(len(indices), share, most)
    if not count or len(set(indices)) < len(indices):
        return loader, []  # samples that are drawn twice would make epochs of many lengths
    if (len(indices) - count) % loader.batch_size == 1:
        count += 1  # a last batch of one sample has no variance
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    held = [sorted(indices)[int(i)] for i in order[:count]]
    common = {
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    kept = DataLoader(
        loader.dataset,
        sampler=_Without(loader.sampler, set(held), len(indices) - count),
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        **common,
    )
    back = DataLoader(Subset(loader.dataset, held), **common)
    batches = []
    for i, item in enumerate(back):
        mine = held[i * loader.batch_size : (i + 1) * loader.batch_size]
        place = f"the samples {', '.join(map(str, mine))} of the training data"
        batches.append(as_batch(item, place, squares=True))
    return kept, batches


def _of_list(loader: Sequence[Any], share: float, most: int) -> tuple[Any, list[Batch]]:
    """Whole batches of many, else some samples of each."""
    found = [_read(i, item) for i, item in enumerate(loader)]
    count = _count(sum(b.size for b in found), share, most)
    if not count or len(found) < 2:
        return loader, []
    whole = max(1, round(count / max(1, found[0].size)))
    if len(found) >= 1 / share or not all(_divisible(b) for b in found):
        places = {round((i + 0.5) * len(found) / whole) for i in range(whole)}
        places = {min(p, len(found) - 1) for p in places}
        return (
            [b for i, b in enumerate(found) if i not in places],
            [found[i] for i in sorted(places)],
        )
    cuts = [b.size - max(1, round(b.size * count / sum(f.size for f in found))) for b in found]
    return (
        [b.head(cut) for b, cut in zip(found, cuts)],
        [b.part(cut, b.size) for b, cut in zip(found, cuts)],
    )


def _read(number: int, item: Any) -> Batch:
    place = f"batch {number} of the training loader"
    return as_batch(item, place, squares=True)


def _divisible(batch: Batch) -> bool:
    """Whether a batch can be cut: it has enough samples, one row of all that it holds for each."""
    target = batch.target
    rows = [len(t) == batch.size for t in batch.tensors if t.ndim]
    ours = target is None or (isinstance(target, torch.Tensor) and len(target) == batch.size)
    return batch.size >= 3 and all(rows) and ours


class _Unheld:
    """A stream without the samples that are held back, known by their content. A batch keeps at
    least one sample, so that all epochs are as long.
    """

    def __init__(self, loader: Iterable, held: set[tuple[int, int]]):
        self.loader, self.held = loader, held

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        if (length := length_of(self.loader)) is None:
            raise TypeError(f"{type(self.loader).__name__} has no length")
        return length

    def __iter__(self) -> Iterator[Any]:
        for i, item in enumerate(self.loader):
            batch = as_batch(item, f"batch {i} of the training loader")
            rows = [
                r
                for r, key in enumerate(fingerprints(batch).tolist())
                if (key[0], key[1]) not in self.held
            ]
            yield item if len(rows) == batch.size else _rows(batch, rows or [0])


def _rows(batch: Batch, rows: list[int]) -> Batch:
    target = batch.target
    return batch.map(lambda t: t[rows])._replace(target=None if target is None else target[rows])


def _of_stream(loader: Any, share: float, limit: int | None, most: int) -> tuple[Any, list[Batch]]:
    """Half of each of the first batches."""
    length = counted(loader, limit)
    held, keys = [], set()
    for i, item in enumerate(loader):
        batch = _read(i, item)
        if i == 0 and not _count(length * batch.size, share, most):
            break
        if i >= min(length, math.ceil(2 * share * length)) or not _divisible(batch):
            break
        part = batch.part(batch.size - batch.size // 2, batch.size)
        held.append(part)
        keys |= {(a, b) for a, b in fingerprints(part).tolist()}
        if len(keys) >= most:
            break
    return (_Unheld(loader, keys), held) if held else (loader, [])
