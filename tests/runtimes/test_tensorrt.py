"""The rules for TensorRT's quantized files: a file of ours breaks none, and each broken rule is
found. Where the package is installed, what its parser says and engines.
"""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import mirabelle as mb
from mirabelle.base.errors import InputError, MissingRuntimeError
from mirabelle.quantization import quantize
from mirabelle.runtimes import load, tensorrt
from mirabelle.runtimes.tensorrt_rules import RULES, lint
from tests.quantized_networks import batches, build

PACKAGE = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed"
)
NETWORKS = [
    "residual",
    "residual_in_place",
    "depthwise",
    "grouped",
    "sequential",
    "concatenation",
    "squeeze_excite",
    "conv1d",
    "tokens",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_our_files_break_no_rule(name, tmp_path):
    q = quantize(build(name), batches(name, 1), target="tensorrt")
    artifact = mb.export(q, tmp_path, inputs=batches(name, 1)[0][:1])
    assert lint(artifact.path) == []
    graph = onnx.load(artifact.path).graph
    assert sum(n.op_type == "QuantizeLinear" for n in graph.node) >= 2
    found = mb.verify(q, artifact, batches(name, 1))
    assert max(c.max_off_by for c in found.layers) <= 1


def test_the_residual_is_quantized_and_the_layer_beside_it_is_not(tmp_path):
    q = quantize(build("residual"), batches(), target="tensorrt")
    graph = onnx.load(mb.export(q, tmp_path, inputs=batches(count=1)[0][:1]).path).graph
    makers = {o: n.op_type for n in graph.node for o in n.output}
    add = next(n for n in graph.node if n.op_type == "Add")
    assert sorted(makers[i] for i in add.input) == ["Conv", "DequantizeLinear"]
    assert all(
        makers[i] == "DequantizeLinear"
        for n in graph.node
        if n.op_type in ("Conv", "Gemm")
        for i in n.input[:2]
    )


# --- a file that is right, and one change for each rule
# -------------------------------------------------------------------------------------

SCALE, ZERO = np.float32(0.1), np.int8(0)


class File:
    """x -> Q -> DQ -> Conv (weight behind DQ) -> Relu -> Q -> DQ -> MaxPool -> Q -> DQ -> Conv ->
    Add (with the pooled) -> y, by name, to be broken.
    """

    def __init__(self) -> None:
        self.constants = {
            "s": SCALE,
            "z": ZERO,
            "w": np.ones((4, 4, 1, 1), np.int8),
            "ws": np.full(4, 0.01, np.float32),
            "wz": np.zeros(4, np.int8),
            "b": np.zeros(4, np.float32),
            "g": np.ones(4, np.float32),
            "odd": np.float32(0.3),
            "s4": np.full(4, 0.1, np.float32),
            "z4": np.zeros(4, np.int8),
            "m": np.ones((8, 8), np.int8),
            "ms": np.full(8, 0.01, np.float32),
            "mz": np.zeros(8, np.int8),
        }
        self.nodes = [
            *self.pair("x", "x1"),
            self.weight("w1"),
            self.node("Conv", ["x1", "w1", "b"], "c1"),
            self.node("Relu", ["c1"], "r1"),
            *self.pair("r1", "r2"),
            self.node("MaxPool", ["r2"], "p", kernel_shape=[1, 1]),
            *self.pair("p", "p1"),
            self.weight("w2"),
            self.node("Conv", ["p1", "w2", "b"], "c2"),
            self.node("Add", ["c2", "p1"], "y"),
        ]

    def node(self, kind, inputs, output, **attributes):
        return helper.make_node(kind, inputs, [output], f"{kind}_{output}", **attributes)

    def pair(self, value, result, scale="s", zero="z"):
        return [
            self.node("QuantizeLinear", [value, scale, zero], f"{result}_q"),
            self.node("DequantizeLinear", [f"{result}_q", scale, zero], result),
        ]

    def weight(self, result, name="w", scale="ws", zero="wz", axis=0):
        return self.node("DequantizeLinear", [name, scale, zero], result, axis=axis)

    def find(self, name):
        return next(n for n in self.nodes if n.output[0] == name)

    def replace(self, name, *nodes):
        i = self.nodes.index(self.find(name))
        self.nodes[i : i + 1] = nodes

    def save(self, path):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", 1, (1, 4, 8, 8))],
            [value("y", 1, None)],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in self.constants.items()],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
            path,
        )
        return path


