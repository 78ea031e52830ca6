"""MACs against counts by hand, timing with clocks that lie, memory of a process of its own."""

import gc
import json
import math
import os
import subprocess
import sys
import time
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mirabelle.base.errors import InputError
from mirabelle.measurement import (
    Latency,
    Measurement,
    alternate,
    count_macs,
    count_onnx_macs,
    count_onnx_parameters,
    count_parameters,
    fvcore_macs,
    latency,
    measure,
    memory,
    peak_memory,
    speedup,
)
from mirabelle.measurement.machine import machine, versions
from mirabelle.runtimes import RUNTIMES, load
from tests.quantized_networks import needs

PATH = {"PYTHONPATH": os.pathsep.join(sys.path)}


class Bottleneck(nn.Module):
    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        shapes = [(inner, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        self.body = nn.Sequential(
            *[
                m
                for i, o, k, s in shapes
                for m in (nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            ][:-1]
        )
        same = stride == 1 and inner == 4 * width
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inner, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )
        )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Sequential:
    """He et al. 2015, table 1, with the stride on the 3x3 convolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inner = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(Bottleneck(inner, width, stride if i == 0 else 1))
            inner = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def small() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(8, 10))


SMALL_MACS = 8 * 6 * 6 * 3 * 9 + 8 * 6 * 6 * 2 * 9 + 8 * 10


def export(model, x, path):
    """An ONNX file with an open batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        program.save(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, its ONNX file with an open batch)."""
    model = small().eval()
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    export(model, torch.randn(2, 3, 12, 12), path)
    return model, path


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
    assert count_macs(small(), x) == SMALL_MACS
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


def save(path, nodes, inputs, outputs, constants=(), domain=None):
    tensors = [numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    infos = [
        [helper.make_tensor_value_info(n, t, s) for n, t, s in group] for group in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", *infos, tensors), opset_imports=opsets, ir_version=10
        ),
        path,
    )
    return path


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


def fake_clock(monkeypatch, durations):
    """`perf_counter_ns` that stands still but for what the candidates add to it."""
    now = [0]
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: now[0])

    def candidate(name):
        times = iter(durations[name])

        def call():
            now[0] += int(next(times) * 1e6)

        return call

    return {name: candidate(name) for name in durations}


def led(samples: list[float]) -> list[float]:
    """Each sample behind the untimed call that warms the caches for it."""
    return [t for sample in samples for t in (50.0, sample)]


def test_alternate_by_hand(monkeypatch):
    samples = [5.0, 1.0, 3.0, 2.0, 4.0]
    functions = fake_clock(
        monkeypatch, {"a": led([99.0, *samples]), "b": led([99.0, *(2 * s for s in samples)])}
    )
    result = alternate(functions, runs=5, warmup=1)
    assert result["a"] == Latency(3.0, 4.8, 3.0, 5)  # 95th percentile: 4 + 0.8 * (5 - 4)
    assert result["b"].samples == (10.0, 2.0, 6.0, 4.0, 8.0)
    gain = speedup(result["b"], result["a"])
    assert (gain.value, gain.low, gain.high, gain.rounds) == (2.0, 2.0, 2.0, 5)


def test_speedup_survives_drift_and_has_an_interval(monkeypatch):
    drift = [1 + i / 10 for i in range(100)]
    noise = np.random.default_rng(1).normal(1, 0.1, size=100)
    functions = fake_clock(
        monkeypatch,
        {"a": led([d * n for d, n in zip(drift, noise)]), "b": led([3 * d for d in drift])},
    )
    result = alternate(functions, runs=100, warmup=0)
    gain = speedup(result["b"], result["a"])
    assert gain.low < gain.value < gain.high
    assert 2.8 < gain.low < 3 < gain.high < 3.2
    assert gain == speedup(result["b"], result["a"])
    with pytest.raises(InputError, match="100 rounds against 0"):
        speedup(result["a"], Latency(1, 1, 1, 100))


def test_alternate_mixes_the_order_and_keeps_the_budget():
    calls: list[str] = []
    result = alternate({n: (lambda n=n: calls.append(n)) for n in "abc"}, runs=20, warmup=3)
    assert calls[::2] == calls[1::2]  # each candidate twice in a row
    rounds = [tuple(calls[i : i + 6 : 2]) for i in range(0, len(calls), 6)]
    assert len(rounds) == 23 and all(sorted(r) == list("abc") for r in rounds)
    assert len(set(rounds)) > 3 and {r[0] for r in rounds} == set("abc")
    assert list(result) == list("abc")
    again: list[str] = []
    alternate({n: (lambda n=n: again.append(n)) for n in "abc"}, runs=20, warmup=3)
    assert again == calls
    slow = alternate({"slow": lambda: time.sleep(0.01)}, runs=1000, warmup=0, seconds=0.1)["slow"]
    assert 5 <= slow.runs <= 6 and slow.p50_ms >= 10
    assert (
        alternate({"slow": lambda: time.sleep(0.01)}, runs=1000, warmup=0, seconds=0)["slow"].runs
        == 5
    )
    for wrong in ({"runs": 0}, {"warmup": -1}):
        with pytest.raises(InputError, match="runs is"):
            alternate({"a": int}, **wrong)
    with pytest.raises(InputError, match="nothing to time"):
        alternate({})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pinning_and_collection_are_undone():
    before, seen, calls = os.sched_getaffinity(0), [], count()

    def candidate():
        seen.append((os.sched_getaffinity(0), gc.isenabled()))
        if next(calls) == 4:
            raise KeyError("candidate")

    with pytest.raises(KeyError):
        alternate({"a": candidate}, runs=9, warmup=2, pin=True)
    assert seen == [({max(before)}, True)] * 4 + [({max(before)}, False)]
    assert os.sched_getaffinity(0) == before and gc.isenabled()
    with pytest.raises(InputError, match="core 4096"), latency.pinned(4096):
        pass


@pytest.fixture(
    params=sorted(
        n for n, r in RUNTIMES.items() if r.save is not None and r.free_batch and n != "sparse"
    )
)
def wide(request, tmp_path):
    """A file of 64 MB of weights, so that loading it cannot be overlooked."""
    needs(request.param)
    constants = {"w": np.ones((4096, 4096), "float32")}
    node, f = helper.make_node("MatMul", ["x", "w"], ["y"]), TensorProto.FLOAT
    path = save(
        tmp_path / "wide.onnx", [node], [("x", f, ["n", 4096])], [("y", f, ["n", 4096])], constants
    )
    return load(RUNTIMES[request.param].save(path, tmp_path / "out"), request.param)


def test_peak_memory_is_that_of_a_fresh_process(wide):
    ballast = np.ones(
        150_000_000, "float64"
    )  # 1.2 GB in this process: a child that inherits its peak would show it
    assert memory.peak_bytes() > ballast.nbytes
    peak = peak_memory(wide, np.ones((1, 4096), "float32"))
    del ballast
    assert 64e6 < peak.network < 400e6
    assert 20e6 < peak.before_loading < peak.total < 1.0e9
    assert f"{peak.total / 1e6:.1f} MB" in str(peak)


def test_the_probe_does_not_import_torch(wide, tmp_path):
    (tmp_path / "job.json").write_text(
        json.dumps({"path": str(wide.path), "runtime": wide.runtime, "threads": 1})
    )
    np.savez(tmp_path / "inputs.npz", input_0=np.ones((1, 4096), "float32"))
    probe = Path(latency.__file__).with_name("probe.py")
    done = subprocess.run(
        [sys.executable, probe, tmp_path / "job.json", tmp_path / "inputs.npz"],
        env=PATH,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["torch"] is False


def test_peak_memory_says_why_it_failed(wide, monkeypatch):
    with pytest.raises(InputError, match="expected"):
        peak_memory(wide, np.ones((1, 3), "float32"))
    x = np.ones((1, 4096), "float32")
    _ = wide.session
    wide.path.unlink()
    with pytest.raises(InputError, match="could not be measured.*not there"):
        peak_memory(wide, x)


def test_machine_and_versions(monkeypatch):
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert (
        found["cpu"]
        and found["cores"] >= 1
        and found["memory"] > 1e8
        and found["python"].startswith("3.")
    )
    if "avx2" in (
        flags := cpuinfo.read_text() if (cpuinfo := Path("/proc/cpuinfo")).exists() else ""
    ):
        assert "avx2" in found["features"]
    assert versions("numpy", "no-such-package") == {
        "numpy": np.__version__,
        "no-such-package": None,
    }
    module = sys.modules["mirabelle.measurement.machine"]
    for flags, features in (
        ("fpu avx2 avx_vnni", ["avx2", "avx_vnni"]),
        ("asimd asimddp", ["asimd", "asimddp"]),
        ("", []),
    ):
        module._fixed.cache_clear()
        monkeypatch.setattr(module, "_flags", lambda flags=flags: flags)
        assert machine()["features"] == features
    module._fixed.cache_clear()


def labelled(n=30, batch=8):
    x = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 10
    return [(x[i : i + batch], y[i : i + batch]) for i in range(0, n, batch)]


def test_measure_a_file_against_its_module(exported):
    model, path = exported
    loader = labelled()
    model.train()
    threads = torch.get_num_threads()
    result = measure(path, loader, runs=7, baseline=model)
    assert isinstance(result, Measurement) and model.training and torch.get_num_threads() == threads
    assert (result.name, result.runtime, result.threads, result.inputs) == (
        "small.onnx",
        "onnxruntime",
        1,
        [[1, 3, 12, 12]],
    )
    assert (result.macs, result.parameters, result.bytes) == (
        SMALL_MACS,
        count_parameters(model) - 16,
        path.stat().st_size,
    )
    assert result.latency.runs == result.baseline_latency.runs == result.speedup.rounds == 7
    assert result.memory.total > result.memory.before_loading > 0
    model.eval()
    hits = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    assert result.score.value == pytest.approx(hits / 30) and result.score.n == 30
    plain = result.to_dict()
    assert (
        json.loads(json.dumps(plain, allow_nan=False)) == plain
        and "samples" not in plain["latency"]
    )
    text = str(result)
    for word in (
        "small.onnx",
        "onnxruntime",
        "1 thread",
        "parameters",
        "1x3x12x12",
        "p50",
        "top1",
        "peak memory",
        "Sequential",
        "n = 30",
    ):
        assert word in text


def test_measure_a_module(exported):
    model = exported[0]
    result = measure(model, inputs=torch.randn(4, 3, 12, 12), runs=3)
    assert (result.runtime, result.macs, result.parameters) == (
        "torch",
        SMALL_MACS,
        count_parameters(model),
    )
    assert (
        result.bytes == 4 * (count_parameters(model) + 16) + 8
    )  # running means and variances, and an int64 counter
    assert (result.memory, result.score, result.speedup, result.inputs) == (
        None,
        None,
        None,
        [[4, 3, 12, 12]],
    )
    generator = iter(labelled())
    result = measure(
        model, generator, lambda output, target: -(output[:, 0] - target).abs(), runs=1
    )
    assert result.score.n == 30 and not result.score.binary
    lone = measure(model, labelled(1, 1), lambda output, target: output[:, 0] + 0.5, runs=1)
    assert math.isinf(lone.score.high) and lone.to_dict()["score"]["high"] is None
    assert measure(model, [x for x, _ in labelled()], runs=1).score is None


def test_measure_refuses(exported, tmp_path):
    model = exported[0]
    for wrong, words in (
        ((3,), "cannot measure a int"),
        (("net.pt",), "ends in '.pt'"),
        ((model,), "loader or inputs"),
        ((model, []), "no batch"),
    ):
        with pytest.raises(InputError, match=words):
            measure(*wrong)
    with pytest.raises(InputError, match="does not run"):
        measure(model, inputs=torch.randn(1, 4, 12, 12))
    with pytest.raises(InputError, match="metric is .top2.; did you mean"):
        measure(model, labelled(), "top2", runs=1)
    with pytest.raises(InputError, match="not there"):
        measure(tmp_path / "none.onnx", inputs=torch.randn(1, 3, 12, 12))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
