"""An ONNX file leads to no file outside of its folder, wherever it is read."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.measurement.onnx_macs import onnx_macs_by_value
from mirabelle.onnx_files.prepare import prepared
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.onnx_model import read_model, tensors

SIZE = 64 * 4


def weight(location, offset="0", length=str(SIZE), name="w"):
    tensor = TensorProto(name=name, data_type=1, dims=[8, 8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def file(folder, tensor, inside=False):
    """`y = x @ w` in `folder/model.onnx`; inside: the weight is an attribute of a node in a graph
    of a node.
    """
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    constants = [tensor]
    if inside:
        constant = helper.make_node("Constant", [], ["c"], value=tensor)
        branch = helper.make_graph([constant], "branch", [], [value("c", 1, [8, 8])])
        nodes = [
            helper.make_node("If", ["p"], ["w"], then_branch=branch, else_branch=branch),
            *nodes,
        ]
        constants = [helper.make_tensor("p", TensorProto.BOOL, [], [True])]
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", 8])], [value("y", 1, ["n", 8])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture
def place(tmp_path):
    """A folder for the file, beside a secret that is as long as a weight."""
    (tmp_path / "secret").write_bytes(np.ones(64, "<f4").tobytes())
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def by_link(place):
    (place / "w.bin").symlink_to(place.parent / "secret")
    return "w.bin"


def by_a_folder_that_is_a_link(place):
    (place / "sub").symlink_to(place.parent)
    return "sub/secret"


WAYS = {
    "a link": by_link,
    "a folder that is a link": by_a_folder_that_is_a_link,
    "dots": lambda place: "../secret",
    "dots in the middle": lambda place: "x/../../secret",
    "backslashes": lambda place: "..\\secret",
    "an absolute path": lambda place: str(place.parent / "secret"),
    "the folder itself": lambda place: ".",
    "nothing": lambda place: "",
}
EXPORTS = [r for r in RUNTIMES.values() if r.save is not None and r.name != "sparse"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_data_outside_of_the_folder_is_refused(place, name, inside):
    path = file(place, weight(WAYS[name](place)), inside)
    with pytest.raises(InputError, match="outside of its own folder"):
        read_model(path)


@pytest.mark.parametrize("runtime", EXPORTS, ids=lambda r: r.name)
def test_no_export_copies_the_secret(place, runtime):
    try:
        runtime.version()
    except ImportError as error:
        pytest.skip(str(error))
    path = file(place, weight(by_link(place)))
    with pytest.raises(InputError, match="outside of its own folder"):
        mb.export(path, place.parent / "out", runtime=runtime.name)
    assert not (place.parent / "out").exists()


def test_wherever_it_is_read(place):
    path = file(place, weight(by_link(place)))
    for read in (
        lambda: load(path, "onnxruntime"),
        lambda: mb.measure(path, inputs=np.zeros((1, 8), "float32")),
        lambda: mb.quantize(path, [torch.zeros(2, 8)]),
        lambda: prepared(path),
        lambda: onnx_macs_by_value(path),
        lambda: load(path, "onnxruntime").files,
    ):
        with pytest.raises(InputError, match="outside of its own folder"):
            read()


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        ("4", str(SIZE), "shorter than"),
        ("0", "9" * 18, "shorter than"),
        ("-4", str(SIZE), "names no place"),
        ("0", "9" * 5000, "names no place"),
        ("x", "y", "names no place"),
    ],
)
def test_places_that_the_data_does_not_have(place, offset, length, words):
    (place / "w.bin").write_bytes((place.parent / "secret").read_bytes())
    with pytest.raises(InputError, match=words):
        read_model(file(place, weight("w.bin", offset, length)))


def test_data_beside_the_file_and_below_is_read(place):
    (place / "sub").mkdir()
    (place / "sub" / "w.bin").write_bytes((place.parent / "secret").read_bytes())
    path = file(place, weight("sub/w.bin"))
    assert (onnx.numpy_helper.to_array(read_model(path).graph.initializer[0]) == 1).all()
    artifact = mb.export(path, place.parent / "out")
    assert [p.name for p in artifact.files] == ["model.onnx", "w.bin"]
    assert artifact(np.ones((1, 8), "float32")).sum() == 64
    with pytest.raises(InputError, match="is not there"):
        read_model(file(place, weight("none.bin")))


def test_all_tensors_are_seen(place):
    model = onnx.load(file(place, weight("x"), inside=True), load_external_data=False)
    model.graph.sparse_initializer.add().values.CopyFrom(weight("x", name="sparse"))
    function = model.functions.add()
    function.node.add().attribute.add().tensors.add().CopyFrom(weight("x", name="of a function"))
    model.training_info.add().algorithm.initializer.add().CopyFrom(weight("x", name="trained"))
    found = {t.name for t in tensors(model)}
    assert {"w", "sparse", "of a function", "trained"} <= found


@pytest.mark.parametrize("name", [b"product", b"x", b"w", b"offset", b"location", b"w.bin"])
def test_names_that_are_no_text(place, name):
    (place / "w.bin").write_bytes((place.parent / "secret").read_bytes())
    path = file(place, weight("w.bin"))
    content = path.read_bytes()
    length = bytes([len(name)])
    path.write_bytes(content.replace(length + name, length + b"\xff" * len(name)))
    with pytest.raises(InputError, match="cannot be opened by onnx"):
        read_model(path)
