"""Batches: what a loader may yield and how it reaches a network. Seeds, and the cache folder of
this machine's user.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mirabelle.base import structures
from mirabelle.base.errors import InputError
from mirabelle.base.interruption import check as check_interrupted
from mirabelle.base.reading import items
from mirabelle.base.tensors import as_input, from_array

LABELS = "labels"  # the target, in the dicts of Hugging Face's loaders
MOST_BATCHES = 10**6  # of an epoch whose loader does not say how long it is


class Batch(NamedTuple):
    """One batch: `model(*args, **kwargs)` runs it. `target` is None where the loader yields inputs
    alone; else it may be a tensor, a dict, a list with an entry for each sample, a tuple of heads.
    """

    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    target: Any

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.args, *self.kwargs.values()]

    @property
    def size(self) -> int:
        """The number of samples: the first dimension of the first input that has one; 0 where none
        has.
        """
        return next((len(t) for t in self.tensors if t.ndim), 0)

    @property
    def names(self) -> list[str]:
        """What exported files call the inputs: `input`, or `input0`, `input1`, ...; named ones keep
        their names.
        """
        return [
            f"input{i}" if len(self.args) > 1 else "input" for i in range(len(self.args))
        ] + list(self.kwargs)

    def run(self, network: Callable[..., Any]) -> Any:
        """What the network makes of copies of its inputs: a forward may write into what it gets."""
        own = self.map(torch.Tensor.clone)
        return network(*own.args, **own.kwargs)

    def copied(self) -> Batch:
        """For code that may write into what it gets."""
        target = structures.mapped(self.target, torch.Tensor.clone)
        return self.map(torch.Tensor.clone)._replace(target=target)

    def map(self, function) -> Batch:
        """The batch with `function` applied to each input tensor; the target is left as it is."""
        return Batch(
            tuple(map(function, self.args)),
            {k: function(v) for k, v in self.kwargs.items()},
            self.target,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its inputs on `device`; the target is left where it is."""
        return self.map(lambda t: t.to(device))

    def at_least_two(self) -> Batch:
        """The batch with inputs of one sample doubled: `torch.export` would take one for the only
        size.
        """
        return self.map(lambda t: torch.cat([t, t]) if t.ndim and len(t) == 1 else t)

    @property
    def numbers(self) -> int:
        """How many numbers the inputs of one sample hold, those without a dimension not counted."""
        return sum(t[:1].numel() for t in self.tensors if t.ndim)

    def part(self, start: int, stop: int) -> Batch:
        """Its samples from `start` to `stop`, with their targets. Inputs of another length, such as
        the state of a recurrent network, belong to all of them.
        """
        size = self.size
        stop = min(stop, size)
        if start == 0 and stop == size:
            return self
        return self.map(lambda t: t[start:stop] if t.ndim and len(t) == size else t)._replace(
            target=structures.part(self.target, start, stop, size)
        )

    def head(self, count: int) -> Batch:
        """Its first `count` samples."""
        return self.part(0, count)

    def split(self, size: int) -> Iterator[Batch]:
        """Its samples in batches of `size`; the last one may be smaller."""
        return (self.part(start, start + size) for start in range(0, self.size, size))


