"""Whether a runtime's kernels add pairs of products in 16 bits on this processor, asked of the
runtime itself.

Flags of the processor do not answer that: systems hide them, emulators lack them, and libraries can
be told to use fewer instructions than there are (`ONEDNN_MAX_CPU_ISA`). One layer whose pairs leave
16 bits does.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from mirabelle.runtimes.artifact import adapter, check_runs_here, require

# The runtimes whose x86 kernels do so without VNNI, and how (`saturation.KERNELS`).
KERNELS = {"onnxruntime": "mlas", "onnxruntime-mobile": "mlas", "openvino": "onednn"}
CHANNELS, LARGEST, WEIGHT = 64, 255, 127


@lru_cache
def kernels_with_pairs(runtime: str) -> str | None:
    """The name in `saturation.KERNELS` of this runtime's kernels on this processor; None where they
    add in 32 bits.
    """
    if runtime not in KERNELS:
        return None
    check_runs_here(runtime)
    exact = CHANNELS * LARGEST * WEIGHT
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.onnx"
        _write(source, exact / 128)
        save = adapter(runtime).save
        assert save is not None
        found = (
            adapter(runtime)
            .open(save(source, Path(folder) / "saved"), 1)
            .run([np.full((1, CHANNELS, 4, 4), LARGEST, np.float32)])
        )
    return (
        KERNELS[runtime] if float(found[0].min()) < 0.75 * exact else None
    )  # clipped pairs add up to half


def _write(path: Path, step: float) -> None:
    """A pointwise convolution of bytes whose every pair of products is 64770. step: of the grid
    that the result is rounded on.
    """
    onnx = require("onnx", "onnxruntime")
    constants = {
        "unit": np.float32(1),
        "zero": np.uint8(0),
        "weight": np.full((16, CHANNELS, 1, 1), WEIGHT, np.int8),
        "weight_zero": np.int8(0),
        "step": np.float32(step),
    }
    nodes = [
        ("QuantizeLinear", ["x", "unit", "zero"], "stored"),
        ("DequantizeLinear", ["stored", "unit", "zero"], "input"),
        ("DequantizeLinear", ["weight", "unit", "weight_zero"], "filters"),
        ("Conv", ["input", "filters"], "sums"),
        ("QuantizeLinear", ["sums", "step", "zero"], "rounded"),
        ("DequantizeLinear", ["rounded", "step", "zero"], "y"),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "probe",
        [value("x", onnx.TensorProto.FLOAT, [1, CHANNELS, 4, 4])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
        ),
        path,
    )
