"""ONNX in, smaller ONNX out: the file itself, with smaller constants."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import mirabelle as mb
from mirabelle.base.data import example_inputs
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import mask, remove
from mirabelle.measurement import count_macs
from mirabelle.onnx_files.read import network
from mirabelle.onnx_files.source import source_of
from mirabelle.onnx_files.write import onnx_proto, write_onnx
from tests.onnx_files.files import Residual, begin, images, node, residual, run, save, weights
from tests.quantized_networks import batches, build

pytestmark = pytest.mark.filterwarnings("ignore:.*run outside torch")


def read(path, x):
    return network(path, example_inputs(x), fold=False)


def close(found, expected, most: float = 1e-4) -> bool:
    found, expected = (np.asarray(v) for v in (found, expected))
    return float(np.abs(found - expected).max()) <= most * max(float(np.abs(expected).max()), 1e-3)


def described(proto) -> list:
    """What a pruned file keeps."""
    values = [*proto.graph.input, *proto.graph.output]
    return [
        [(n.name, n.domain, n.op_type, list(n.input), list(n.output)) for n in proto.graph.node],
        [
            (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        ],
        [(o.domain, o.version) for o in proto.opset_import],
        [(e.key, e.value) for e in proto.metadata_props],
        (proto.producer_name, proto.ir_version, proto.graph.name),
    ]


@pytest.mark.parametrize("opset", [11, 17])
def test_the_pruned_file_is_the_file_with_smaller_constants(tmp_path, opset):
    path, x = residual(tmp_path / "net.onnx", opset), images()
    with pytest.warns(UserWarning, match="1 of 14 nodes of the ONNX file run outside torch"):
        small = mb.prune(path, x, macs=0.5, data=[x], align=1)
    whole = read(path, x)
    assert count_macs(small, x) <= 0.5 * count_macs(whole, x)
    artifact = mb.export(small, tmp_path / "out", inputs=x, name="small")
    before, after = onnx.load(path), onnx.load(artifact.path)
    assert described(after) == described(before)
    old, new = ({t.name: t for t in p.graph.initializer} for p in (before, after))
    assert old.keys() == new.keys()
    assert new["untouched"].SerializeToString() == old["untouched"].SerializeToString()
    assert new["w1"].dims[0] < 16 and list(new["w1"].dims)[1:] == [3, 3, 3]
    group = next(a.i for a in after.graph.node[3].attribute if a.name == "group")
    assert group == new["wd"].dims[0] == new["w1"].dims[0]
    assert numpy_helper.to_array(new["flat"]).tolist() == [0, new["w4"].dims[1]]
    other = torch.randn(3, 3, 12, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for given in (x, other):  # another batch, another height
            for found, expected in zip(run(artifact.path, x=given), small(given)):
                assert close(found, expected)


def test_dead_channels_of_a_file_go_without_a_trace(tmp_path):
    """Filters of zeros, whose batch norm gives what the rectifier makes zero: the file without
    them gives what the whole one gives, in ONNX Runtime.
    """
    path, x = residual(tmp_path / "net.onnx"), images()
    proto = onnx.load(path)
    dead = [1, 4, 5, 11]
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w1", "b1", "gamma", "wd", "w2"):
            array[dead] = 0
        if tensor.name == "beta":
            array[dead] = -np.abs(array[dead])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    model = read(path, x)
    coupling = analyze(model, example_inputs(x))
    name = next(g.name for g in coupling.groups if g.channels == 16)
    small = remove(model, coupling, {name: torch.tensor(dead)})
    file = mb.export(small, tmp_path / "out", inputs=x).path
    assert {t.name: t for t in onnx.load(file).graph.initializer}["w2"].dims == [12, 12, 1, 1]
    other = images(5, 3)
    for found, expected in zip(run(file, x=other), run(path, x=other)):
        assert close(found, expected, 1e-6)


def test_it_is_what_pytorch_gives_for_the_same_weights(tmp_path):
    """The network of torch that the file holds, pruned by the same call, gives the same."""
    path, x = residual(tmp_path / "net.onnx", unknown=False), images(16)
    options: dict = {"macs": 0.6, "data": [x], "align": 1}
    with torch.no_grad():
        expected = mb.prune(Residual(read(path, x)).eval(), x, **options)(images(3, 7))
        found = mb.prune(path, x, **options)(images(3, 7))
    assert close(found, expected)


def heads(path, kind: str):
    """Attention whose sizes stand in the file: 4 heads of 6, an open batch."""
    begin()
    x = {"x": ["batch", 5, 24]}
    constants: dict = {"wq": weights(24, 24), "wk": weights(24, 24), "wv": weights(24, 24)}
    constants |= {"wo": weights(24, 24), "scale": np.float32(6**-0.5)}
    nodes = []
    if kind == "shared":  # one constant for three layers
        constants["shape"] = np.array([0, 5, 4, 6])
        shape = {n: "shape" for n in "qkv"}
        constants["flat"] = np.array([0, 5, 24])
    else:  # put together of what the input is, as torch's older exporter does
        constants |= {"zero": np.array(0), "axis": np.array([0])}
        constants |= {"five": np.array([5]), "four": np.array([4]), "six": np.array([6])}
        constants["all"] = np.array([24])
        nodes += [node("Shape", ["x"], ["sizes"]), node("Gather", ["sizes", "zero"], ["count"])]
        nodes += [node("Unsqueeze", ["count", "axis"], ["first"])]
        shape = {n: f"shape_{n}" for n in "qkv"}
        for n in "qkv":
            nodes.append(node("Concat", ["first", "five", "four", "six"], [shape[n]], axis=0))
        nodes.append(node("Concat", ["first", "five", "all"], ["flat"], axis=0))
    for n in "qkv":
        nodes += [node("MatMul", ["x", f"w{n}"], [n], f"{n}/MatMul")]
        nodes += [node("Reshape", [n, shape[n]], [f"{n}4"])]
        perm = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
        nodes += [node("Transpose", [f"{n}4"], [f"{n}h"], perm=perm)]
    nodes += [
        node("MatMul", ["qh", "kh"], ["raw"]),
        node("Mul", ["raw", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["weights"], axis=-1),
        node("MatMul", ["weights", "vh"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "flat"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["y"], "out/MatMul"),
    ]
    return save(path, nodes, x, {"y": ["batch", 5, 24]}, constants)


@pytest.mark.parametrize("kind", ["shared", "computed"])
def test_sizes_of_heads_in_the_file(tmp_path, kind):
    path = heads(tmp_path / "net.onnx", kind)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    model = read(path, x)
    coupling = analyze(model, example_inputs(x))
    # three of the four heads, and other channels of queries and keys than of values
    removed = {g.name: torch.tensor([0]) for g in coupling.groups}
    small = remove(model, coupling, removed)
    assert source_of(small) is not None and len(coupling.groups) >= 1
    file = mb.export(small, tmp_path / "out", inputs=x).path
    with torch.no_grad():
        expected = mask(model, coupling, removed)(x)
        assert close(small(x), expected) and close(run(file, x=x)[0], expected)
        wide = torch.cat([x, x, x])
        assert close(run(file, x=wide)[0], small(wide))
    assert [n.op_type for n in onnx.load(file).graph.node] == [
        n.op_type for n in onnx.load(path).graph.node
    ]


def test_splits_slices_and_positions_in_the_file(tmp_path):
    """Channels are split at a place, sliced to an end and picked one by one."""
    constants = {
        "w1": weights(12, 3, 1, 1),
        "w2": weights(7, 8, 1, 1),
        "w3": weights(7, 8, 1, 1),
        "parts": np.array([8, 4]),
        "four": np.array(4),
        "first": np.array([0]),
        "to": np.array([2**63 - 1]),
        "along": np.array([1]),
        "picked": np.array([3, 1, 0, 2]),
    }
    nodes = [
        node("Conv", ["x", "w1"], ["a"], "first"),
        node("Split", ["a", "parts"], ["b", "c"], axis=1),
        node("Unsqueeze", ["four", "first"], ["from"]),
        node("Slice", ["b", "from", "to", "along"], ["d"]),
        node("Gather", ["c", "picked"], ["e"], axis=1),
        node("Concat", ["d", "e"], ["f"], axis=1),
        node("Conv", ["f", "w2"], ["g"], "second"),
        node("Conv", ["b", "w3"], ["h"], "third"),
        node("Add", ["g", "h"], ["y"]),
    ]
    outputs = {"y": ["n", 7, 8, 8]}
    path = save(tmp_path / "net.onnx", nodes, {"x": ["n", 3, 8, 8]}, outputs, constants)
    x = images(2)
    model = read(path, x)
    coupling = analyze(model, example_inputs(x))
    removed = {g.name: torch.tensor([1]) for g in coupling.groups if g.channels > 1}
    small = remove(model, coupling, removed)
    assert removed and source_of(small) is not None
    file = mb.export(small, tmp_path / "out", inputs=x).path
    with torch.no_grad():
        expected = mask(model, coupling, removed)(x)
    assert close(run(file, x=x)[0], expected) and close(small(x).detach(), expected)


def test_halves_that_the_file_computes_become_numbers(tmp_path):
    """Unequal ones, as torch's older exporter writes `chunk`: by half of the size that there is."""
    constants = {"w1": weights(12, 3, 1, 1), "w2": weights(7, 6, 1, 1), "w3": weights(7, 6, 1, 1)}
    constants |= {n: np.array([v]) for n, v in {"zero": 0, "one": 1, "two": 2}.items()}
    nodes = [
        node("Conv", ["x", "w1"], ["a"], "first"),
        node("Shape", ["a"], ["sizes"]),
        node("Gather", ["sizes", "one"], ["count"], axis=0),
        node("Div", ["count", "two"], ["half"]),
        node("Slice", ["a", "zero", "half", "one"], ["b"], "upper"),
        node("Slice", ["a", "half", "count", "one"], ["c"], "lower"),
        node("Conv", ["b", "w2"], ["d"], "second"),
        node("Conv", ["c", "w3"], ["e"], "third"),
        node("Add", ["d", "e"], ["y"]),
    ]
    io = {"x": ["n", 3, 8, 8]}, {"y": ["n", 7, 8, 8]}
    path, x = save(tmp_path / "net.onnx", nodes, *io, constants), images(2)
    model = read(path, x)
    coupling = analyze(model, example_inputs(x))
    assert len(coupling.groups) == 2
    removed = {coupling.groups[0].name: torch.tensor([0, 3]), coupling.groups[1].name: [1]}
    small = remove(model, coupling, removed)
    assert source_of(small) is not None
    file = mb.export(small, tmp_path / "out", inputs=x).path
    with torch.no_grad():
        assert close(run(file, x=images(3))[0], mask(model, coupling, removed)(images(3)))
    mb.save(small, tmp_path / "saved")
    again = mb.export(mb.load(tmp_path / "saved", path), tmp_path / "again", inputs=x).path
    assert again.read_bytes() == file.read_bytes()


