"""MACs against counts by hand, in networks and in ONNX files."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mirabelle.base.errors import InputError
from mirabelle.measurement import (
    count_macs,
    count_onnx_macs,
    count_onnx_parameters,
    count_parameters,
    fvcore_macs,
)
from mirabelle.measurement.macs import macs_by_module
from tests.measurement.files import SMALL_MACS, export, resnet50, save, small


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_resnet50(device):
    with torch.device("meta"):
        model = resnet50()
    x = torch.zeros(1, 3, 224, 224, device="meta")
    if device == "cpu":
        model, x = model.to_empty(device="cpu"), torch.zeros(1, 3, 224, 224)
    assert count_parameters(model) == 25_557_032
    assert count_macs(model, x) == 4_089_184_256
    assert fvcore_macs(model, x) == 4_144_854_528
    assert count_macs(model, x.expand(3, -1, -1, -1)) == 4_089_184_256


def test_counts_by_hand():
    x = torch.randn(2, 3, 12, 12)
    assert count_macs(small(), x) == SMALL_MACS and type(count_macs(small(), x)) is int
    assert fvcore_macs(small(), x) == SMALL_MACS + 5 * 8 * 36 + 8 * 36
    assert (
        count_macs(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), torch.randn(3, 4, 5, 5))
        == 4 * 25 * 3 * 9
    )
    assert count_macs(nn.Linear(4, 5), torch.randn(7, 4)) == 20
    assert count_macs(nn.Conv1d(2, 3, 5), torch.randn(1, 2, 9)) == 3 * 5 * 2 * 5
    assert count_macs(nn.ReLU(), x) == 0
    assert fvcore_macs(nn.AdaptiveAvgPool2d(3), x) == 3 * 144


class Attends(nn.Module):
    """One layer of attention; `stuck` keeps it from running without data."""

    def __init__(self, stuck: bool):
        super().__init__()
        self.layer, self.stuck = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), stuck

    def forward(self, x):
        if self.stuck:
            float(x.sum())
        heads = x[:, None]  # (N, 1, 5, 8): the exporter takes nothing else
        return self.layer(x) + nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]


@pytest.mark.parametrize("stuck", [False, True])
def test_attention_is_counted_without_data_and_with(stuck):
    projections, scores, mlp = 5 * 8 * 8 * 4, 2 * 5 * 5 * 8, 5 * 8 * 16 * 2
    assert count_macs(Attends(stuck), torch.randn(3, 5, 8)) == projections + 2 * scores + mlp


class Recurrent(nn.Module):
    def __init__(self, stuck: bool):
        super().__init__()
        self.lstm, self.stuck, self.plain = nn.LSTM(8, 4, batch_first=True), stuck, torch.ones(4)

    def forward(self, x):
        y = self.lstm(x)[0]
        return y @ self.plain.to(y.device) + float(y.sum()) if self.stuck else y


@pytest.mark.parametrize(("stuck", "more"), [(False, 0), (True, 5 * 4)])
def test_recurrent_layers_and_vectors(stuck, more):
    assert count_macs(Recurrent(stuck), torch.randn(2, 5, 8)) == 5 * (8 + 4) * 4 * 4 + more


class Dictionary(nn.Module):
    """Two layers that share a weight, and a count of calls that `stuck` reads, so that it does not
    run without data.
    """

    def __init__(self, stuck: bool):
        super().__init__()
        self.stuck = stuck
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, left, right):
        self.calls += 1
        if self.stuck:
            float(self.calls)
        return self.a(left) + self.b(right)


def test_counting_changes_nothing():
    model = nn.Sequential(small(), nn.Dropout())
    model.train()
    model[0][1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x = torch.randn(4, 3, 12, 12)
    fvcore_macs(model, x)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    for shared in (Dictionary(stuck=False), Dictionary(stuck=True)):
        assert count_parameters(shared) == 16
        assert count_macs(shared, {"left": torch.randn(2, 4), "right": torch.randn(2, 4)}) == 32
        assert shared.calls.item() == 0
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled


def test_counting_refuses_what_does_not_run():
    with pytest.raises(InputError, match=r"does not run.*\(1, 4, 12, 12\)"):
        count_macs(small(), torch.randn(1, 4, 12, 12))
    with pytest.raises(InputError, match="expected a torch.nn.Module"):
        count_macs("small.onnx", torch.randn(1, 3, 12, 12))  # type: ignore[arg-type]


def test_onnx_counts_equal_the_module(exported):
    model, path = exported
    assert (
        count_onnx_macs(path)
        == (count_macs(model, torch.randn(1, 3, 12, 12)), [])
        == (SMALL_MACS, [])
    )
    assert (
        count_onnx_parameters(path) == count_parameters(model) - 16
    )  # BatchNorm's are folded into the convolution


def test_onnx_counts_of_attention_equal_the_module(tmp_path):
    model, x = Attends(stuck=False).eval(), torch.randn(2, 5, 8)
    export(model, x, tmp_path / "attends.onnx")
    assert count_onnx_macs(tmp_path / "attends.onnx") == (count_macs(model, x), [])


def test_onnx_counts_quantized_forms(tmp_path):
    s, z, z8 = np.float32(0.1), np.uint8(128), np.int8(0)
    w = np.ones((4, 3, 3, 3), "int8")
    constants = {
        "s": s,
        "z": z,
        "z8": z8,
        "w8": w,
        "bias": np.ones(4, "int32"),
        "ws": np.ones(4, "float32"),
        "wz": np.zeros(4, "int8"),
    }
    float_input, macs = [("x", TensorProto.FLOAT, ["n", 3, 6, 6])], 4 * 16 * 27
    q = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"])
    qdq = [
        q,
        helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "s"], ["bd"]),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["y"]),
    ]
    path = save(
        tmp_path / "qdq.onnx",
        qdq,
        float_input,
        [("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        constants,
    )
    assert count_onnx_macs(path) == (macs, [])
    assert count_onnx_parameters(path) == 4 * 27 + 4
    linear = [
        q,
        helper.make_node(
            "QLinearConv", ["x8", "s", "z", "w8", "ws", "wz", "s", "z", "bias"], ["y"]
        ),
    ]
    path = save(
        tmp_path / "qlinear.onnx", linear, float_input, [("y", TensorProto.UINT8, None)], constants
    )
    assert count_onnx_macs(path) == (macs, [])
    assert count_onnx_parameters(path) == 4 * 27 + 4
    integer = [q, helper.make_node("ConvInteger", ["x8", "w8", "z", "z8"], ["y"])]
    assert count_onnx_macs(
        save(
            tmp_path / "integer.onnx",
            integer,
            float_input,
            [("y", TensorProto.INT32, None)],
            constants,
        )
    ) == (macs, [])


def test_onnx_counts_transposed_and_matrix_products(tmp_path):
    f, constants = (
        TensorProto.FLOAT,
        {"w": np.ones((4, 3, 3, 3), "float32"), "b": np.ones((5, 9), "float32")},
    )
    up = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2)]
    path = save(tmp_path / "up.onnx", up, [("x", f, [2, 4, 5, 5])], [("y", f, None)], constants)
    assert count_onnx_macs(path) == (4 * 25 * 3 * 9, [])  # of one sample of the two
    products = [
        helper.make_node("Gemm", ["a", "b"], ["g"], transA=1, transB=1),  # a: (9, n) as stored
        helper.make_node("MatMul", ["p", "q"], ["m"]),
    ]
    inputs = [("p", f, [1, 3, 4, 6]), ("q", f, [1, 3, 6, 2]), ("a", f, [9, 7])]
    path = save(
        tmp_path / "products.onnx", products, inputs, [("g", f, None), ("m", f, None)], constants
    )
    assert count_onnx_macs(path) == (7 * 9 * 5 + 3 * 4 * 6 * 2, [])


def test_onnx_names_what_it_cannot_count(tmp_path):
    f = TensorProto.FLOAT
    nodes = [
        helper.make_node("Einsum", ["x", "x"], ["e"], "products", equation="bi,bj->bij"),
        helper.make_node("Secret", ["x"], ["h"], "hidden", domain="my.own"),
        helper.make_node("MatMul", ["h", "h"], ["m"], "unknown"),
        helper.make_node("Relu", ["x"], ["r"], "free"),
    ]
    outputs = [(n, f, None) for n in ("e", "m", "r")]
    path = save(tmp_path / "odd.onnx", nodes, [("x", f, ["n", 3])], outputs, domain="my.own")
    assert count_onnx_macs(path) == (
        0,
        ["Einsum (products)", "Secret (hidden)", "MatMul (unknown)"],
    )
    for bad in (b"", b"<html>", b"\x08\x07"):
        (tmp_path / "bad.onnx").write_bytes(bad)
        with pytest.raises(InputError, match="bad.onnx.*damaged"):
            count_onnx_macs(tmp_path / "bad.onnx")
    with pytest.raises(InputError, match="is not there"):
        count_onnx_macs(tmp_path / "none.onnx")


def test_macs_by_module_add_up_and_are_of_one_sample():
    """3x3 on 4x4 outputs from 1 to 2 channels: 288; from 32 to 3: 96."""
    inner = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    net = nn.Sequential(OrderedDict(inner=inner, flat=nn.Flatten(), fc=nn.Linear(32, 3)))
    found = macs_by_module(net, torch.zeros(5, 1, 4, 4))
    assert found == {"inner": 288, "inner.0": 288, "fc": 96}
    assert found["inner"] + found["fc"] == count_macs(net, torch.zeros(1, 1, 4, 4))


def conv_of_constant_nodes(folder):
    """A convolution whose weight is a node, on pictures of open size."""
    weight = np.ones((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    sides = (
        ("x", TensorProto.FLOAT, ["N", 3, "H", "W"]),
        ("y", TensorProto.FLOAT, ["N", 8, None, None]),
    )
    return save(folder / "a.onnx", nodes, [sides[0]], [sides[1]])


def test_weights_in_nodes_and_sizes_that_are_said(tmp_path):
    path = conv_of_constant_nodes(tmp_path)
    assert count_onnx_parameters(path) == 216
    assert count_onnx_macs(path) == (0, ["Conv (conv)"])
    # 14 * 14 places, 8 filters of 27 weights; per sample of two
    assert count_onnx_macs(path, {"x": (2, 3, 16, 16)}) == (14 * 14 * 8 * 27, [])
