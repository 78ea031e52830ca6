"""Exported files: their structure by written rules, their bytes, and that runtimes do execute
integers.
"""

import copy
import hashlib
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

import mirabelle as mb
from mirabelle.base.data import Batch, as_batch
from mirabelle.base.errors import CaptureError, InputError
from mirabelle.onnx_files.qdq import META, Integers
from mirabelle.onnx_files.write import onnx_proto
from mirabelle.quantization import quantize
from mirabelle.quantization.forms.qdq import with_integers
from mirabelle.quantization.simulation.operators import QUANTIZED_LAYERS
from mirabelle.runtimes import RUNTIMES
from tests.quantized_networks import Network, batches, build, needs

FLOAT = ["residual", "sequential", "transposed", "conv1d"]
INTEGER = [
    "residual",
    "residual_in_place",
    "depthwise",
    "grouped",
    "ends_in_conv",
    "used_twice",
    "colliding_names",
    "conv1d",
]


def layers(q) -> int:
    return sum(
        getattr(getattr(n.target, "overloadpacket", None), "__name__", "") in QUANTIZED_LAYERS
        for n in q.graph.nodes
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FLOAT)
def test_float_files_agree_with_torch(name, runtime, tmp_path):
    needs(runtime)
    network, x = build(name), batches(name, 1)[0]
    artifact = mb.export(network, tmp_path, runtime=runtime, inputs=x[:1])
    for size in (1, 5):
        expected = network(x[:size]).detach().numpy()
        assert np.allclose(artifact.predict(as_batch(x[:size])), expected, rtol=1e-4, atol=1e-4), (
            "any batch size"
        )


@pytest.mark.parametrize(
    "name, target",
    [
        *((n, "x86-vnni") for n in INTEGER if n not in ("grouped", "conv1d")),
        ("residual", "arm"),
        ("residual", "symmetric"),
    ],
)
def test_structure(name, target, tmp_path):
    """Rules: weights int8 on axis 0 with zero points 0; biases int32 in units of s_x s_w;
    activations of one dtype, one scale; every layer so.
    """
    q = quantize(build(name), batches(name, 1), target=target)
    graph = onnx.load(mb.export(q, tmp_path, inputs=batches(name, 1)[0][:1]).path).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    contractions = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(contractions) == layers(q)
    for node in contractions:
        x, w = makers[node.input[0]], makers[node.input[1]]
        while w.op_type == "Transpose":
            w = makers[w.input[0]]
        while x.op_type not in ("DequantizeLinear", "Add", "MatMul"):
            x = makers[x.input[0]]
        assert x.op_type == w.op_type == "DequantizeLinear"
        weight, scale, zero = (constants[i] for i in w.input)
        assert (
            weight.dtype == np.int8
            and zero.dtype == np.int8
            and not zero.any()
            and scale.shape == weight.shape[:1]
        )
        assert (
            [a.i for a in w.attribute if a.name == "axis"] == [0]
            and (scale > 0).all()
            and weight.min() >= -127
        )
        s_x = constants[x.input[1]]
        assert s_x.shape == ()
        bias = makers[node.input[2]] if len(node.input) > 2 else None
        if bias is not None:
            assert constants[bias.input[0]].dtype == np.int32
            assert np.allclose(constants[bias.input[1]], s_x * scale, rtol=1e-6)
    quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    zeros = [constants[n.input[2]] for n in quantizers]
    assert {z.dtype.name for z in zeros} == {"uint8" if target == "x86-vnni" else "int8"}
    assert target != "symmetric" or not any(int(z) for z in zeros)
    rectified = [n for n in quantizers if n.output[0].startswith(("relu", "hardtanh"))]
    assert rectified and all(
        int(constants[n.input[2]]) == {"x86-vnni": 0, "arm": -128, "symmetric": 0}[target]
        for n in rectified
    )


# What `sparse` writes depends on the clock, and ONNX Runtime's own writer orders its tables anew
# each time.
@pytest.mark.parametrize(
    ("runtime", "quantized"),
    [
        (n, q)
        for n, r in RUNTIMES.items()
        for q in (True, False)
        if n not in ("sparse", "onnxruntime-mobile") and r.free_batch and (r.int8 or not q)
    ],
)
def test_the_same_network_gives_the_same_bytes(runtime, quantized, tmp_path):
    needs(runtime)

    def files(folder, size):
        network = quantize(build("residual"), batches(count=1)) if quantized else build("residual")
        artifact = mb.export(
            network, tmp_path / folder, runtime=runtime, inputs=batches(count=1)[0][:size]
        )
        return [hashlib.sha256(f.read_bytes()).hexdigest() for f in artifact.files], b"".join(
            f.read_bytes() for f in artifact.files
        )

    (first, content), (second, _) = files("a", 1), files("b", 3)
    assert first == second
    for word in (
        b"/work",
        b"/tmp",
        b"/root",
        b"/home",
        b"site-packages",
        b".py",
        b"stack_trace",
        str(tmp_path).encode(),
    ):
        assert word not in content