def test_a_saved_cut_of_a_file_that_says_all_sizes_can_be_exported(tmp_path):
    """torch writes the sizes of values between the layers: of what was loaded they are the old."""
    whole, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(2, 8)
    path = mb.export(whole, tmp_path, inputs=x).path
    assert onnx.load(path).graph.value_info
    small = mb.prune(path, x, macs=0.5)
    mb.save(small, tmp_path / "saved")
    again = mb.export(mb.load(tmp_path / "saved", path), tmp_path / "again", inputs=x)
    with torch.no_grad():
        assert close(again(x.numpy()), small(x))


def test_what_cannot_be_written_into_the_file_is_written_anew(tmp_path):
    """Every other channel is taken: what is left of these follows no step any more."""
    constants = {"w1": weights(12, 3, 1, 1), "w2": weights(7, 6, 1, 1)}
    constants |= {n: np.array([v]) for n, v in {"a": 0, "b": 12, "c": 1, "d": 2}.items()}
    nodes = [
        node("Conv", ["image", "w1"], ["e"], "first"),
        node("Slice", ["e", "a", "b", "c", "d"], ["f"], "every_other"),
        node("Conv", ["f", "w2"], ["scores"], "second"),
    ]
    io = {"image": ["n", 3, 8, 8]}, {"scores": ["n", 7, 8, 8]}
    path, x = save(tmp_path / "net.onnx", nodes, *io, constants), images(2)
    model = read(path, x)
    coupling = analyze(model, example_inputs(x))
    removed = {g.name: torch.tensor([1, 2]) for g in coupling.groups if g.channels > 2}
    small = remove(model, coupling, removed)
    with pytest.warns(UserWarning, match="its ONNX file.* written anew: of opset 20"):
        file = mb.export(small, tmp_path / "out", inputs=x).path
    after = onnx.load(file)
    assert [v.name for v in (*after.graph.input, *after.graph.output)] == ["image", "scores"]
    assert [e.value for e in after.metadata_props] == ["shirt, coat"]
    mb.save(small, tmp_path / "saved")
    with torch.no_grad():
        assert close(run(file, image=x)[0], mask(model, coupling, removed)(x))
        assert torch.equal(mb.load(tmp_path / "saved", path)(x), small(x))