def zero_point(f: File) -> None:
    f.constants["z"] = np.int8(3)


def positive_scale(f: File) -> None:
    f.constants["s"] = np.float32(-0.1)


def unsigned(f: File) -> None:
    f.constants["z"] = np.uint8(0)


def no_zero_point(f: File) -> None:
    for node in f.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[2] == "z":
            del node.input[2:]


def sixteen_bits(f: File) -> None:
    f.constants["z"] = np.int16(0)


def integer_bias(f: File) -> None:
    f.constants["b"] = np.zeros(4, np.int32)
    f.nodes.insert(0, f.node("DequantizeLinear", ["b", "ws"], "bias", axis=0))
    for name in ("c1", "c2"):
        f.find(name).input[2] = "bias"


def many_activation_scales(f: File) -> None:
    for name in ("x1_q", "x1"):
        f.find(name).input[1:] = ["s4", "z4"]


def conv_axis(f: File) -> None:
    f.find("w1").attribute[0].i = 1


def _product(f: File, kind: str, axis: int, **attributes) -> None:
    f.nodes += [
        *f.pair("y", "y1"),
        f.weight("w3", "m", "ms", "mz", axis),
        f.node("Flatten", ["y1"], "flat", axis=3),
        f.node(kind, ["flat", "w3"], "out", **attributes),
    ]
    f.nodes[-3], f.nodes[-2] = f.nodes[-2], f.nodes[-3]


def gemm_axis(f: File) -> None:
    _product(f, "Gemm", 0)


def gemm_turned_axis(f: File) -> None:
    _product(f, "Gemm", 1, transB=1)


def matmul_axis(f: File) -> None:
    _product(f, "MatMul", 0)


def too_few_scales(f: File) -> None:
    f.constants["ws"], f.constants["wz"] = np.full(3, 0.01, np.float32), np.zeros(3, np.int8)


def lowest_weight(f: File) -> None:
    f.constants["w"][0, 0] = -128


def float_activation(f: File) -> None:
    f.find("c1").input[0] = "x"


def float_weight(f: File) -> None:
    f.constants["wf"] = np.ones((4, 4, 1, 1), np.float32)
    f.find("c1").input[1] = "wf"


def unequal_pair(f: File) -> None:
    f.find("x1").input[1] = "odd"


def lonely(f: File) -> None:
    f.nodes.append(f.node("QuantizeLinear", ["r1", "s", "z"], "lonely"))


def quantized_output(f: File) -> None:
    f.nodes += [
        f.weight("w3"),
        f.node("Conv", ["p1", "w3", "b"], "c3"),
        *f.pair("c3", "c4"),
        f.node("Sigmoid", ["c4"], "out"),
    ]


def quantized_sum(f: File) -> None:
    f.nodes[-1:] = [*f.pair("c2", "c3"), f.node("Add", ["c3", "p1"], "y")]


def float_sum(f: File) -> None:
    f.nodes[-1:] = [
        f.weight("w3"),
        f.node("Conv", ["p1", "w3", "b"], "c3"),
        f.node("Add", ["c2", "c3"], "y"),
    ]


def between_relu(f: File) -> None:
    f.replace("r1", *f.pair("c1", "c1b"), f.node("Relu", ["c1b"], "r1"))


def between_norm(f: File) -> None:
    f.replace(
        "r1",
        *f.pair("c1", "c1b"),
        f.node("BatchNormalization", ["c1b", "g", "b", "b", "g"], "n1"),
        f.node("Relu", ["n1"], "r1"),
    )


def other_grid_behind_pool(f: File) -> None:
    for name in ("p1_q", "p1"):
        f.find(name).input[1] = "odd"


