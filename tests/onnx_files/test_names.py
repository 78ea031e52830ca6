"""Names that files of other makers and users' modules have: attributes of `nn.Module`, keywords,
quotes, line ends.
"""

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mirabelle.base.data import as_batch, example_inputs
from mirabelle.base.graph_names import identifier, is_free
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from mirabelle.exporter import export
from mirabelle.onnx_files.read import network
from mirabelle.quantization.api import quantize
from mirabelle.store import load, save

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def file_of(path, nodes, weights, x, y):
    rng = np.random.default_rng(0)
    first, second = (
        numpy_helper.from_array(rng.standard_normal(shape).astype("f"), name)
        for shape, name in zip([(8, 3, 1, 1), (4, 8, 1, 1)], weights, strict=True)
    )
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [x, weights[0]], ["a"], name=nodes[0]),
            helper.make_node("Relu", ["a"], ["b"], name=nodes[1]),
            helper.make_node("Conv", ["b", weights[1]], [y], name=nodes[2]),
        ],
        "graph",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 4, 4, 4])],
        [first, second],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    weight, other = (torch.tensor(numpy_helper.to_array(t)) for t in (first, second))
    return nn.functional.conv2d(torch.relu(nn.functional.conv2d(X, weight)), other)


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "y"),
    [
        (("to", "type", "half"), ("w1", "w2"), "x", "y"),
        (("train", "forward", "to/to"), ("to", "training"), "half", "y"),
        (("class", "def/if", "lambda"), ("import", "None"), "class", "return"),
        (("it's", 'a"b', "a\nb\\"), ("it's\n", '"'), "x\n'", "y"),
        (("graph", "print_readable", "__dict__"), ("_parameters", "eval"), "self", "y"),
        (("a", "a/b", "a.b"), ("w1", "w2"), "meta", "y"),
    ],
)
def test_files_whose_names_mean_something_else(tmp_path, nodes, weights, x, y):
    path = tmp_path / "model.onnx"
    expected = file_of(path, nodes, weights, x, y)
    found = network(path, as_batch(X))
    torch.testing.assert_close(found(X).detach(), expected)
    quantized = quantize(path, [X])
    with torch.no_grad():
        simulated = quantized(X)
    assert (simulated - expected).norm() < 0.05 * expected.norm()
    artifact = export(quantized, tmp_path / "out", inputs=X)
    assert np.allclose(artifact(X.numpy())[0], simulated.numpy()[0], atol=0.2)
    save(quantized, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", path)(X), simulated)


class Named(nn.Module):
    def __init__(self, first: str, second: str):
        super().__init__()
        self.names = (first, second)
        self.layers = nn.ModuleDict({first: nn.Conv2d(3, 16, 1), second: nn.Conv2d(16, 8, 1)})

    def forward(self, x):
        y = torch.relu(self.layers[self.names[0]](x))
        return self.layers[self.names[1]](torch.cat([y[:, 8:], y[:, :8]], 1))


@pytest.mark.parametrize(
    "names", [("class", "None"), ("it's", 'a"b'), ("a\nb", "a\\b"), ("a b", "[red]")]
)
def test_modules_whose_names_are_no_python(names, tmp_path):
    """In graph form too, as the places of the halves are written into forward."""
    model = networks.stir(Named(*names)).eval()
    coupling = analyze(model, as_batch(X))
    small = remove(model, coupling, {f"layers.{names[0]}": torch.tensor([0, 1, 2])})
    assert isinstance(small, torch.fx.GraphModule)
    assert small.get_parameter(f"layers.{names[0]}.weight").shape[0] == 13
    save(small, tmp_path)
    assert torch.equal(load(tmp_path, model)(X), small.eval()(X))
    assert f"layers.{names[1]}.weight" in dict(quantize(model, [X]).named_parameters())


@pytest.mark.parametrize("named", [False, True])
def test_inputs_that_are_called_like_attributes(named):
    class Inputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)

        def forward(self, type, to):
            return self.b(torch.relu(self.a(type + to)))

    given = {"to": X, "type": X + 1} if named else (X + 1, X)
    model = Inputs().eval()
    quantized = quantize(model, [(given, None)])
    args, kwargs = example_inputs(given)[:2]
    with torch.no_grad():
        found, expected = quantized(*args, **kwargs), model(*args, **kwargs)
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_what_a_name_becomes():
    assert [identifier(n) for n in ("conv1", "to", "class", "a b", "1", "")] == [
        "conv1",
        "to_",
        "class_",
        "a_b",
        "_1",
        "value",
    ]
    assert identifier("1", digits=True) == "1"
    assert is_free("conv") and not is_free("half") and not is_free("lambda")