def test_constants_that_several_read_in_several_forms(tmp_path):
    """Weights in Constant nodes, through Identity and Transpose; constants named among the inputs;
    equal biases that the exporter stored once, of layers that have nothing to do with one another.
    """
    w = weights(16, 8)
    held = numpy_helper.from_array(weights(8, 16), "held")
    nodes = [
        node("Constant", [], ["w2"], value=held),
        node("Identity", ["bias"], ["same"]),
        node("Transpose", ["w1"], ["turned"], perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["a"], "first"),
        node("Add", ["a", "bias"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Gemm", ["c", "w2", "eight"], ["d"], "second", transB=1),
        node("Relu", ["d"], ["e"]),
        node("Gemm", ["e", "w3", "same"], ["f"], "third"),
        node("Relu", ["f"], ["g"]),
        node("MatMul", ["g", "w4"], ["y"], "fourth"),
    ]
    constants = {"w1": w, "bias": np.full(16, 0.25, np.float32), "w3": weights(8, 16)}
    constants |= {"eight": np.zeros(8, np.float32), "w4": weights(16, 3)}
    io = {"x": ["n", 8]}, {"y": ["n", 3]}
    path = save(tmp_path / "net.onnx", nodes, *io, constants, as_inputs=["w1", "w4"])
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    small = mb.prune(path, x, params=0.6, align=1, keep=["third"])
    assert small.get_submodule("first").out_features < 16
    assert small.get_submodule("third").out_features == 16
    file = mb.export(small, tmp_path / "out", inputs=x).path
    with torch.no_grad():
        assert close(run(file, x=x)[0], small(x))
    after = onnx.load(file)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in onnx.load(path).graph.node]
    assert [i.name for i in after.graph.input] == ["x", "w1", "w4"]
    assert after.graph.input[1].type.tensor_type.shape.dim[0].dim_value < 16


@pytest.mark.filterwarnings("ignore:.*TorchScript-based ONNX export", "ignore:.*legacy")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [("tokens", False), ("depthwise", False), ("concatenation", False), ("squeeze_excite", True)],
)
def test_files_of_both_exporters(name, dynamo, tmp_path):
    """A small sample of `benchmarks/onnx_coverage.py`."""
    model, x = build(name), batches(name, 1)[0]
    path = tmp_path / "net.onnx"
    if dynamo:
        write_onnx(onnx_proto(model, example_inputs(x)), path)
    else:
        axes = {"input": {0: "batch"}, "output": {0: "batch"}}
        names: dict = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
        torch.onnx.export(model, (x,), path, dynamo=False, **names)
    small = mb.prune(path, x, macs=0.5, criterion="l1", align=1, allocation="uniform")
    assert source_of(small) is not None and 0.4 < count_macs(small, x) / count_macs(model, x) <= 0.5
    file = mb.export(small, tmp_path / "out", inputs=x).path
    given = {onnx.load(file).graph.input[0].name: torch.cat([x, x])}
    with torch.no_grad():
        assert close(run(file, **given)[0], small(torch.cat([x, x])))
    assert [n.op_type for n in onnx.load(file).graph.node] == [
        n.op_type for n in onnx.load(path).graph.node
    ]


def test_a_second_cut_and_saved_networks(tmp_path):
    path, x = residual(tmp_path / "net.onnx"), images()
    small = mb.prune(mb.prune(path, x, macs=0.7, align=1), x, macs=0.7, align=1)
    mb.save(small, tmp_path / "saved")
    again = mb.load(tmp_path / "saved", path)
    first, second = (
        mb.export(m, tmp_path / name, inputs=x) for m, name in ((small, "a"), (again, "b"))
    )
    assert first.path.read_bytes() == second.path.read_bytes()
    with torch.no_grad():
        assert close(run(first.path, x=x)[0], small(x)[0])
    q = mb.quantize(small, [x])
    int8 = mb.export(q, tmp_path / "int8", inputs=x)
    with torch.no_grad():
        assert close(int8(x.numpy())[0], small(x)[0], 0.1)
    mb.save(q, tmp_path / "quantized")
    loaded = mb.export(mb.load(tmp_path / "quantized", path), tmp_path / "c", inputs=x)
    assert loaded.path.read_bytes() == int8.path.read_bytes()