BROKEN = {
    "zero-point": [zero_point],
    "positive-scale": [positive_scale],
    "int8": [unsigned, no_zero_point, sixteen_bits],
    "float-bias": [integer_bias],
    "per-tensor-activation": [many_activation_scales],
    "channel-axis": [conv_axis, gemm_axis, gemm_turned_axis, matmul_axis],
    "channel-count": [too_few_scales],
    "weight-range": [lowest_weight],
    "both-inputs": [float_activation, float_weight],
    "pairs": [unequal_pair, lonely],
    "inputs-not-outputs": [quantized_output],
    "residual-sum": [quantized_sum, float_sum],
    "no-simulated-fusion": [between_relu, between_norm],
    "pooling-commutes": [other_grid_behind_pool],
}
CASES = [(rule, change) for rule, changes in BROKEN.items() for change in changes]


def test_every_rule_has_a_case_and_the_whole_file_breaks_none(tmp_path):
    assert set(BROKEN) == set(RULES)
    assert lint(File().save(tmp_path / "right.onnx")) == []


@pytest.mark.parametrize("rule, change", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_a_broken_rule_is_found(rule, change, tmp_path):
    file = File()
    change(file)
    found = lint(file.save(tmp_path / "wrong.onnx"))
    assert {v.rule for v in found} == {rule}, [str(v) for v in found]
    assert all(v.node and v.message and v.parser in ("rejects", "accepts") for v in found)


@PACKAGE
@pytest.mark.parametrize("rule, change", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_the_parser_does_what_the_rule_says(rule, change, tmp_path):
    import tensorrt_rtx_bindings as trt

    file = File()
    change(file)
    path = file.save(tmp_path / "wrong.onnx")
    logger = tensorrt._logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    accepted = trt.OnnxParser(network, logger).parse_from_file(str(path))
    assert ("accepts" if accepted else "rejects") == lint(path)[0].parser


def test_files_that_break_rules_are_refused_before_anything_is_built(tmp_path):
    q = quantize(build("residual"), batches(), target="x86-vnni")
    artifact = mb.export(q, tmp_path, inputs=batches(count=1)[0][:1])
    with pytest.raises(
        InputError,
        match=r"breaks TensorRT's rules.*zero-point; the parser rejects it.*and \d+ more\. "
        r"Quantize with target='tensorrt'",
    ):
        tensorrt.check(artifact.path)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'mirabelle\[tensorrt\]'"):
        tensorrt.version()


@PACKAGE
@pytest.mark.parametrize("name", ["residual", "squeeze_excite"])
def test_engines_are_built_without_a_gpu(name, tmp_path):
    q = quantize(build(name), batches(name, 1), target="tensorrt")
    path = mb.export(q, tmp_path, inputs=batches(name, 1)[0][:1]).path
    engine = tensorrt.save(path, tmp_path / "trt")
    assert (
        engine.suffix == ".engine"
        and engine.stat().st_size > 10_000
        and lint(engine.with_suffix(".onnx")) == []
    )
    with pytest.raises(InputError, match="builds for compute capabilities 75, 80, 86, 89.*not 90"):
        tensorrt.build(path, [86, 90])
    if not torch.cuda.is_available():
        with pytest.raises(
            MissingRuntimeError,
            match="can be made here but not run: TensorRT's engines run on NVIDIA GPUs, and "
            "torch finds none",
        ):
            load(engine, "tensorrt")


@PACKAGE
def test_an_engine_is_exported_where_it_cannot_run(tmp_path):
    q, x = quantize(build("residual"), batches(), target="tensorrt"), batches(count=1)[0]
    artifact = mb.export(q, tmp_path, runtime="tensorrt", inputs=x[:1])
    assert (
        [f.name for f in artifact.files] == ["model.engine"]
        and artifact.bytes > 10_000
        and (tmp_path / "model.onnx").is_file()
    )
    with pytest.raises(InputError, match="breaks TensorRT's rules"):
        mb.export(
            quantize(build("residual"), batches(), target="x86-vnni"),
            tmp_path / "x86",
            runtime="tensorrt",
            inputs=x[:1],
        )
    assert not (tmp_path / "x86" / "model.engine").exists()


@pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None or not torch.cuda.is_available(),
    reason="needs TensorRT-RTX and a GPU",
)
def test_engines_run(tmp_path):
    q, x = quantize(build("residual"), batches(), target="tensorrt"), batches(count=1)[0]
    artifact = mb.export(q, tmp_path, runtime="tensorrt", inputs=x[:1])
    assert np.abs(artifact(x.numpy()) - q(x).detach().numpy()).max() < 0.05
