"""What converters get of networks that give dicts: a plain tuple of tensors, in order; and what
files call them.
"""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import example_inputs
from mirabelle.exporter import to_program
from mirabelle.onnx_files.write import output_names
from mirabelle.runtimes.litert import _order_ends


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        seen = self.conv(x).relu()
        mean = seen.mean((2, 3))
        return {"logits": self.last(mean), "nothing": None, "inner": [mean, {"seen": seen}]}


def test_programs_for_converters_give_tuples():
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(2, 3, 8, 8)
    quantized = mb.quantize(model, [torch.randn(8, 3, 8, 8)])
    for network in (model, quantized):
        captured, _ = to_program(network, example_inputs(x))
        with torch.no_grad():
            found = captured.module()(x)
            wanted = network(x)
        assert type(found) is tuple and len(found) == 3
        assert captured.call_spec.out_spec is not None
        assert captured.call_spec.out_spec.type is tuple
        parts = (wanted["logits"], wanted["inner"][0], wanted["inner"][1]["seen"])
        for a, b in zip(found, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (torch.ones(1), ["output"]),
        ((torch.ones(1),), ["output"]),
        ([torch.ones(1), None, {"a": torch.ones(1)}], ["output0", "output2_a"]),
        ({"x": torch.ones(1), "y": {"x": torch.ones(1)}}, ["x_", "y_x"]),
        ({"y": {"z": torch.ones(1)}, "y_z": torch.ones(1)}, ["y_z", "y_z_"]),
    ],
)
def test_names_of_outputs(given, names):
    assert output_names(given, ["x"]) == names


class Heads(nn.Module):
    """Its outputs are called as an input and as a value inside are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        inside = self.linear(x)
        return {"input": inside.relu(), "linear": -inside}


def second(output, target):
    return (output["linear"].argmax(1) == target).float()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
def test_a_metric_reads_the_outputs_of_a_file_by_name(integers, runtime, tmp_path):
    torch.manual_seed(0)
    model = Heads().eval()
    x = torch.randn(64, 4)
    data = [(x, model(x)["linear"].argmax(1))]
    if integers:
        model = mb.quantize(model, data)
    file = mb.export(model, tmp_path, runtime=runtime, inputs=x)
    assert [o.name for o in file.outputs] == ["input_", "linear"]
    found = file(x)
    wanted = model(x)
    for i, key in enumerate(("input", "linear")):
        np.testing.assert_allclose(found[i], wanted[key].detach(), atol=0.02)
    assert found["linear"] is found[1]
    with pytest.raises(KeyError, match="linaer; the outputs are input_, linear"):
        found["linaer"]
    score = mb.measure(file, data, second, runs=1).score
    assert score is not None and score.value > 0.95


def test_programs_that_give_a_tensor_stay_as_they_are():
    captured, _ = to_program(nn.Linear(3, 2), example_inputs(torch.ones(2, 3)))
    assert captured.module()(torch.ones(2, 3)).shape == (2, 2)


class _Map:
    def __init__(self, name, index):
        self.name, self.tensorIndex = name.encode(), index


class _Ends:
    """As LiteRT's files hold them: inputs, outputs, or lists of tensors."""

    def __init__(self, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs


def _ordered(outputs, own):
    signature = _Ends([_Map("args_0", 0)], [_Map(n, i) for n, i in outputs])
    model, graph = type("M", (), {"signatureDefs": [signature]})(), _Ends([], own)
    _order_ends(model, graph, example_inputs(torch.ones(1, 2)))
    return graph.outputs


def test_outputs_of_litert_are_in_order_with_numbers_and_with_names():
    assert _ordered([("output_10", 5), ("output_2", 7)], [5, 7]) == [7, 5]
    assert _ordered([("logits", 5), ("boxes", 7)], [7, 5]) == [7, 5]
