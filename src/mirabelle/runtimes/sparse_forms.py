"""The layers of a network that could be sparse, and its MNN files with each in some form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mirabelle.base.files import atomic
from mirabelle.runtimes import mnn, mnnfile
from mirabelle.runtimes.artifact import require
from mirabelle.runtimes.onnx_model import read_model

FORMS = {
    "dense": 0,
    "1x1": 1,
    "4x1": 4,
}  # name -> output channels that share their zeros; what MNN has kernels for
STORED_SPARSE = 0.6  # MNN's converter leaves a layer dense with fewer zeros
# a sparse form is taken where it needs less than this of the dense one's time: below lies noise
WORTH = 0.97
ROUNDS, SECONDS = 30, 20.0


# --- the layers of an ONNX file
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """The constant weight of a layer: name in the file, kind (`linear`, `1x1 convolution`, ...),
    `rows` (outputs, inputs of one output), transposed in the file or not.
    """

    name: str
    kind: str
    rows: np.ndarray
    transposed: bool
    values: tuple[str, ...]


def weights(model: Any) -> list[Weight]:
    """The layers of an ONNX model that could be sparse: ungrouped convolutions and products with a
    constant matrix.

    values: the names under which the layer's output is known as it passes through what a converter
    fuses after it (bias, BatchNorm, rectifier).
    """
    onnx = require("onnx", "mnn")
    constants = {i.name: i for i in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        array = onnx.numpy_helper.to_array(constants[node.input[1]])
        transposed = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not attributes.get("transB", 0)
        )
        if (
            attributes.get("group", 1) != 1
            or array.dtype != np.float32
            or (node.op_type != "Conv" and array.ndim != 2)
        ):
            continue
        rows = (array.T if transposed else array).reshape(
            array.shape[1] if transposed else array.shape[0], -1
        )
        kind = (
            "linear"
            if node.op_type != "Conv"
            else "x".join(map(str, array.shape[2:])) + " convolution"
        )
        values = [node.output[0]]
        while len(after := readers.get(values[-1], [])) == 1 and after[0].op_type in (
            "Add",
            "BatchNormalization",
            "Relu",
            "Clip",
        ):
            values.append(after[0].output[0])
        found.append(Weight(node.input[1], kind, rows, transposed, tuple(values)))
    return found


def module_name(weight: str) -> str:
    """The layer that a weight belongs to: `layer1.0.conv1.weight` is `layer1.0.conv1`."""
    return weight.removesuffix(".weight")


def stored(rows: np.ndarray, block: int) -> tuple[int, int]:
    """(stored weights, blocks) of a matrix in blocks of `block` rows: a block is stored whole where
    one of its weights is not zero.

    The rows that are left over at the end are stored one by one.
    """
    if not block:
        return 0, 0
    used = rows != 0
    whole = len(used) - len(used) % block
    blocks = int(used[:whole].reshape(-1, block, used.shape[1]).any(1).sum())
    single = int(used[whole:].sum())
    return blocks * block + single, blocks + single


# --- forms
# --------------------------------------------------------------------------------------------------


def _matched(data: bytearray, found: list[Weight]) -> list[tuple[mnnfile.SparseLayer, Weight]]:
    """MNN's sparse layers with the weights that they came from; one that cannot be told stays as
    MNN's converter left it.
    """
    by_value = {value: w for w in found for value in w.values}
    named = [
        (layer, by_value.get(layer.name.removesuffix("__matmul_converted")))
        for layer in mnnfile.sparse_layers(data)
    ]
    return [(layer, weight) for layer, weight in named if weight is not None]


class Variants:
    """A network as MNN files that differ in the forms of their layers. `path` is that of the file
    with MNN's own choice.
    """

    def __init__(self, onnx_path: Path, folder: Path):
        self.path = mnn.convert(onnx_path, folder, "--detectSparseSpeedUp")
        self.data = bytearray(self.path.read_bytes())
        self.weights = weights(read_model(onnx_path))
        self.matched = _matched(self.data, self.weights)
        self.operators = {weight.name: layer.name for layer, weight in self.matched}

    def forms(self) -> list[str]:
        """The forms that are worth timing: blocks only where they leave out something."""
        blocked = any(
            stored(w.rows, 4)[0] < (1 - STORED_SPARSE) * w.rows.size for _, w in self.matched
        )
        return ["dense", "1x1", *(["4x1"] if blocked else [])] if self.matched else ["dense"]

    def write(self, path: Path, form: str | Mapping[str, str]) -> Path:
        """The network with all its sparse layers in one form, or each (by weight) in its own."""
        data = bytearray(self.data)
        for layer, weight in self.matched:
            block = FORMS[form if isinstance(form, str) else form[weight.name]]
            layer.run_as(data, block, *stored(weight.rows, block))
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        return path

    def time(
        self, folder: Path, arrays: list[np.ndarray], threads: int, rounds: int = ROUNDS
    ) -> dict[str, dict[str, float]]:
        """Median milliseconds by weight and form: the variants take turns, so that what else the
        machine does hits all of them.
        """
        passes = {
            form: mnn.timer(self.write(folder / f"{form}.mnn", form), threads, arrays)
            for form in self.forms()
        }
        seen: dict[str, list[dict[str, tuple[str, float]]]] = {form: [] for form in passes}
        from mirabelle.base.progress import (
            track,
        )  # here: processes that only run a file, the emulated one too, have no rich

        for i in track(range(mnn.WARM_UP + rounds), "timing layers"):
            for form, once in passes.items():
                once()  # the others have just emptied the caches
                if i >= mnn.WARM_UP:
                    seen[form].append(once())
        return {
            w: {form: median(run[op][1] for run in runs) for form, runs in seen.items()}
            for w, op in self.operators.items()
        }


def fastest(times: Mapping[str, float]) -> str:
    """The form with the least time; a sparse one only where it gains more than noise."""
    best = min(times, key=times.__getitem__)
    return best if times[best] < WORTH * times["dense"] else "dense"
