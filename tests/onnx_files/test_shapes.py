"""Shapes are computed while a network is captured."""

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from mirabelle.base.data import Batch
from mirabelle.onnx_files.read import network
from mirabelle.quantization.simulation.graph import captured
from tests.onnx_files.cases import X4, floats, integers, write


def shapes_of(path):
    """x.reshape(n, c, h * w) built the long way: Shape, Gather, Slice, Mul, Unsqueeze, Concat,
    Cast; then halves, put together again.
    """
    node = helper.make_node
    constants = {
        "zero": np.int64(0),
        "from": integers(2),
        "to": integers(4),
        "first": integers(0),
        "two": integers(2),
        "kept": integers(1),
    }
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Unsqueeze", ["n", "first"], ["n1"]),
        node("Slice", ["shape", "from", "to"], ["hw"]),
        node("Gather", ["hw", "zero"], ["h"]),
        node("Slice", ["hw", "kept", "two"], ["w"]),
        node("Mul", ["h", "w"], ["area"]),
        node("Cast", ["area"], ["area64"], to=TensorProto.INT64),
        node("Slice", ["shape", "kept", "two"], ["c"]),
        node("Concat", ["n1", "c", "area64"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["flat"]),
        node("Split", ["flat"], ["a", "b"], axis=2, num_outputs=2),
        node("Concat", ["b", "a"], ["turned"], axis=2),
        node(
            "ConstantOfShape", ["wanted"], ["zeros"], value=numpy_helper.from_array(np.float32([1]))
        ),
        node("Add", ["turned", "zeros"], ["y"]),
    ]
    return write(path, nodes, {"x": X4}, constants, ["y"], shapes={"x": ["n", 4, 6, 8]})


def test_shapes_are_computed_while_capturing_and_the_batch_stays_free(tmp_path):
    path = shapes_of(tmp_path / "m.onnx")
    example = Batch((torch.from_numpy(X4),), {}, None)
    read = network(path, example)
    graph = captured(read, example)
    assert not read.meta["onnx"].outside
    x = floats(5, 4, 6, 8)
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    assert np.array_equal(graph(torch.from_numpy(x)).numpy(), expected)
