"""Teachers' outputs on disk, keyed by what the teacher saw: the sample as it came out of the
loader, augmentation included, never its index.

A file is safetensors: `keys` (N, 2) int64, the fingerprints of the inputs, beside the arrays that
an `Encoding` makes of the outputs. Its metadata hold the format, the encoding and the SHA-256 of
the arrays. Arrays are memory-mapped, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.base.files import write_tensors
from mirabelle.base.fingerprints import fingerprints

FORMAT = "mirabelle outputs 1"
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}


# --- how outputs are written
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """precision: `float32` gives back the very numbers, `float16` half the bytes. top: keep only
    the largest so many of the classes' probabilities.

    With `top`, what comes back is log-probabilities: the kept ones, and for each other class an
    equal part of the rest. Right for losses that read a softmax.
    """

    precision: str = "float32"
    top: int | None = None

    def check(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"cache_precision is {self.precision!r}; expected float32 or float16")
        if self.top is not None and (
            isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1
        ):
            raise InputError(
                f"cache_top is {self.top!r}; expected a number of classes of at least 1, or "
                "None for all"
            )

    def encode(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """outputs (N, ...) -> arrays with N rows each."""
        outputs = outputs.detach().float().cpu()
        if not torch.isfinite(outputs).all():
            raise MirabelleError(
                "the teacher's outputs hold NaN or infinite values; check its weights and its "
                "inputs"
            )
        if self.top is None:
            return {"values": self._narrow(outputs)}
        if outputs.ndim != 2 or self.top >= outputs.shape[1]:
            raise InputError(
                f"cache_top={self.top} needs outputs (N, C) of more than {self.top} classes, "
                f"got {tuple(outputs.shape)}; leave it out"
            )
        logs, places = outputs.log_softmax(1).sort(1, descending=True)
        rest = logs[:, self.top :].logsumexp(1) - math.log(outputs.shape[1] - self.top)
        return {
            "values": self._narrow(logs[:, : self.top]),
            "places": places[:, : self.top].to(torch.int32),
            "rest": self._narrow(rest),
        }

    def _narrow(self, values: torch.Tensor) -> torch.Tensor:
        narrow = values.to(PRECISIONS[self.precision])
        if not torch.isfinite(narrow).all():
            raise InputError(
                "cache_precision='float16' cannot hold the teacher's outputs, which reach "
                "beyond 65504; use float32"
            )
        return narrow

    def decode(self, arrays: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """What `encode` made of rows of `shape`, as float32."""
        values = arrays["values"].float()
        if self.top is None:
            return values.reshape(-1, *shape)
        full = arrays["rest"].float()[:, None].expand(-1, shape[0]).clone()
        return full.scatter(1, arrays["places"].long(), values)


# --- files
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One file, open: fingerprints and memory-mapped arrays. shape: of one sample's output."""

    keys: np.ndarray
    arrays: dict[str, np.ndarray]
    encoding: Encoding
    shape: tuple[int, ...]

    def take(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {k: torch.from_numpy(np.ascontiguousarray(v[rows])) for k, v in self.arrays.items()}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_segment(
    path: Path,
    keys: np.ndarray,
    arrays: Mapping[str, torch.Tensor],
    encoding: Encoding,
    shape: tuple[int, ...],
) -> None:
    """Writes a file whole or not at all."""
    tensors = {"keys": torch.from_numpy(np.ascontiguousarray(keys)), **arrays}
    sums = _checksum({k: v.numpy() for k, v in tensors.items()})
    write_tensors(
        path,
        tensors,
        {
            "format": FORMAT,
            "encoding": json.dumps(asdict(encoding)),
            "shape": json.dumps(list(shape)),
            "sha256": sums,
        },
    )


def _check_rows(
    keys: np.ndarray, arrays: Mapping[str, np.ndarray], encoding: Encoding, shape: tuple[int, ...]
) -> None:
    """`ValueError` where the arrays are not what the encoding makes of one output for each key."""
    names = {"values"} if encoding.top is None else {"values", "places", "rest"}
    if set(arrays) != names or keys.ndim != 2 or keys.shape[1] != 2:
        raise ValueError(f"it holds {', '.join(sorted(arrays))}, not {', '.join(sorted(names))}")
    for name, array in arrays.items():
        if len(array) != len(keys):
            raise ValueError(f"it has {len(keys)} keys and {len(array)} rows of {name}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    wanted = shape if encoding.top is None else (encoding.top,)
    if arrays["values"].shape[1:] != wanted:
        raise ValueError(f"its rows are {arrays['values'].shape[1:]}, not {wanted}")


_TYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "F16": np.float16}


def read_segment(path: Path) -> Segment:
    """Opens a file and compares its checksum; `InputError` where it is damaged, or written by
    something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 0 < length < path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(f.read(length))
        metadata: dict[str, Any] = header.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ValueError(
                "it holds no outputs; make such files with mirabelle.distillation.save_outputs"
            )
        arrays = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            array = (
                np.memmap(
                    path, _TYPES[entry["dtype"]], "r", 8 + length + start, tuple(entry["shape"])
                )
                if end > start
                else np.zeros(entry["shape"])
            )
            arrays[name] = array
        if _checksum(arrays) != metadata["sha256"]:
            raise ValueError("its checksum is another")
        keys = np.asarray(arrays.pop("keys"))
        encoding = Encoding(**json.loads(metadata["encoding"]))
        shape = tuple(json.loads(metadata["shape"]))
        _check_rows(keys, arrays, encoding, shape)
        return Segment(keys, arrays, encoding, shape)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} is not a whole file of saved outputs ({error})") from None


# --- a file as a teacher
# --------------------------------------------------------------------------------------------------


class Index:
    """Finds fingerprints among many: sorted by their first halves, compared by both."""

    def __init__(self) -> None:
        self._keys, self._places = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: np.ndarray, places: np.ndarray) -> None:
        keys, places = np.concatenate([self._keys, keys]), np.concatenate([self._places, places])
        order = np.argsort(keys[:, 0], kind="stable")
        self._keys, self._places = keys[order], places[order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The place of each key (N,), -1 where it is not there."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._keys[:, 0], keys[:, 0]), len(self._keys) - 1)
        return np.where((self._keys[at] == keys).all(1), self._places[at], -1)


class SavedOutputs:
    """A teacher that only remembers: the outputs in a file that `save_outputs` wrote. `InputError`
    for inputs that are not in it.
    """

    def __init__(self, path: Path, device: torch.device):
        self.path, self.device = path, device
        self.segment = read_segment(path)
        self.index = Index()
        self.index.add(self.segment.keys, np.arange(len(self.segment.keys)))

    def __call__(self, batch: Batch) -> torch.Tensor:
        rows = self.index.find(fingerprints(batch))
        if missing := int((rows < 0).sum()):
            raise InputError(
                f"{self.path} has no outputs for {missing} of {batch.size} inputs. Outputs are "
                "kept by the content of the input: save them for the same data, "
                "with the same augmentation (none, or replayed by the same seed and views), or "
                "give the teacher itself with cache="
            )
        return self.segment.encoding.decode(self.segment.take(rows), self.segment.shape).to(
            self.device
        )
