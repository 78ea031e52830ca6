"""ONNX files as networks: quantized as well as those, and files that cannot be worked with."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.onnx_files.operators import OPERATORS
from mirabelle.quantization import quantization
from mirabelle.runtimes.clipping import kernels_with_pairs
from tests.onnx_files.cases import X4, floats, integers, write
from tests.quantized_networks import batches, build


def exported(name: str, tmp_path):
    model, data = build(name), batches(name, 2)
    return model, data, mb.export(model, tmp_path / "float", inputs=data[0][:1]).path


@pytest.mark.processor
@pytest.mark.parametrize("target", ["auto", "x86", "x86-vnni"])
@pytest.mark.parametrize(
    "name",
    [
        "residual",
        "depthwise",
        "sequential",
        "squeeze_excite",
        "concatenation",
        "used_twice",
        "tokens",
        "conv1d",
    ],
)
def test_a_file_is_quantized_as_well_as_its_network(name, target, tmp_path):
    model, data, path = exported(name, tmp_path)
    q = mb.quantize(path, data, target=target)
    artifact = mb.export(q, tmp_path / "int8", inputs=data[0][:1])
    found = mb.verify(q, artifact, data, samples=16)
    assert (
        max(c.max_off_by for c in found.layers) <= 1 and min(c.exact for c in found.layers) >= 0.99
    )
    if target == "x86-vnni" and kernels_with_pairs("onnxruntime"):
        assert found.saturated and "target='x86'" in str(found), (
            "files for other processors are said to be wrong here"
        )
        return
    assert not found.saturated
    with torch.no_grad():
        expected = model(data[1]).numpy()
        other = mb.quantize(model, data, target=target)(data[1]).numpy()
    error, theirs = (
        float(np.square(expected - v).sum()) for v in (artifact(data[1].numpy()), other)
    )
    assert error < 2 * theirs + 1e-9  # 3 dB: kernels of processors sum in other orders


def with_constant_nodes(path):
    """Weights in Constant nodes, an integer input, a Conv behind an operator that nobody translates
    (LSTM), an open width.
    """
    node, constant = (
        helper.make_node,
        lambda name, array: helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(array, name)
        ),
    )
    nodes = [
        constant("w", floats(8, 3, 3, 3)),
        constant("b", floats(8)),
        constant("v", floats(8, 8, 1, 1)),
        node("Conv", ["x", "w", "b"], ["c"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("ReduceMean", ["r", "two"], ["m"], keepdims=0),
        node("Transpose", ["m"], ["t"], perm=[2, 0, 1]),
        node("LSTM", ["t", "wi", "wh"], ["all"], "memory", hidden_size=8),
        node("Squeeze", ["all", "one"], ["s"]),
        node("Transpose", ["s"], ["u"], perm=[1, 2, 0]),
        node("Unsqueeze", ["u", "two"], ["image"]),
        node("Conv", ["image", "v"], ["d"], "second"),
        node("Cast", ["times"], ["f"], to=1),
        node("Mul", ["d", "f"], ["y"]),
    ]
    constants = {
        "two": integers(2),
        "one": integers(1),
        "wi": floats(1, 32, 8),
        "wh": floats(1, 32, 8),
    }
    return write(
        path,
        nodes,
        {"x": floats(2, 3, 6, 8), "times": np.int64(3)},
        constants,
        ["y"],
        shapes={"x": ["n", 3, 6, "width"]},
    )


def test_constant_nodes_integer_inputs_and_unknown_operators(tmp_path):
    path = with_constant_nodes(tmp_path / "m.onnx")
    data = [{"x": torch.from_numpy(floats(2, 3, 6, 8)), "times": torch.tensor(3)} for _ in range(3)]
    q = mb.quantize(path, data, samples=6)
    assert quantization(q).float_operators["LSTM"] == 1 and {
        s.layer for s in quantization(q).sites
    } >= {"input x", "first", "second"}
    artifact = mb.export(q, tmp_path / "q", inputs=data[0])
    kinds = [n.op_type for n in onnx.load(artifact.path).graph.node]
    assert kinds.count("LSTM") == 1 and kinds.count("Conv") == 2 and "Constant" not in kinds
    assert [(s.name, s.shape, s.dtype) for s in artifact.inputs] == [
        ("x", (None, 3, 6, None), "float32"),
        ("times", (), "int64"),
    ]
    wide = {"x": floats(3, 3, 6, 11), "times": np.array(2)}
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, wide)[
        0
    ]
    assert np.linalg.norm(artifact(**wide) - expected) < 0.1 * np.linalg.norm(
        expected
    )  # single values lie beyond those of the calibration data
    found = mb.verify(q, artifact, data, samples=6)
    assert max(c.max_off_by for c in found.layers) <= 1 and "LSTM" in found.float_operators
    mb.save(q, tmp_path / "saved")
    again = mb.load(tmp_path / "saved", path)
    assert torch.equal(again(**data[0]), q(**data[0]))
    assert (
        mb.export(again, tmp_path / "again", inputs=data[0]).path.read_bytes()
        == artifact.path.read_bytes()
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_on_either_side(transposed, tmp_path):
    """Gemm and MatMul keep the orientation of their weights; scales are per output."""
    w, v = floats(6, 4), floats(4, 3)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "gemm", transB=int(transposed)),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], "matmul"),
    ]
    x = floats(32, 6)
    path = write(
        tmp_path / "m.onnx",
        nodes,
        {"x": x},
        {"w": w.T.copy() if transposed else w, "v": v, "b": floats(4)},
        ["y"],
        shapes={"x": ["n", 6]},
    )
    q = mb.quantize(path, [torch.from_numpy(x)])
    artifact = mb.export(q, tmp_path, inputs=torch.from_numpy(x), name="q")
    graph = onnx.load(artifact.path).graph
    tensors = {t.name: t for t in graph.initializer}
    readers = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    for node, axis in (
        (next(n for n in graph.node if n.name == "gemm"), 0 if transposed else 1),
        (next(n for n in graph.node if n.name == "matmul"), 1),
    ):
        weight = readers[node.input[1]]
        assert [a.i for a in weight.attribute] == [axis] and list(tensors[weight.input[0]].dims)[
            axis
        ] == tensors[weight.input[1]].dims[0]
    assert (
        np.abs(
            artifact(x)
            - np.maximum(x @ w + numpy_helper.to_array(onnx.load(path).graph.initializer[2]), 0) @ v
        ).max()
        < 0.2
    )
    assert max(c.max_off_by for c in mb.verify(q, artifact, [torch.from_numpy(x)]).layers) <= 1


def test_old_opsets_are_converted(tmp_path):
    """Opset 11: the axes of Squeeze are an attribute, and there are no scales per channel."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Squeeze", ["g"], ["y"], axes=[2, 3]),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        {"x": X4},
        {"w": floats(3, 4, 3, 3)},
        ["y"],
        opset=11,
        shapes={"x": ["n", 4, 6, 8]},
    )
    q = mb.quantize(path, [torch.from_numpy(X4)])
    artifact = mb.export(q, tmp_path / "q", inputs=torch.from_numpy(X4))
    assert (
        np.abs(artifact(X4) - ort.InferenceSession(str(path)).run(None, {"x": X4})[0]).max() < 0.1
    )