def device_of(network: nn.Module) -> torch.device:
    """Where its first parameter lies; the CPU where it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def as_batch(item: Any, place: str = "the batch", squares: bool = False) -> Batch:
    """Reads what a loader yielded: inputs (a tensor, an array, a dict or a tuple of tensors) or the
    pair (inputs, target), of finite numbers. The `labels` of a dict, as Hugging Face's loaders give
    them, are its target. squares: see `check_finite`.
    """
    check_interrupted()  # every loop over data comes by here, with a bar or without
    if not isinstance(item, Batch):
        return check_finite(_read(item, place), place, squares)
    return check_finite(item, place, squares) if squares else item


def _read(item: Any, place: str) -> Batch:
    target = None
    if isinstance(item, (tuple, list)):
        if len(item) == 2:
            item, target = item
        elif len(item) == 1:
            item = item[0]
        else:
            raise InputError(
                f"{place} is a {type(item).__name__} of {len(item)} parts; expected inputs or "
                "the pair (inputs, target)"
            )
    if target is None and isinstance(item, Mapping) and LABELS in item:
        target, item = item[LABELS], {k: v for k, v in item.items() if k != LABELS}
    if isinstance(target, np.ndarray):
        target = from_array(target, f"the target of {place}")
    elif not isinstance(target, torch.Tensor):
        target = structures.with_tensors(target)
    if isinstance(item, Mapping):
        return _filled(
            Batch((), {str(k): as_input(v, f"{place}[{k!r}]") for k, v in item.items()}, target),
            place,
        )
    if isinstance(item, (tuple, list)):
        return _filled(
            Batch(
                tuple(as_input(v, f"input {i} of {place}") for i, v in enumerate(item)), {}, target
            ),
            place,
        )
    return _filled(Batch((as_input(item, place),), {}, target), place)


def _filled(batch: Batch, place: str) -> Batch:
    if not batch.size:
        shapes = ", ".join(str(tuple(t.shape)) for t in batch.tensors)
        raise InputError(
            f"{place} has no samples (inputs: {shapes or 'none'}); the first dimension of the "
            "first input that has one counts them"
        )
    return batch


def batches(
    loader: Iterable, limit: int | None = None, labeled: bool = False, what: str = "the loader"
) -> Iterator[Batch]:
    """The loader's first `limit` batches (all of them for None).

    Raises `InputError` where the loader is empty or is an exhausted iterator, and, for `labeled`,
    where a target is missing.
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise InputError(
            f"{what} is a {type(loader).__name__}; expected a loader: an iterable of inputs or "
            "of (inputs, target)"
        )
    found = False
    for i, item in enumerate(islice(items(loader, what), limit)):
        batch = as_batch(item, f"batch {i} of {what}")
        if labeled and batch.target is None:
            raise InputError(
                f"batch {i} of {what} has no target; a labeled loader yields (inputs, target)"
            )
        if any(t.is_meta for t in batch.tensors):
            raise InputError(f"batch {i} of {what} has no values, as it is on the device meta")
        found = True
        yield batch
    if not found:
        raise InputError(
            f"{what} yielded no batch; give a loader that can be iterated again, not an "
            "exhausted iterator"
        )


def length_of(loader: Any) -> int | None:
    """How many batches a loader says it has; None where it has no length, or cannot say it, as a
    `DataLoader` over a stream.
    """
    try:
        return len(loader)
    except Exception:  # of the user's code; whoever iterates sees how many there are
        return None


def counted(loader: Iterable, limit: int | None = None, what: str = "the training loader") -> int:
    """How many batches a loader gives, counted where it does not say: at most `limit`.

    Raises `InputError` for one that does not end.
    """
    length = length_of(loader)
    if length is None:
        length = sum(
            1 for _ in islice(items(loader, what), MOST_BATCHES if limit is None else limit)
        )
        if limit is None and length == MOST_BATCHES:
            raise InputError(
                f"the loader has no length and does not end within {length} batches; say with "
                "steps= how many to take"
            )
    return length


def check_finite(batch: Batch, place: str, squares: bool = False) -> Batch:
    """The batch itself. `InputError` names the first input or target that is NaN or infinite.

    squares: or so large that its square is no number: statistics of it would be infinite.
    """
    named = [(f"input {i}", t) for i, t in enumerate(batch.args)]
    named += [(f"input {k!r}", t) for k, t in batch.kwargs.items()]
    named += [("the target", t) for t in structures.leaves(batch.target)]
    for name, tensor in named:
        if tensor.is_meta or not tensor.numel():
            continue
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        low, high = (float(v) for v in torch.aminmax(values.detach()))
        most = _largest(values.dtype, squares)
        if -most <= low and high <= most:
            continue
        wrong = ~(values.abs() <= most)
        index = [int(i) for i in wrong.nonzero()[0]]
        raise InputError(
            f"{name} of {place} is {float(values[tuple(index)]):g} at index {index}, one of "
            f"{int(wrong.sum())} such values of {values.numel()}: they must be finite"
            f"{f' and at most {most:.2g}' if squares else ''}; repair or leave out such samples"
        )
    return batch


