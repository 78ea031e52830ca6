"""An exported network on disk, run by one runtime. Nothing here imports torch or a runtime before
it is needed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mirabelle.base.errors import InputError, MissingRuntimeError, choose
from mirabelle.base.quiet import muffled

# Runtimes start as many as they are asked for: hundreds on two cores take seconds for each call.
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))


def check_threads(value: Any) -> None:
    """`InputError` for a number of threads that no runtime can work with on this machine."""
    if type(value) is not int or not 1 <= value <= MOST_THREADS:
        raise InputError(
            f"expected an integer between 1 and {MOST_THREADS}, as this machine has "
            f"{os.cpu_count()} cores"
        )


class TensorSpec(NamedTuple):
    """What a file says of an input or output. `shape`: None for a dimension left open; None in all
    for an unknown rank. `dtype`: NumPy's name.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        shape = (
            "any shape"
            if self.shape is None
            else "(" + ", ".join("?" if d is None else str(d) for d in self.shape) + ")"
        )
        return f"{shape} {self.dtype}"


class LayerTime(NamedTuple):
    """One node that the runtime executed, after its own fusions. `int8`: it reads 8-bit integers;
    None where the runtime does not say.
    """

    name: str
    operator: str
    milliseconds: float
    int8: bool | None


@cache
def _named_outputs(names: tuple[str, ...]) -> Callable[..., tuple[np.ndarray, ...]]:
    """A class of named tuples that are read by the names of a file too: a metric that was written
    for the dict or the dataclass of a network takes what its file gives.
    """
    made: Any = namedtuple("Outputs", names, rename=True)

    def read(self: tuple, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key not in names:
            raise KeyError(f"{key}; the outputs are {', '.join(names)}")
        return tuple.__getitem__(self, names.index(key))

    made.__getitem__ = read
    return made


@dataclass(frozen=True)
class Session:
    """A file opened by a runtime. `run` takes one array per input, in order, and returns one array
    per output.
    """

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    run: Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Runtime:
    """What Mirabelle asks of a runtime: plain functions, so that another one is a file with a few
    of them and an entry in `RUNTIMES`.

    suffix: of the main file. version(): of the installed package. files(path): all files that
    belong to a main file. check(path): refuses what a runtime itself would read too willingly,
    before it is opened here. open(path, threads): a `Session`. profile(path, threads, arrays,
    runs): one `LayerTime` per executed node, in order; None where the package does not tell.

    Its files are made by one of these, or both; networks go through `convert` where there is one,
    ONNX files through `save`: save(onnx_path, folder): from an ONNX file, float or in Q/DQ form;
    returns the main file. convert(program, sites, path): from a `torch.export.ExportedProgram` for
    the example's own batch size, float or in PT2E form (int8 behind `quantized_decomposed`
    operators); writes and returns the main file `path`. sites: the names of the quantized values,
    in the order of their quantize operators; what the file can name, it names `<site>_quantized`.

    int8: whether it runs quantized networks. off_by: how many integer steps a value may be away
    from the integer reference, by rounding that differs and what it hands on. free_batch: whether
    its files leave the batch size open where the network does. absent(): why its files, which can
    be made here, cannot run on this machine; None where they can.
    """

    name: str
    suffix: str
    version: Callable[[], str]
    files: Callable[[Path], list[Path]]
    open: Callable[[Path, int], Session]
    profile: Callable[[Path, int, list[np.ndarray], int], list[LayerTime]] | None
    save: Callable[[Path, Path], Path] | None = None
    convert: Callable[[Any, Sequence[str], Path], Path] | None = None
    int8: bool = True
    off_by: int = 1
    free_batch: bool = True
    check: Callable[[Path], object] = lambda path: None
    absent: Callable[[], str | None] = lambda: None


def require(package: str, extra: str) -> ModuleType:
    """The imported package; `MissingRuntimeError` names the pip extra where it is not installed."""
    try:
        if package in sys.modules:
            return importlib.import_module(package)
        with muffled():  # some warn about themselves, or about others, when they are imported
            return importlib.import_module(package)
    except ImportError as error:
        raise MissingRuntimeError(
            f"{package} is needed and cannot be imported ({error}); "
            f"pip install 'mirabelle[{extra}]'"
        ) from error


def unreadable(path: Path, runtime: str, error: Exception) -> InputError:
    """The error for a file that the runtime refuses, with the last telling line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(
        f"{path} cannot be opened by {runtime} "
        f"({lines[-1] if lines else type(error).__name__}); it was damaged or written by "
        "something else"
    )


def adapter(runtime: str) -> Runtime:
    from mirabelle.runtimes import RUNTIMES  # here, as that dict's adapters import this file

    return choose(runtime, RUNTIMES, "runtime")


def check_runs_here(runtime: str) -> None:
    """`MissingRuntimeError` where the runtime is not installed, or does not run on this machine."""
    found = adapter(runtime)
    found.version()
    if why := found.absent():
        raise MissingRuntimeError(f"{runtime} files can be made here but not run: {why}")


def _as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    """The array that the runtime gets: shape and type are checked, never changed; only bare Python
    numbers take the file's type.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        array = (
            np.asarray(value) if hasattr(value, "dtype") else np.asarray(value, dtype=spec.dtype)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"input {spec.name!r} is a {type(value).__name__} that makes no array ({error}); "
            f"expected {spec}"
        ) from error
    # A runtime reads the bytes as its own, whatever order NumPy knows them to be in.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    got = f"{array.shape} {array.dtype}".replace(",)", ")")
    fits = spec.shape is None or (
        len(spec.shape) == array.ndim
        and all(e is None or e == g for e, g in zip(spec.shape, array.shape))
    )
    if not fits or array.dtype.name != spec.dtype:
        raise InputError(f"input {spec.name!r} is {got}; expected {spec}")
    if array.size == 0:
        raise InputError(
            f"input {spec.name!r} is {got} and holds no values; give at least one sample"
        )
    # NumPy would make an array of one number of a bare number.
    return np.ascontiguousarray(array) if array.ndim else array


