"""Exported networks: two real runtimes, files that are damaged, inputs that do not fit."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, MissingRuntimeError
from mirabelle.runtimes import RUNTIMES, Artifact, artifact, load
from mirabelle.runtimes.sparse import choice
from tests.quantized_networks import needs
from tests.runtimes.files import WEIGHT, conv_file, data, reference, two_file

# Those whose files are made from ONNX files and leave the batch open; `test_phone_runtimes.py` has
# the others.
FROM_ONNX = sorted(n for n, r in RUNTIMES.items() if r.save is not None and r.free_batch)


@pytest.fixture(scope="module", params=FROM_ONNX)
def runtime(request):
    needs(request.param)
    return request.param


@pytest.fixture(scope="module")
def saved(runtime, tmp_path_factory):
    folder = tmp_path_factory.mktemp(runtime)
    return RUNTIMES[runtime].save(conv_file(folder / "net.onnx"), folder / "out")


@pytest.fixture
def net(runtime, saved):
    return load(saved, runtime)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_runs_any_batch_as_torch_does(net, batch):
    x = data(batch)
    # 1e-5: 27 products of O(1) in float32. bfloat16, OpenVINO's own choice on some CPUs, would be
    # off by 1e-2.
    np.testing.assert_allclose(net(x), reference(x), atol=1e-5)
    np.testing.assert_allclose(net(input=x), reference(x), atol=1e-5)
    np.testing.assert_allclose(net(torch.from_numpy(x).requires_grad_()), reference(x), atol=1e-5)


def test_outputs_are_not_overwritten_by_the_next_call(net):
    first = net(data(2, 1))
    kept = first.copy()
    for seed in range(2, 9):
        net(data(seed, seed))  # more shapes than are kept compiled
        net(data(2, seed))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(net(data(2, 1)), kept, atol=1e-6)


def test_says_what_it_takes_and_gives(net):
    assert net.inputs == [("input", (None, 3, 8, 8), "float32")]
    assert [o.name for o in net.outputs] == ["output"]
    assert net.outputs[0].shape in [(None, 4, 8, 8)]
    assert net.version[0].isdigit() and net.version in str(net)


def test_an_input_that_is_not_contiguous(net):
    x = np.ascontiguousarray(data(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(net(x), reference(x), atol=1e-5)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "takes 1 input.*got 0"),
        ((data(1), data(1)), {}, "takes 1 input.*got 2"),
        ((data(1),), {"input": data(1)}, "got 2"),
        ((), {"image": data(1)}, "no input 'image'.*input"),
        ((data(1)[0],), {}, r"'input' is \(3, 8, 8\) float32; expected \(\?, 3, 8, 8\) float32"),
        ((data(1)[:, :2],), {}, r"'input' is \(1, 2, 8, 8\)"),
        ((data(1).astype("float64"),), {}, "float64; expected.*float32"),
        ((data(1)[:0],), {}, "holds no values"),
        (("cat",), {}, "'input' is a str"),
        ((torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16),), {}, "'input' is a Tensor"),
    ],
)
def test_refuses_inputs_that_do_not_fit(net, args, kwargs, words):
    with pytest.raises(InputError, match=words):
        net(*args, **kwargs)


def test_a_fixed_batch_is_fixed(runtime, tmp_path):
    net = load(
        RUNTIMES[runtime].save(conv_file(tmp_path / "net.onnx", batch=2), tmp_path / "out"), runtime
    )
    np.testing.assert_allclose(net(data(2)), reference(data(2)), atol=1e-5)
    with pytest.raises(InputError, match=r"expected \(2, 3, 8, 8\)"):
        net(data(3))


def test_several_inputs_and_outputs(runtime, tmp_path):
    net = load(RUNTIMES[runtime].save(two_file(tmp_path / "two.onnx"), tmp_path / "out"), runtime)
    assert [i.name for i in net.inputs] == ["a", "b", "k"]
    a, b, k = np.float32([[1, 2]]), np.float32([[3, 4]]), np.int64([5])
    for outputs in (
        net(a, b, k),
        net(a, k=k, b=b),
        net(b, a, [5]),
        net.predict(as_batch({"b": b, "a": a, "k": k})),
    ):
        total, product, negated = outputs
        assert (total.tolist(), product.tolist(), negated.tolist()) == ([[4, 6]], [[3, 8]], [-5])
    with pytest.raises(InputError, match="'k' is .*float32; expected .*int64"):
        net(a, b, np.float32([5]))
    with pytest.raises(InputError, match="two"):
        net(np.ones((2, 2), "float32"), np.ones((3, 2), "float32"), k)  # batches that do not agree


def test_bytes_count_all_files(runtime, tmp_path):
    saved = RUNTIMES[runtime].save(
        conv_file(tmp_path / "net.onnx", external=True), tmp_path / "out"
    )
    files = list((tmp_path / "out").iterdir())
    assert not any(f.name.startswith(".") for f in files)  # nothing temporary is left
    net = load(saved, runtime)
    assert net.bytes == sum(f.stat().st_size for f in files) > WEIGHT.nbytes
    np.testing.assert_allclose(net(data(2)), reference(data(2)), atol=1e-5)
    if len(files) == 1:
        return
    data_file = net.files[1]
    data_file.unlink()
    with pytest.raises(InputError, match=data_file.name):
        _ = net.bytes
    with pytest.raises(InputError, match=saved.name):
        load(saved, runtime)


def test_weights_outside_of_the_folder_are_refused(tmp_path):
    model = onnx.load(conv_file(tmp_path / "net.onnx"))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside of its own folder"):
        _ = Artifact(tmp_path / "net.onnx", "onnxruntime").bytes


def test_saving_twice_gives_the_same_bytes(runtime, tmp_path):
    if runtime == "sparse":
        pytest.skip("its file holds timings")
    if runtime == "onnxruntime-mobile":
        pytest.skip("ONNX Runtime's own writer orders its tables anew each time")
    source = conv_file(tmp_path / "net.onnx", quantized=RUNTIMES[runtime].int8)
    # In two processes and twice in one of them: OpenVINO numbers its names over a whole process.
    program = (
        "import sys; from mirabelle.runtimes import RUNTIMES; "
        "[RUNTIMES[sys.argv[1]].save(*sys.argv[2:4]) for _ in range(3)]"
    )
    (tmp_path / "there").mkdir()
    copied = tmp_path / "there" / "net.onnx"
    copied.write_bytes(source.read_bytes())
    subprocess.run(
        [sys.executable, "-c", program, runtime, copied, tmp_path / "b"],
        check=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    RUNTIMES[runtime].save(source, tmp_path / "a")
    hashes = [
        [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((tmp_path / n).iterdir())]
        for n in "ab"
    ]
    assert hashes[0] == hashes[1]


def test_saving_keeps_the_names_of_layers(runtime, tmp_path):
    if runtime in ("mnn", "sparse"):
        pytest.skip("MNN names layers by their outputs")
    model = onnx.load(conv_file(tmp_path / "net.onnx"))
    model.graph.node[0].name = "Conv_12"  # looks like a name made up by OpenVINO
    onnx.save(model, tmp_path / "net.onnx")
    net = load(RUNTIMES[runtime].save(tmp_path / "net.onnx", tmp_path / "out"), runtime)
    assert any(
        "Conv_12" in layer.name or "output" in layer.name for layer in net.profile(data(1), runs=1)
    )
    text = net.path.read_bytes()
    assert b"Conv_12" in text


@pytest.mark.parametrize("keep", [0, 5, 300, -40])
def test_damaged_files(runtime, tmp_path, keep):
    saved = RUNTIMES[runtime].save(conv_file(tmp_path / "net.onnx"), tmp_path / "out")
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InputError, match="net.*(damaged|no graph)"):
        load(saved, runtime)
    with pytest.raises(InputError, match="net.*(damaged|no graph)"):
        Artifact(saved, runtime)(data(1))  # the file is opened at the first use


def test_other_files(runtime, tmp_path):
    suffix = RUNTIMES[runtime].suffix
    with pytest.raises(InputError, match="is not there"):
        load(tmp_path / f"none{suffix}", runtime)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path / f"folder{suffix}", runtime)
    with pytest.raises(InputError, match=f"does not end in {suffix}"):
        load(tmp_path / "net.tflite", runtime)
    (tmp_path / f"text{suffix}").write_text("<html>" * 20)
    (tmp_path / "text.bin").write_text("")
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / f"text{suffix}", runtime)
    (tmp_path / "text.onnx").write_text("<html>" * 20)
    with pytest.raises(InputError, match="text.onnx"):
        RUNTIMES[runtime].save(tmp_path / "text.onnx", tmp_path / "out")
    with pytest.raises(InputError, match="is not there"):
        RUNTIMES[runtime].save(tmp_path / "none.onnx", tmp_path / "out")


def test_truncated_weights(tmp_path):
    pytest.importorskip("openvino")
    saved = RUNTIMES["openvino"].save(conv_file(tmp_path / "net.onnx"), tmp_path)
    saved.with_suffix(".bin").write_bytes(b"1234")
    with pytest.raises(InputError, match="damaged"):
        load(saved, "openvino")


def test_unknown_runtime_and_threads(tmp_path):
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        Artifact(tmp_path / "net.xml", "openvin")
    for threads in (0, -1, 1.5):
        with pytest.raises(InputError, match="threads"):
            Artifact(tmp_path / "net.onnx", "onnxruntime", threads)


def test_with_threads_copies_and_pickles(net):
    x = data(3)
    two = net.with_threads(2)
    assert (two.threads, net.threads, two.path) == (2, 1, net.path)
    assert two.session is not net.session and two.session is two.session
    for other in (two, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_allclose(other(x), net(x), atol=1e-6)


def test_profile_float(net):
    layers = net.profile(data(2), runs=4)
    conv = next(
        layer
        for layer in layers
        if "conv" in layer.name.lower() or "conv" in layer.operator.lower()
    )
    assert conv.int8 is False
    assert all(0 <= layer.milliseconds < 1000 for layer in layers) and conv.milliseconds > 0
    assert len({layer.name for layer in layers}) == len(layers)
    with pytest.raises(InputError, match="runs is 0"):
        net.profile(data(2), runs=0)
    with pytest.raises(InputError, match="expected"):
        net.profile(data(2)[0])


def test_profile_int8(runtime, tmp_path):
    if not RUNTIMES[runtime].int8:
        pytest.skip(f"{runtime} does not run quantized networks")
    net = load(
        RUNTIMES[runtime].save(conv_file(tmp_path / "net.onnx", quantized=True), tmp_path / "out"),
        runtime,
    )
    layers = net.profile(data(1), runs=3)
    assert [layer.int8 for layer in layers if "conv" in layer.operator.lower()] == [True]
    assert not next(
        layer for layer in layers if "Quantize" in layer.operator or "Subgraph" in layer.operator
    ).int8
    step = 0.05
    x = (np.clip(np.round(data(1) / step), -128, 127) * step).astype("float32")
    weight = torch.from_numpy(np.clip(np.round(WEIGHT / step), -127, 127) * step).float()
    simulated = torch.nn.functional.conv2d(torch.from_numpy(x), weight, padding=1)
    simulated = (simulated / step).round().clamp(-128, 127).mul(step).relu().numpy()
    np.testing.assert_allclose(
        net(data(1)), simulated, atol=1.01 * step
    )  # one step: ties, and sums in another order


SIGNALLED = """
import signal, sys
from mirabelle.runtimes import load
import numpy as np
load(sys.argv[1], sys.argv[2])(np.zeros((1, 3, 8, 8), "float32"))
seen = []
def handler(*_):
    seen.append(1)
