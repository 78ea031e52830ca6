"""The cache of teachers' outputs: what a teacher has said of a view once, it need not compute
again, in this run or in another.

A view is a sample with its augmentation. The key is the fingerprint of the very numbers that the
teacher would read, so that nothing about indices, order, batch size, number of processes or
augmentation needs to be remembered, or can be remembered wrongly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, warn
from mirabelle.base.files import content_hash, folder_at, write_json
from mirabelle.base.fingerprints import fingerprints
from mirabelle.distillation.outputs import Encoding, Index, Segment, read_segment, write_segment
from mirabelle.distillation.views import Views

Teach = Callable[[Batch, tuple[int, int]], torch.Tensor]
BYTES, SECONDS = (
    32 << 20,
    30.0,
)  # new outputs are written as a segment when they are so large, or so old
LOOK_AGAIN = 2.0  # seconds between two looks for what other processes have written
_SHIFT = 32  # a place is the segment's number and the row


class Remembering:
    """The cache as a distillation asks it, which warns once where it saves nothing. views: the
    data, which says how often it comes back.
    """

    def __init__(self, cache: Cache, views: Views):
        self.cache, self.views = cache, views
        self._warned = self._begun = self._useful = False

    def __call__(self, batch: Batch, position: tuple[int, int]) -> torch.Tensor:
        views = self.views
        self._begun |= position == (0, 0)  # a run that was resumed later has not asked in epoch 0
        hits = self.cache.hits
        taught = self.cache(batch, position)
        # Epoch 0 may be read several times, to try learning rates out.
        self._useful |= views.epoch > 0 and self.cache.hits > hits
        useless = views.epoch == (views.views or 1) and not self._useful
        if self._begun and useless and not self._warned:
            self._warned = True
            remedy = (
                "set views= to the number of epochs after which the data may repeat"
                if views.views is None
                else "draw augmentation from torch's, NumPy's or Python's generator, or from the "
                "DataLoader's own"
            )
            warn(
                f"no input has come back by epoch {views.epoch}, so the cache saves nothing: "
                f"the data differs each time; {remedy}"
            )
        return taught


class Cache:
    """Answers for a teacher, from disk where it can.

    folder: of all caches; this one's is named by what decides the outputs (`identity`), so that a
    changed teacher, precision or mixture never finds another's. Every file is checked against its
    checksum as it is opened; a damaged one is removed, with a warning, and its outputs are computed
    again.
    """

    def __init__(
        self,
        folder: str | Path,
        teach: Teach,
        identity: dict[str, Any],
        encoding: Encoding,
        device: torch.device,
    ):
        self.teach, self.encoding, self.device = teach, encoding, device
        identity = {**identity, "precision": encoding.precision, "top": encoding.top}
        self.folder = folder_at(Path(folder) / content_hash(identity)[:16])
        write_json(self.folder / "identity.json", identity)
        self.hits = self.misses = 0
        self._segments: list[Segment] = []
        self._known: set[str] = set()
        self._index = Index()
        self._looked = self._written = 0.0
        self._start_new()
        self._look(now=True)

    def _start_new(self) -> None:
        self._fresh: dict[tuple[int, int], int] = {}
        self._rows: list[dict[str, torch.Tensor]] = []
        self._bytes = 0
        self._shape: tuple[int, ...] = ()
        self._written = time.monotonic()

    def _look(self, now: bool = False) -> None:
        """Opens the files that are new in the folder."""
        if not now and time.monotonic() - self._looked < LOOK_AGAIN:
            return
        self._looked = time.monotonic()
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._known or path.name.startswith("."):
                continue
            self._known.add(path.name)
            try:
                self._open(read_segment(path))
            except InputError as error:
                warn(
                    f"{error}; it is removed from the cache, and the teacher runs again for "
                    "what it held"
                )
                path.unlink(missing_ok=True)

    def _open(self, segment: Segment) -> None:
        if segment.encoding != self.encoding:
            return  # a file from elsewhere; its rows would be read wrongly
        number = len(self._segments)
        self._segments.append(segment)
        self._index.add(segment.keys, (number << _SHIFT) + np.arange(len(segment.keys)))

    def __call__(self, batch: Batch, position: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The teacher's output for the batch, float32. It runs on those samples that are
        not known.
        """
        keys = fingerprints(batch)
        places = self._places(keys)
        if (places < 0).any():
            self._look()
            places = self._places(keys)
        missing = places < 0
        self.hits += int((~missing).sum())
        self.misses += int(missing.sum())
        if missing.any():
            rows = torch.from_numpy(missing).to(batch.tensors[0].device)
            self._keep(keys[missing], self.teach(batch.map(lambda t: t[rows]), position))
            places = self._places(keys)
        found = self._read(places)
        if missing.any() and (time.monotonic() - self._written > SECONDS or self._bytes > BYTES):
            self.flush()
        return found.to(self.device)

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """Places on disk, or, of what is not written yet, with the number that the next segment
        will have.
        """
        places = self._index.find(keys)
        if self._fresh:
            for i in np.flatnonzero(places < 0):
                row = self._fresh.get((int(keys[i, 0]), int(keys[i, 1])))
                if row is not None:
                    places[i] = (len(self._segments) << _SHIFT) + row
        return places

    def _keep(self, keys: np.ndarray, outputs: torch.Tensor) -> None:
        if len(outputs) != len(keys):
            raise InputError(
                f"the teacher gives {len(outputs)} rows for {len(keys)} samples; it must give one "
                "for each"
            )
        new: dict[tuple[int, int], int] = {}
        for i, (first, second) in enumerate(keys.tolist()):
            if (first, second) not in self._fresh:  # a sample may be in a batch twice
                new.setdefault((first, second), i)
        encoded = self.encoding.encode(outputs[list(new.values())])
        # Only now, as outputs that cannot be kept raise: keys without rows would be lies.
        self._shape = tuple(outputs.shape[1:])
        known = len(self._fresh)
        self._fresh |= {key: known + i for i, key in enumerate(new)}
        self._rows.append(encoded)
        self._bytes += sum(v.nbytes for v in encoded.values())

    def _read(self, places: np.ndarray) -> torch.Tensor:
        numbers = places >> _SHIFT
        rows = places & ((1 << _SHIFT) - 1)
        result: torch.Tensor | None = None
        for number in np.unique(numbers):
            where = np.flatnonzero(numbers == number)
            if number < len(self._segments):
                segment = self._segments[number]
                part = self.encoding.decode(segment.take(rows[where]), segment.shape)
            else:
                part = self.encoding.decode(self._take_fresh(rows[where]), self._shape)
            result = part.new_empty((len(places), *part.shape[1:])) if result is None else result
            result[torch.from_numpy(where)] = part
        assert result is not None
        return result

    def _take_fresh(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Most often these are the rows that came last; only if not, all are joined."""
        last = self._rows[-1]
        first = len(self._fresh) - len(last["values"])
        if rows.min() >= first:
            return {k: v[torch.from_numpy(rows - first)] for k, v in last.items()}
        self._rows = [{k: torch.cat([r[k] for r in self._rows]) for k in last}]
        return {k: v[torch.from_numpy(rows)] for k, v in self._rows[0].items()}

    def check(self, batch: Batch, position: tuple[int, int] = (0, 0)) -> None:
        """Compares the teacher with what the cache says of a batch. Where they differ, the
        teacher's code has changed: the cache is emptied, with a warning.
        """
        keys = fingerprints(batch)
        known = self._places(keys)
        if (known < 0).any():
            return
        said = self._read(known)
        says = self.encoding.decode(
            self.encoding.encode(self.teach(batch, position)), tuple(said.shape[1:])
        )
        # Kernels round otherwise for another batch or memory format, in bfloat16 by a thousandth of
        # the whole; single elements by more.
        if said.shape == says.shape and float((said - says).norm()) <= 1e-2 * float(says.norm()):
            return
        warn(f"the teacher no longer says what {self.folder} holds; the cache is made anew")
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        self._segments, self._index, self._known = [], Index(), set()
        self._start_new()

    def flush(self) -> None:
        """Writes what is new as one more file."""
        if not self._fresh:
            return
        arrays = {k: torch.cat([r[k] for r in self._rows]) for k in self._rows[0]}
        keys = np.array(list(self._fresh), np.int64).reshape(-1, 2)
        name = f"{content_hash([keys[0].tolist(), keys[-1].tolist(), len(keys)])[:16]}.safetensors"
        write_segment(self.folder / name, keys, arrays, self.encoding, self._shape)
        self._known.add(name)
        self._open(read_segment(self.folder / name))
        self._start_new()
