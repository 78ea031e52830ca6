"""A case for each operator: attributes, inputs and constants."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def write(
    path,
    nodes,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    outputs: list[str],
    opset: int = 18,
    shapes: dict | None = None,
    kind: int | None = 1,
):
    """An ONNX file. shapes: override those of the inputs, to leave dimensions open. kind: of the
    outputs; None leaves it to be inferred.
    """
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            value(n, helper.np_dtype_to_tensor_dtype(a.dtype), (shapes or {}).get(n, a.shape))
            for n, a in inputs.items()
        ],
        [onnx.ValueInfoProto(name=o) if kind is None else value(o, kind, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path
    )
    return path


X4, X3, X2 = floats(2, 4, 6, 8), floats(2, 4, 6), floats(3, 5)
# (operator, attributes, inputs, constants): constants stand behind the inputs, None is left out.
CASES = [
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}, [X4], [floats(6, 4, 3, 3), floats(6)]),
    ("Conv", {"group": 2, "dilations": [2, 1]}, [X4], [floats(6, 2, 2, 3)]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X4], [floats(4, 4, 3, 3)]),
    ("Conv", {"auto_pad": "SAME_LOWER", "kernel_shape": [2]}, [X3], [floats(4, 4, 2)]),
    (
        "ConvTranspose",
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        [X4],
        [floats(4, 3, 3, 3), floats(3)],
    ),
    ("Gemm", {"transB": 1}, [X2], [floats(4, 5), floats(4)]),
    ("Gemm", {}, [X2], [floats(5, 4)]),
    ("Gemm", {"alpha": 0.5, "beta": 2.0, "transA": 1}, [X2], [floats(3, 4), floats(4)]),
    ("MatMul", {}, [X3], [floats(6, 4)]),
    ("MatMul", {}, [X3, floats(2, 6, 3)], []),
    (
        "BatchNormalization",
        {"epsilon": 1e-3},
        [X4],
        [floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5],
    ),
    ("InstanceNormalization", {}, [X4], [floats(4), floats(4)]),
    ("LayerNormalization", {"axis": -1}, [X3], [floats(6), floats(6)]),
    *(
        (name, {}, [np.abs(X2) + 0.1 if name in ("Log", "Sqrt") else X2], [])
        for name in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "HardSwish",
            "Softplus",
            "Softsign",
            "Mish",
            "Erf",
            "Exp",
            "Log",
            "Abs",
            "Ceil",
            "Round",
            "Sign",
            "Sin",
            "Cos",
            "Reciprocal",
            "Sqrt",
            "Neg",
            "Floor",
            "IsNaN",
        )
    ),
    *((name, {}, [X4], [floats(4, 1, 1)]) for name in ("Add", "Sub", "Mul", "Div")),
    ("Pow", {}, [X2], [np.float32(2)]),
    ("Mod", {}, [np.arange(-6, 6)], [integers(4)]),
    ("Div", {}, [np.arange(-6, 6)], [np.full(12, 4)]),
    *(
        (name, {}, [X2, floats(3, 5)], [])
        for name in (
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Max",
            "Min",
            "Sum",
        )
    ),
    *((name, {}, [X2 > 0, X2 < 1], []) for name in ("And", "Or")),
    ("Not", {}, [X2 > 0], []),
    ("Where", {}, [X2 > 0, X2], [np.float32(0)]),
    ("Clip", {}, [X2], [np.float32(-0.5), np.float32(0.5)]),
    ("Clip", {}, [X2], [np.float32(0)]),
    ("Clip", {}, [X2], [None, np.float32(0.3)]),
    ("LeakyRelu", {"alpha": 0.1}, [X2], []),
    ("PRelu", {}, [X4], [floats(4, 1, 1)]),
    ("Elu", {"alpha": 0.5}, [X2], []),
    ("Gelu", {"approximate": "tanh"}, [X2], []),
    ("HardSigmoid", {}, [X2], []),
    ("HardSigmoid", {"alpha": 1 / 6}, [3 * X2], []),
    ("Softmax", {"axis": 1}, [X4], []),
    ("LogSoftmax", {}, [X2], []),
    ("Cast", {"to": TensorProto.INT32}, [X2], []),
    (
        "MaxPool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1},
        [X4],
        [],
    ),
    ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, [X4], []),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [X4], []),
    (
        "AveragePool",
        {"kernel_shape": [2, 2], "count_include_pad": 1, "pads": [1, 1, 1, 1]},
        [X4],
        [],
    ),
    ("GlobalAveragePool", {}, [X4], []),
    ("GlobalAveragePool", {}, [X3], []),
    ("GlobalMaxPool", {}, [X4], []),
    *(
        (name, {"keepdims": 0}, [X4], [integers(1, -1)])
        for name in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "ReduceSumSquare",
        )
    ),
    ("ReduceMean", {}, [X4], []),
    ("ArgMax", {"axis": 1}, [X4], []),
    (
        "Resize",
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        [X4],
        [None, np.float32([1, 1, 2, 3])],
    ),
    ("Resize", {"mode": "linear"}, [X4], [None, None, integers(2, 4, 9, 5)]),
    (
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [X4],
        [None, np.float32([1, 1, 2, 2])],
    ),
    ("Identity", {}, [X2], []),
    ("Dropout", {}, [X2], []),
    ("Reshape", {}, [X4], [integers(0, -1, 2)]),
    ("Flatten", {"axis": 2}, [X4], []),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [X4], []),
    ("Transpose", {}, [X3], []),
    ("Squeeze", {}, [floats(2, 1, 3, 1)], [integers(1, -1)]),
    ("Unsqueeze", {}, [X2], [integers(0, -1)]),
    ("Concat", {"axis": 1}, [X4, X4], []),
    ("Slice", {}, [X4], [integers(1, -3), integers(2**31, -1), integers(1, 3)]),
    ("Slice", {}, [X4], [integers(0), integers(5), integers(2), integers(2)]),
    ("Slice", {}, [X3], [integers(-1), integers(-(2**31)), integers(1), integers(-1)]),
    ("Gather", {"axis": 1}, [X4], [integers(2, -1)]),
    ("Gather", {"axis": 2}, [X4], [np.int64(-1)]),
    ("Gather", {"axis": 0}, [X2], [np.array([[0, 1], [2, -1]])]),
    ("Expand", {}, [floats(3, 1)], [integers(2, 1, 4)]),
    ("Tile", {}, [X2], [integers(2, 1)]),
    ("Pad", {}, [X4], [integers(0, 0, 1, 2, 0, 0, 3, 0), np.float32(1.5)]),
    ("Pad", {"mode": "reflect"}, [X4], [integers(0, 0, 1, 2, 0, 0, 3, 0)]),
    ("Pad", {"mode": "reflect"}, [X2], [integers(0, 2, 0, 1)]),
    ("Pad", {"mode": "edge"}, [X3], [integers(0, 0, 1, 0, 0, 2)]),
    ("DepthToSpace", {"blocksize": 2}, [X4], []),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [X4], []),
    ("SpaceToDepth", {"blocksize": 2}, [X4], []),
    ("Einsum", {"equation": "nij,nkj->nik"}, [X3, floats(2, 3, 6)], []),
    ("Trilu", {"upper": 0}, [floats(4, 5)], [np.int64(1)]),
]
# Tested with shapes below, or their like, or of old opsets.
ELSEWHERE = {"Linear", "Shape", "Size", "ConstantOfShape", "Range", "Split", "Upsample"}