def test_no_doc_strings_or_metadata(tmp_path):
    proto = onnx.load(
        mb.export(
            quantize(build("residual"), batches(count=1)), tmp_path, inputs=batches(count=1)[0]
        ).path
    )
    for holder in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.initializer,
        *proto.graph.value_info,
    ):
        assert not holder.doc_string and not holder.metadata_props
    assert (proto.producer_name, proto.producer_version) == ("mirabelle", "")
    assert [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")] == [20]


@pytest.mark.parametrize("name", INTEGER)
def test_onnxruntime_runs_every_layer_on_integers(name, tmp_path):
    q = quantize(build(name), batches(name, 1))
    artifact = mb.export(q, tmp_path / "out", inputs=batches(name, 1)[0][:1])
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = (
        str(tmp_path / "optimized.onnx"),
        3,
    )
    ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    convolutions = sum("conv" in str(n.target) for n in q.graph.nodes if n.op == "call_function")
    assert kinds.count("QLinearConv") == convolutions and "Conv" not in kinds
    assert (
        "Gemm" not in kinds
        and "MatMul" not in kinds
        and "Relu" not in kinds
        and "Clip" not in kinds
    )
    if name.startswith("residual"):
        assert "QLinearAdd" in kinds and "Add" not in kinds


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped"])
def test_openvino_runs_convolutions_on_integers(name, tmp_path):
    needs("openvino")
    q = quantize(build(name), batches(name, 1))
    artifact = mb.export(q, tmp_path, runtime="openvino", inputs=batches(name, 1)[0][:1])
    found = [
        t
        for t in artifact.profile(batches(name, 1)[0][:1].numpy(), runs=1)
        if "Convolution" in t.operator
    ]
    assert len(found) == sum(
        "conv" in str(n.target) for n in q.graph.nodes if n.op == "call_function"
    )
    assert all(t.int8 for t in found), found


def test_openvino_runs_layers_of_equal_size_on_integers(tmp_path):
    """The exporter stores equal constants once; zero points that convolutions, or weights the other
    way round, share would keep their layers in float.
    """
    needs("openvino")
    layers = {"a": nn.Conv2d(3, 32, 3), "b": nn.Linear(32, 32), "c": nn.Linear(32, 32)}
    # A Gemm, and a MatMul of three dimensions.
    network = Network(
        lambda n, x: n.c(F.gelu(n.b(F.gelu(n.a(x)).mean((2, 3))))[:, None]), **layers
    ).eval()
    x = batches(count=1)[0]
    artifact = mb.export(
        quantize(network, [x], target="openvino"), tmp_path, runtime="openvino", inputs=x[:1]
    )
    found = [
        t
        for t in artifact.profile(x.numpy(), runs=2)
        if "FullyConnected" in t.operator or "Convolution" in t.operator
    ]
    assert [t.int8 for t in found] == [True, True, True]


def test_quantized_files_are_small(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3))
    x = batches(count=1)
    before, after = (
        mb.export(network, tmp_path / "f", inputs=x[0]),
        mb.export(quantize(network, x), tmp_path / "q", inputs=x[0]),
    )
    assert after.bytes < before.bytes / 3.5


def test_a_trained_quantized_network_exports(tmp_path):
    x = batches(count=2)
    loader = [(b, torch.arange(16) % 5) for b in x]
    q = mb.fit(quantize(build("residual_in_place"), loader), loader, epochs=2, lr=1e-3)
    found = mb.verify(q, mb.export(q, tmp_path, inputs=x[0][:1]), x)
    assert (
        max(c.max_off_by for c in found.layers) <= 1 and min(c.exact for c in found.layers) >= 0.99
    )


def test_exporting_leaves_the_network_as_it_is(tmp_path):
    network = build("residual").train()
    network.bn1.eval()  # frozen, as in fine-tuning
    before = {n: m.training for n, m in network.named_modules()}
    q = quantize(network, batches(count=1))
    names = [str(n) for n in q.graph.nodes]
    mb.export(network, tmp_path / "f", inputs=batches(count=1)[0])
    mb.export(q, tmp_path / "q", inputs=batches(count=1)[0])
    assert {n: m.training for n, m in network.named_modules()} == before
    assert [str(n) for n in q.graph.nodes] == names


