"""MNN on the CPU, in float32. It has the only maintained kernels for sparse weights that gain on
x86 and on Arm (see `sparse.py`).

Its console scripts install packages and post usage logs; nothing here calls them. The converter
inside the package does neither.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from threading import Lock
from time import perf_counter_ns
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic
from mirabelle.base.quiet import captured
from mirabelle.runtimes import mnnfile
from mirabelle.runtimes.artifact import (
    LayerTime,
    Runtime,
    Session,
    TensorSpec,
    alone,
    require,
    unreadable,
)
from mirabelle.runtimes.onnx_model import read_model

WARM_UP = 5
DTYPES = (
    "float32",
    "int32",
    "int64",
    "bool",
    "uint8",
    "int8",
)  # of inputs and outputs; MNN computes in float32 and int32
BIZ_CODE = "mirabelle"  # begins the note in files that `save` wrote


def _mnn() -> Any:
    with captured():  # it prints the machine's features
        return require("MNN", "mnn")


def version() -> str:
    return _mnn().version()


def _interpreter(path: Path) -> Any:
    package = _mnn()
    with captured() as said:
        try:
            return package.Interpreter(str(path))
        except Exception as error:
            raise unreadable(path, "mnn", Exception(f"{error}\n{said()}")) from error


def _session(interpreter: Any, path: Path, threads: int) -> Any:
    with captured() as said:
        # `high` keeps float32 where a CPU has 16-bit arithmetic.
        session = interpreter.createSession(
            {"backend": "CPU", "numThread": threads, "precision": "high"}
        )
    if session is None:
        raise unreadable(path, "mnn", Exception(said()))
    return session


def _specs(path: Path, interpreter: Any, session: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """As the ONNX file had them: `save` left them in the file, since MNN forgets open dimensions,
    64-bit integers and the order. Else what MNN says.
    """
    note = mnnfile.note(bytearray(path.read_bytes())) or ""
    if note.startswith(BIZ_CODE):
        inputs, outputs = (
            [TensorSpec(n, None if s is None else tuple(s), d) for n, s, d in tensors]
            for tensors in json.loads(note.removeprefix(BIZ_CODE))
        )
        return inputs, outputs
    found = (interpreter.getSessionInputAll(session), interpreter.getSessionOutputAll(session))
    inputs, outputs = (
        [TensorSpec(n, *_shape_and_type(t)) for n, t in tensors.items()] for tensors in found
    )
    return inputs, outputs


def _shape_and_type(tensor: Any) -> tuple[tuple[int | None, ...], str]:
    """A size that is left open is negative in MNN, and there is no array of it to ask for its
    type.
    """
    shape = tuple(None if s < 0 else s for s in tensor.getShape())
    return shape, "float32" if None in shape else tensor.getNumpyData().dtype.name


def _as_stored(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in the type that MNN holds it in; 64-bit integers that do not fit 32 bits are an
    `InputError`.
    """
    stored = array.astype(dtype, copy=False)
    if (
        dtype.kind == "i"
        and array.dtype.kind == "i"
        and dtype.itemsize < array.dtype.itemsize
        and not np.array_equal(stored, array)
    ):
        raise InputError(
            f"input {name!r} has values beyond {np.iinfo(dtype).max}; MNN has integers of "
            f"{8 * dtype.itemsize} bits"
        )
    return stored