@dataclass(frozen=True)
class Artifact:
    """An exported network: call it with arrays. `threads` is the number of CPU threads that one
    call may use.

    The file is opened at the first use and stays open; copies and pickles of the artifact open it
    again.
    """

    path: Path
    runtime: str
    threads: int = 1

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        try:
            check_threads(self.threads)
        except InputError as error:
            raise InputError(f"threads is {self.threads!r}; {error}") from None
        adapter(self.runtime)

    def __reduce__(self):
        return Artifact, (
            self.path,
            self.runtime,
            self.threads,
        )  # without the open session, which no runtime can copy

    def __str__(self) -> str:
        return (
            f"{self.path.name} ({self.runtime} {self.version}, {self.threads} "
            f"thread{'s' * (self.threads > 1)})"
        )

    @cached_property
    def session(self) -> Session:
        """The open file. `InputError` where it is missing or damaged; `MissingRuntimeError` where
        it cannot run here.
        """
        runtime = adapter(self.runtime)
        if self.path.suffix != runtime.suffix:
            raise InputError(
                f"{self.path} does not end in {runtime.suffix}, as {self.runtime} needs"
            )
        if not self.path.is_file():
            raise InputError(
                f"{self.path} is not there"
                if not self.path.exists()
                else f"{self.path} is a folder; expected a file"
            )
        check_runs_here(self.runtime)
        runtime.check(self.path)
        return runtime.open(self.path, self.threads)

    @property
    def inputs(self) -> list[TensorSpec]:
        return self.session.inputs

    @property
    def outputs(self) -> list[TensorSpec]:
        return self.session.outputs

    @property
    def version(self) -> str:
        """The version of the installed runtime."""
        return adapter(self.runtime).version()

    @property
    def files(self) -> list[Path]:
        """All files that must travel together, the main one first."""
        return adapter(self.runtime).files(self.path)

    @property
    def bytes(self) -> int:
        """The size of all its files together."""
        return sum(f.stat().st_size for f in self.files)

    def arrays(self, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """One checked array per input, in the file's order. Positional arguments fill the inputs
        that are not named.

        Raises `InputError` with the input's name, what it got and what the file expects.
        """
        names = [s.name for s in self.inputs]
        if unknown := sorted(set(kwargs) - set(names)):
            raise InputError(
                f"{self.path.name} has no input {unknown[0]!r}; its inputs: {', '.join(names)}"
            )
        free = [n for n in names if n not in kwargs]
        if len(args) != len(free):
            raise InputError(
                f"{self.path.name} takes {len(names)} input(s) ({', '.join(names)}), got "
                f"{len(args) + len(kwargs)}"
            )
        given = {**dict(zip(free, args)), **kwargs}
        return [_as_array(given[s.name], s) for s in self.inputs]

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return self.session.run(arrays)
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise InputError(
                f"{self.runtime} cannot run {self.path.name} on inputs of shape {shapes}: "
                f"{str(error).strip()}"
            ) from error

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """The outputs, as NumPy arrays: one alone, or a named tuple in the file's order, which
        gives `outputs["boxes"]` too. Any batch size, where the file leaves it open.
        """
        return self._formed(self._run(self.arrays(*args, **kwargs)))

    def _formed(self, outputs: Sequence[np.ndarray]) -> np.ndarray | tuple[np.ndarray, ...]:
        if len(outputs) == 1:
            return outputs[0]
        return _named_outputs(tuple(o.name for o in self.outputs))(*outputs)

    def predict(self, batch: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """The outputs for a `mirabelle.base.data.Batch` of any size: a file for a fixed batch size
        runs it in pieces, the last one filled up.
        """
        sizes = {s.shape[0] for s in self.inputs if s.shape}
        size = sizes.pop() if len(sizes) == 1 else None
        if (
            size is None
            or batch.size == size
            or any(t.ndim == 0 or len(t) != batch.size for t in batch.tensors)
        ):
            return self(*batch.args, **batch.kwargs)
        pieces = []
        for start in range(0, batch.size, size):
            rows = [min(i, batch.size - 1) for i in range(start, start + size)]
            piece = batch.map(lambda t, rows=rows: t[rows])
            found = self(*piece.args, **piece.kwargs)
            pieces.append(found if isinstance(found, tuple) else (found,))
        return self._formed([np.concatenate(p)[: batch.size] for p in zip(*pieces)])

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> list[LayerTime]:
        """Milliseconds of each node that the runtime executes: the median over `runs` after a
        warm-up (OpenVINO: the mean), for the batch as given.

        From the runtime's own profiler, in a session of its own; its bookkeeping is inside the
        times, so they sum to more than the latency.
        Raises `InputError` where the runtime's package has no profiler.
        """
        if runs < 1:
            raise InputError(f"runs is {runs}; expected at least 1")
        profile = adapter(self.runtime).profile
        if profile is None:
            raise InputError(
                f"the package of {self.runtime} does not tell the times of single layers; "
                "measure the whole network"
            )
        return profile(self.path, self.threads, self.arrays(*args, **kwargs), runs)

    def with_threads(self, threads: int) -> Artifact:
        """The same file, run by so many threads."""
        return replace(self, threads=threads)


def alone(path: Path) -> list[Path]:
    """`Runtime.files` of a format that is one file."""
    check_present([path])
    return [path]


def check_present(paths: Sequence[Path]) -> None:
    """`InputError` names the first file that is missing."""
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{path} is not there; it belongs to {paths[0].name} and must lie beside it"
            )