@pytest.mark.parametrize("masked", [False, True, "by head"])
@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 3, 6, 8), (2, 2, 3, 2, 6, 8)], ids=len)
def test_attention_over_any_dimensions(shape, masked, tmp_path):
    """Windows are dimensions before the heads; torch.onnx knows four dimensions alone."""
    mask = (
        torch.randn(6, 6)
        if masked is True
        else torch.randn(*shape[1:-2][-1:], 6, 6)
        if masked
        else None
    )

    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, 0.5 * x, x, mask)

    x = torch.randn(3, *shape)
    artifact = mb.export(Attention(), tmp_path, inputs=x)
    for size in (1, 3):
        assert np.allclose(artifact(x[:size].numpy()), Attention()(x[:size]).numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projected_lstm_is_refused(tmp_path):
    with pytest.raises(CaptureError, match="0 is an LSTM with proj_size=2, which ONNX lacks"):
        mb.export(nn.Sequential(nn.LSTM(4, 8, proj_size=2)), tmp_path, inputs=torch.randn(3, 2, 4))


def test_two_clips_of_one_value(tmp_path):
    """The optimizer of torch.onnx names the bounds of both alike."""

    class Clips(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in {"low": -0.5, "high": 0.5, "lower": -1.0, "higher": 1.5}.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            return torch.cat(
                [
                    torch.clamp(x, self.low, self.high),
                    torch.clamp(x, self.lower, self.higher),
                    torch.clamp(x, self.low, self.higher),
                ],
                1,
            )

    x = 2 * torch.randn(3, 16)
    assert np.array_equal(mb.export(Clips(), tmp_path, inputs=x)(x.numpy()), Clips()(x).numpy())


def test_named_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, a, b):
            return self.a(a) - self.b(b)

    x = {"b": torch.randn(4, 3, 8, 8), "a": torch.randn(4, 3, 8, 8)}
    q = quantize(Two(), [x])
    artifact = mb.export(q, tmp_path, inputs=x)
    assert {s.name for s in artifact.inputs} == {"a", "b"}
    assert np.allclose(
        artifact(a=x["a"][:2], b=x["b"][:2]),
        q(a=x["a"][:2], b=x["b"][:2]).detach().numpy(),
        atol=0.05,
    )
    found = mb.verify(q, artifact, [{"a": x["a"], "b": x["b"]}])
    assert max(c.max_off_by for c in found.layers) <= 1


def test_a_fixed_batch_is_kept(tmp_path):
    network = Network(lambda n, x: n.fc(x.view(8, -1)), fc=nn.Linear(12, 5)).eval()
    x = torch.randn(8, 3, 2, 2)
    artifact = mb.export(network, tmp_path, inputs=x)
    assert np.allclose(artifact(x), network(x).detach().numpy(), atol=1e-5)


def test_an_onnx_file_goes_through(tmp_path):
    needs("openvino")
    first = mb.export(build("mean"), tmp_path / "a", inputs=batches(count=1)[0])
    second = mb.export(first.path, tmp_path / "b", runtime="openvino")
    x = batches(count=1)[0].numpy()
    assert np.allclose(first(x), second(x), atol=1e-4)


def test_no_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = batches(count=1)
        q = quantize(build("residual"), x)
        mb.export(q, tmp_path / "q", inputs=x[0])
        mb.export(build("residual"), tmp_path / "f", inputs=x[0])


def test_unsound_requests(tmp_path):
    x = batches(count=1)
    network = build("mean")
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        mb.export(network, tmp_path, runtime="onnxruntim", inputs=x[0])
    with pytest.raises(InputError, match="needs inputs="):
        mb.export(network, tmp_path)
    with pytest.raises(InputError, match=r"\(1, 5, 4, 4\)"):
        mb.export(network, tmp_path, inputs=torch.zeros(1, 5, 4, 4))
    with pytest.raises(InputError, match="input x has 4; quantize the network with bits=8"):
        mb.export(quantize(network, x, bits=4), tmp_path, inputs=x[0])
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_file_that_lost_a_rounded_value_or_a_stored_tensor_is_refused():
    network = quantize(build("residual"), batches(count=1))
    marked, sites = with_integers(network)
    integers = marked.meta[META]
    assert [v.name for v in integers.values] == sites and integers.stored
    lost = copy.deepcopy(marked)
    lost.meta[META] = Integers(integers.values[1:], integers.stored)
    with pytest.raises(CaptureError, match=rf"{len(sites)} of {len(sites) - 1} quantized values"):
        onnx_proto(lost, Batch((batches(count=1)[0],), {}, None))
    lost.meta[META] = Integers(
        integers.values, {**integers.stored, "other": next(iter(integers.stored.values()))}
    )
    with pytest.raises(CaptureError, match="stored tensors"):
        onnx_proto(lost, Batch((batches(count=1)[0],), {}, None))


@pytest.mark.parametrize("option", [{"name": "../x"}, {"name": "/x"}, {"threads": 10**6}])
def test_what_leads_elsewhere_or_never_ends(option, tmp_path):
    with pytest.raises(InputError, match=f"{next(iter(option))} is"):
        mb.export(build("conv1d"), tmp_path / "out", inputs=batches("conv1d", 1)[0], **option)
    assert not list(tmp_path.iterdir())