def _largest(dtype: torch.dtype, squares: bool) -> float:
    """The largest number, or the largest whose square, summed a hundred times, is still one;
    float16 is too narrow for that, and all its numbers are taken.
    """
    most = torch.finfo(dtype).max
    return 0.1 * most**0.5 if squares and dtype is not torch.float16 else most


def samples(loader: Iterable, count: int, what: str = "the loader") -> Iterator[Batch]:
    """Batches until `count` samples have been seen; the last one is cut to fit."""
    left = count
    for batch in batches(loader, what=what):
        if batch.size > left:
            batch = batch.head(left)
        yield batch
        left -= batch.size
        if left <= 0:
            return


class First:
    """The first `count` samples of data, however they are batched, as often as it is iterated; data
    that can be read only once are kept.
    """

    def __init__(self, data: Iterable, count: int, what: str = "data"):
        self.count, self.what = count, what
        self.data = list(samples(data, count, what)) if isinstance(data, Iterator) else data

    def __iter__(self) -> Iterator[Batch]:
        return samples(self.data, self.count, self.what)


def pieces(stream: Iterable[Batch], numbers: int) -> Iterator[Batch]:
    """The same samples in batches whose inputs hold at most so many numbers, but at least one
    sample.
    """
    for batch in stream:
        size = max(1, numbers // max(1, batch.numbers))
        yield from batch.split(size) if size < batch.size else [batch]


def example_inputs(x: Any) -> Batch:
    """Example inputs as given to `explain`, `prune` or `export`: a tensor, an array, a dict, a
    tuple of tensors; never labeled.
    """
    if isinstance(x, (tuple, list)) and not isinstance(x, Batch):
        tensors = tuple(as_input(v, f"example input {i}") for i, v in enumerate(x))
        place = "the example input"
        return check_finite(_filled(Batch(tensors, {}, None), place), place)
    return as_batch(x, "the example input")


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators_of(*loaders: Any) -> list[torch.Generator]:
    """The generators of their own that loaders, their samplers and batch samplers have."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for owner in (
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                found[id(generator)] = generator
    return list(found.values())


def seed_epoch(loader: Any, seed: int) -> None:
    """Seeds everything that an epoch draws from, the generator that a `DataLoader` may have of its
    own too: a resumed run cannot ask it where it stood.
    """
    seed %= 2**63
    seed_everything(seed)
    for generator in generators_of(loader):
        generator.manual_seed(seed)


class Generators:
    """The states of Python's, NumPy's and torch's generators, and of those of `loaders`.

    devices: those of CUDA devices too, where CUDA is in use.
    """

    def __init__(self, *loaders: Any, devices: bool = True):
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        on_devices = devices and torch.cuda.is_initialized()
        self.cuda = torch.cuda.get_rng_state_all() if on_devices else []
        self.own = [(g, g.get_state()) for g in generators_of(*loaders)]

    def restore(self) -> None:
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        torch.set_rng_state(self.states[2])
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        for generator, state in self.own:
            generator.set_state(state)


@contextmanager
def preserved(*loaders: Any) -> Iterator[None]:
    """Behind this block every generator is as it was, those of `loaders` too."""
    before = Generators(*loaders)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def seeded(seed: int, *loaders: Any) -> Iterator[None]:
    """Inside, Python, NumPy and torch draw from `seed`; after it they are as they were, and so
    are the generators of `loaders`.
    """
    with preserved(*loaders):
        seed_everything(seed)
        yield


def cache_folder() -> Path:
    """This user's cache folder for Mirabelle: `$MIRABELLE_CACHE`, else the platform's own
    (`~/.cache/mirabelle` on Linux).
    """
    if override := os.environ.get("MIRABELLE_CACHE"):
        return Path(override)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mirabelle"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirabelle"
