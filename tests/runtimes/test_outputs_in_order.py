"""What converters get of networks that give dicts: a plain tuple of tensors, in order."""

import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import example_inputs
from mirabelle.exporter import to_program
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