class _Runner:
    """An open file and its session, which is laid out anew when the shapes of the inputs change."""

    def __init__(self, path: Path, threads: int):
        self.path, self.package, self.interpreter = path, _mnn(), _interpreter(path)
        self.session = _session(self.interpreter, path, threads)
        self.inputs, self.outputs = _specs(path, self.interpreter, self.session)
        self.tensors = self.interpreter.getSessionInputAll(self.session)
        self.kinds: dict[str, np.dtype] = {}  # once the sizes are known
        if sorted(self.tensors) != sorted(s.name for s in self.inputs):
            raise unreadable(
                path,
                "mnn",
                Exception(
                    f"its inputs are {sorted(self.tensors)}, those it was written with "
                    f"{[s.name for s in self.inputs]}"
                ),
            )
        self.shapes: list[tuple[int, ...]] | None = None
        self.lock = Lock()

    def _halide(self, dtype: np.dtype) -> Any:
        package = self.package
        return {
            "f": package.Halide_Type_Float,
            "i": package.Halide_Type_Int,
            "u": package.Halide_Type_Uint8,
        }[dtype.kind]

    def _tensor(self, array: np.ndarray) -> Any:
        return self.package.Tensor(
            array.shape, self._halide(array.dtype), array, self.package.Tensor_DimensionType_Caffe
        )

    def feed(self, arrays: Sequence[np.ndarray]) -> None:
        shapes = [a.shape for a in arrays]
        if shapes != self.shapes:
            self.shapes = None
            with captured() as said:
                for spec, shape in zip(self.inputs, shapes):
                    self.interpreter.resizeTensor(self.tensors[spec.name], shape)
                self.interpreter.resizeSession(self.session)
                if self.interpreter.runSession(self.session):
                    why = _telling(said(), "it does not say why")
                    raise InputError(
                        f"mnn cannot run {self.path.name} on inputs of shape "
                        f"{', '.join(map(str, shapes))}: {why}"
                    )
            self.shapes = shapes
            self.kinds = {n: t.getNumpyData().dtype for n, t in self.tensors.items()}
        for spec, array in zip(self.inputs, arrays):
            self.tensors[spec.name].copyFrom(
                self._tensor(_as_stored(array, self.kinds[spec.name], spec.name))
            )

    def results(self) -> list[np.ndarray]:
        found = []
        for spec in self.outputs:
            tensor = self.interpreter.getSessionOutput(self.session, spec.name)
            shape = tuple(tensor.getShape())
            array = np.zeros(shape, tensor.getNumpyData().dtype if math.prod(shape) else spec.dtype)
            if array.size:
                holder = self._tensor(array)
                tensor.copyToHostTensor(holder)
                array = np.array(holder.getNumpyData()).reshape(shape)
            found.append(array.astype(spec.dtype, copy=False))
        return found

    def __call__(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        with self.lock:
            self.feed(arrays)
            if code := self.interpreter.runSession(self.session):
                raise InputError(f"mnn cannot run {self.path.name}: error {code}")
            return self.results()


def _telling(text: str, otherwise: str) -> str:
    """The first line that speaks of an error, without MNN's stamp of the time."""
    lines = [line.strip() for line in text.splitlines() if "rror" in line or "Not Support" in line]
    return lines[0].rpartition("] :")[2] if lines else otherwise


def open(path: Path, threads: int) -> Session:
    runner = _Runner(path, threads)
    return Session(runner.inputs, runner.outputs, runner)


def timer(
    path: Path, threads: int, arrays: list[np.ndarray]
) -> Callable[[], dict[str, tuple[str, float]]]:
    """A function that runs the file once and returns each operator's kind and milliseconds, through
    MNN's callbacks around every operator.
    """
    runner = _Runner(path, threads)
    runner.feed(arrays)
    found: dict[str, tuple[str, float]] = {}
    begun = 0

    def before(tensors: Any, operator: Any) -> bool:
        nonlocal begun
        begun = perf_counter_ns()
        return True

    def after(tensors: Any, operator: Any) -> bool:
        passed = (perf_counter_ns() - begun) / 1e6
        name = operator.getName()
        found[name] = (operator.getType(), passed + (found[name][1] if name in found else 0.0))
        return True

    def once() -> dict[str, tuple[str, float]]:
        found.clear()
        runner.interpreter.runSessionWithCallBackInfo(runner.session, before, after)
        return dict(found)

    return once


def profile(path: Path, threads: int, arrays: list[np.ndarray], runs: int) -> list[LayerTime]:
    once = timer(path, threads, arrays)
    seen = [once() for _ in range(WARM_UP + runs)][WARM_UP:]
    return [
        LayerTime(name, kind, median(s[name][1] for s in seen), "Int8" in kind)
        for name, (kind, _) in seen[0].items()
    ]


def _described(onnx: Any, path: Path) -> str:
    """The note for the file: inputs and outputs as the ONNX file has them."""
    model = read_model(path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise unreadable(path, "onnx", error) from error
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node):
        raise InputError(
            f"{path.name} is quantized, and MNN cannot run integers that it did not choose "
            "itself; export the float network for mnn, or another runtime"
        )
    constants = {i.name for i in model.graph.initializer}
    parts = []
    for values in ([v for v in model.graph.input if v.name not in constants], model.graph.output):
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            if dtype not in DTYPES:
                raise InputError(
                    f"{path.name}: {value.name!r} is {dtype}; MNN takes {', '.join(DTYPES)}"
                )
            known = tensor.HasField("shape")
            specs.append(
                [
                    value.name,
                    [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
                    if known
                    else None,
                    dtype,
                ]
            )
        parts.append(specs)
    return BIZ_CODE + json.dumps(parts, separators=(",", ":"))


def convert(onnx_path: Path, folder: Path, *options: str) -> Path:
    """`folder/<stem>.mnn`, written by MNN's converter with these options of its own. The same file
    gives the same bytes.
    """
    _mnn()
    onnx = require("onnx", "mnn")
    with captured():
        tools = require("_tools", "mnn")
    onnx_path = Path(onnx_path)
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path} is not there")
    note = _described(onnx, onnx_path)
    target = Path(folder) / f"{onnx_path.stem}.mnn"
    with tempfile.TemporaryDirectory() as temporary, atomic(target) as written:
        # External data is taken into the file: MNN looks for it in the current folder.
        source = Path(temporary) / "network.onnx"
        onnx.save(read_model(onnx_path), source)
        command = [
            "mnnconvert",
            "-f",
            "ONNX",
            "--modelFile",
            str(source),
            "--MNNModel",
            str(written),
            "--bizCode",
            note,
            *options,
        ]
        with captured() as said:
            tools.mnnconvert(command)
            text = said()
        data = bytearray(written.read_bytes())
        if not data:  # it does not say by its result that it failed
            raise InputError(
                f"mnn cannot convert {onnx_path} ({_telling(text, 'it does not say why')})"
            )
        mnnfile.same_every_time(data)
        written.write_bytes(data)
    return target


def save(onnx_path: Path, folder: Path) -> Path:
    return convert(onnx_path, folder)


RUNTIME = Runtime("mnn", ".mnn", version, alone, open, profile, save, int8=False)
