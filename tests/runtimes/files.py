"""Small ONNX files with numbers that are known, and what they must give."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("float32")


def conv_file(path, batch="batch", external=False, quantized=False):
    """input (batch, 3, 8, 8) -> Conv 3x3 -> Relu; with Q/DQ at both of the convolution's inputs and
    its output if `quantized`.
    """
    scale, zero, signed = (
        numpy_helper.from_array(np.array(v, d), n)
        for v, d, n in ((0.05, "float32", "s"), (128, "uint8", "z"), (0, "int8", "w0"))
    )
    weight = numpy_helper.from_array(WEIGHT, "w")
    nodes, constants = (
        [helper.make_node("Conv", ["input", "w"], ["c"], "conv", pads=[1, 1, 1, 1])],
        [weight],
    )
    if quantized:
        codes = numpy_helper.from_array(
            np.clip(np.round(WEIGHT / 0.05), -127, 127).astype("int8"), "w8"
        )
        constants = [codes, scale, zero, signed]
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["i8"], "q"),
            helper.make_node("DequantizeLinear", ["i8", "s", "z"], ["i"], "dq"),
            helper.make_node("DequantizeLinear", ["w8", "s", "w0"], ["w"], "dqw"),
            helper.make_node("Conv", ["i", "w"], ["cf"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("QuantizeLinear", ["cf", "s", "z"], ["c8"], "qc"),
            helper.make_node("DequantizeLinear", ["c8", "s", "z"], ["c"], "dqc"),
        ]
    nodes.append(helper.make_node("Relu", ["c"], ["output"], "relu"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 4, 8, 8])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(
        model, path, save_as_external_data=external, location="weights.data", size_threshold=0
    )
    return path


def two_file(path):
    """a (n, 2) + b (n, 2) -> sum; a * b -> product; int64 input k is passed on."""
    floats = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2])
        for n in ("a", "b", "sum", "product")
    }
    k = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n"]) for n in ("k", "same")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Neg", ["k"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes, "two", [floats["a"], floats["b"], k[0]], [floats["sum"], floats["product"], k[1]]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def reference(x):
    return torch.relu(
        torch.nn.functional.conv2d(torch.as_tensor(x), torch.as_tensor(WEIGHT), padding=1)
    ).numpy()


def data(batch, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, 3, 8, 8)).astype("float32")