signal.signal(signal.SIGUSR1, handler)
signal.raise_signal(signal.SIGUSR1)
from mirabelle.runtimes.signals import ROOM, alternate_stack
print(len(seen), alternate_stack() == 0 or alternate_stack() >= ROOM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="alternate stacks are looked at on Linux only")
def test_signals_have_room_beside_a_runtime(runtime, saved):
    """Too small a stack for them ends the process at the next signal: a DataLoader's worker that
    leaves is one.
    """
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(saved), runtime], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1", "True"]), done.stderr


def test_the_runtime_that_is_not_installed(net, monkeypatch):
    runtime = choice(net.path).runtime if net.runtime == "sparse" else net.runtime
    package = {"mnn": "MNN", "onnxruntime-mobile": "onnxruntime"}.get(runtime, runtime)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingRuntimeError, match=rf"pip install 'mirabelle\[{package.lower()}\]'"):
        load(net.path, net.runtime)


def test_artifact_is_found_by_the_dict_alone(tmp_path, monkeypatch):
    """A new runtime needs an entry and nothing else."""
    file = tmp_path / "net.double"
    file.write_text("2")

    def opened(path, threads):
        factor = int(path.read_text())
        spec = artifact.TensorSpec("x", None, "float32")
        return artifact.Session([spec], [spec], lambda arrays: [factor * arrays[0]])

    double = artifact.Runtime(
        "double", ".double", lambda: "1", lambda p: [p], opened, lambda *_: [], lambda o, f: f
    )
    monkeypatch.setitem(RUNTIMES, "double", double)
    assert load(file, "double")(np.float32([[1, 2]])).tolist() == [[2, 4]]
    assert load(file, "double").bytes == 1