def test_files_that_cannot_be_worked_with(tmp_path):
    x = torch.from_numpy(X4)
    with pytest.raises(InputError, match="is not there"):
        mb.quantize(tmp_path / "none.onnx", [x])
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07 not onnx")
    with pytest.raises(InputError, match="cannot be opened"):
        mb.quantize(tmp_path / "broken.onnx", [x])
    path = write(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": X4},
        {"w": floats(3, 4, 3, 3)},
        ["y"],
    )
    with pytest.raises(InputError, match=r"does not run on x \(2, 3, 6, 8\)"):
        mb.quantize(path, [x[:, :3]])
    with pytest.raises(InputError, match="takes x; got 2 by position"):
        mb.quantize(path, [Batch((x, x), {}, None)])
    with pytest.raises(InputError, match="takes x; got 0 by position and z"):
        mb.quantize(path, [{"z": x}])
    relu = write(
        tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": X4}, {}, ["y"]
    )
    with pytest.raises(InputError, match="nothing to quantize"):
        mb.quantize(relu, [x])


def test_a_translation_that_disagrees_is_left_to_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setitem(OPERATORS, "Sigmoid", lambda attributes, x: torch.tanh(x))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["y"], "gate"),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        {"x": X4},
        {"w": floats(3, 4, 3, 3)},
        ["y"],
        shapes={"x": ["n", 4, 6, 8]},
    )
    q = mb.quantize(path, [torch.from_numpy(X4)])
    assert quantization(q).float_operators == {"Sigmoid": 1}
    assert q(torch.from_numpy(floats(5, 4, 6, 8))).shape == (5, 3, 4, 6), (
        "its output follows the batch"
    )


def two_layers(tmp_path) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "one"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v"], ["y"], "two"),
    ]
    constants = {"w": floats(16, 4, 3, 3), "v": floats(2, 16, 1, 1)}
    return onnx.load(write(tmp_path / "m.onnx", nodes, {"x": X4}, constants, ["y"]))


def backwards(model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def constants_as_inputs(model):
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in model.graph.initializer
    )


def without_rank(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize("change", [backwards, constants_as_inputs, without_rank])
def test_files_that_runtimes_take_though_checkers_do_not(tmp_path, change):
    """Nodes in any order; constants that are inputs, too, as the first files had them; inputs that
    do not say their rank.
    """
    model, x = two_layers(tmp_path), torch.from_numpy(X4)
    path = tmp_path / "m.onnx"
    wanted = ort.InferenceSession(str(path)).run(None, {"x": X4})[0]
    change(model)
    path.write_bytes(model.SerializeToString())
    content = path.read_bytes()
    q = mb.quantize(path, [x])
    found = mb.export(q, tmp_path / "q", inputs=x)(X4)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    small = mb.prune(path, x, macs=0.6, data=[x], align=1)
    assert mb.export(small, tmp_path / "small", inputs=x)(X4).shape == wanted.shape
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.graph.output.append(helper.make_empty_tensor_value_info("z")), "output 'z'"),
        (lambda m: m.ClearField("opset_import"), "no opset"),
    ],
)
def test_files_that_no_runtime_takes(tmp_path, change, words):
    model = two_layers(tmp_path)
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    x = torch.from_numpy(X4)
    for call in (
        lambda: mb.prune(tmp_path / "m.onnx", x, macs=0.5),
        lambda: mb.explain(tmp_path / "m.onnx", x),
        lambda: mb.quantize(tmp_path / "m.onnx", [x]),
    ):
        with pytest.raises(InputError, match=words):
            call()
