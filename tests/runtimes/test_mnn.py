"""MNN: files from ONNX through its converter in this process, and what they must not do; sparse
layers inside a file.
"""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.runtimes import RUNTIMES, load
from tests.runtimes.files import conv_file, data, reference, two_file

mnn = pytest.importorskip("mirabelle.runtimes.mnn")
try:
    RUNTIMES["mnn"].version()
except ImportError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from mirabelle.base.quiet import captured  # noqa: E402
from mirabelle.runtimes import mnnfile, sparse_forms  # noqa: E402

WATCHED = """
import json, os, sys
seen = []
NAMES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
    "os.spawn", "os.startfile", "socket.", "urllib.", "http.", "ftplib.", "smtplib.")
BANNED = ("pip", "ensurepip", "requests", "aliyun")
def hook(event, arguments):
    imported = event == "import" and (arguments[0] or "").split(".")[0] in BANNED
    if event.startswith(NAMES) or imported:
        seen.append(event + " " + str(arguments)[:200])
import numpy as np
from pathlib import Path
from mirabelle.runtimes import RUNTIMES, load
source, folder, which = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
import onnxruntime, platform
# These ask the system with processes of their own, for others.
platform.platform(); platform.processor()
sys.addaudithook(hook)
path = RUNTIMES[which].save(source, folder)
artifact = load(path, which)
x = np.ones((1, 3, 8, 8), "float32")
artifact(x), artifact.profile(x, runs=1), artifact.version, artifact.bytes
links = Path("/proc/self/fd").glob("*")
sockets = [os.readlink(fd) for fd in links if fd.exists()]
children = "".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
sockets = [s for s in sockets if s.startswith("socket")]
print(json.dumps({"seen": seen, "sockets": sockets, "children": children.split()}))
"""


@pytest.mark.parametrize("which", ["mnn", "sparse"])
def test_nothing_is_installed_started_or_sent(tmp_path, which):
    """MNN's own console scripts install packages and post usage logs. What goes through us does
    not: seen from inside, by the interpreter's audit.
    """
    source = conv_file(tmp_path / "net.onnx")
    command = [sys.executable, "-c", WATCHED, source, tmp_path / "out", which]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    # The only line that is printed: MNN's own words are kept from the standard output too.
    found = json.loads(ran.stdout)
    assert found == {"seen": [], "sockets": [], "children": []} and ran.stderr == ""


def test_the_watch_sees():
    """The test above would notice: the same audit, on a script that does both."""
    program = WATCHED.split("import numpy")[0] + (
        "sys.addaudithook(hook)\nimport subprocess, "
        "socket\nsubprocess.run(['true'])\nsocket.socket().close()\n"
        "print(json.dumps(sorted({s.split()[0] "
        "for s in seen})))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"subprocess.Popen", "socket.__new__"} <= set(json.loads(ran.stdout))


def test_what_native_code_prints_is_kept(capfd):
    with captured() as said:
        os.write(1, b"from below\n")
        os.write(2, b"an error\n")
        assert said() == "from below\nan error\n"
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"
    with pytest.raises(KeyError), captured():
        raise KeyError
    os.write(1, b"still\n")
    assert capfd.readouterr().out == "still\n"


def test_an_operator_that_mnn_lacks(tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Bernoulli", ["x"], ["y"])], "g", values[:1], values[1:]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "net.onnx",
    )
    with pytest.raises(InputError, match=r"mnn cannot convert .*net\.onnx \(.*Bernoulli"):
        RUNTIMES["mnn"].save(tmp_path / "net.onnx", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_quantized_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"net\.onnx is quantized.*export the float network"):
        RUNTIMES["mnn"].save(conv_file(tmp_path / "net.onnx", quantized=True), tmp_path / "out")
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(4, 3, 8, 8)
    for runtime in ("mnn", "sparse"):
        with pytest.raises(InputError, match=f"{runtime} does not run quantized networks"):
            mb.export(mb.quantize(layer, [x]), tmp_path, runtime=runtime, inputs=x)


def test_integers_beyond_32_bits(tmp_path):
    net = load(RUNTIMES["mnn"].save(two_file(tmp_path / "two.onnx"), tmp_path / "out"), "mnn")
    a = np.float32([[1, 2]])
    assert net(a, a, np.int64([2**31 - 1]))[2].tolist() == [1 - 2**31]
    with pytest.raises(InputError, match="'k' has values beyond 2147483647"):
        net(a, a, np.int64([2**31]))


def test_types_that_mnn_does_not_have(tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "net.onnx",
    )
    with pytest.raises(InputError, match="'x' is float64; MNN takes float32"):
        RUNTIMES["mnn"].save(tmp_path / "net.onnx", tmp_path / "out")


def test_a_file_from_elsewhere(tmp_path):
    """Without the note that `save` leaves, MNN itself says what a file takes; its batch is then
    that of the conversion.
    """
    saved = RUNTIMES["mnn"].save(conv_file(tmp_path / "net.onnx"), tmp_path)
    content = bytearray(saved.read_bytes())
    start = content.index(b"mirabelle[")
    content[start : start + 9] = b"elsewhere"
    saved.write_bytes(content)
    net = load(saved, "mnn")
    assert net.inputs == [("input", (1, 3, 8, 8), "float32")] and [o.name for o in net.outputs] == [
        "output"
    ]
    np.testing.assert_allclose(net(data(1)), reference(data(1)), atol=1e-5)


def test_measure_reads_files_by_their_suffix(tmp_path):
    path = RUNTIMES["mnn"].save(conv_file(tmp_path / "net.onnx"), tmp_path)
    found = mb.measure(path, inputs=data(1), runs=5)
    assert (
        found.runtime == "mnn"
        and found.bytes == path.stat().st_size
        and found.versions["mnn"] == RUNTIMES["mnn"].version()
    )


# --- sparse layers in a file
# --------------------------------------------------------------------------------------------------


def sparse_net(outputs=12, kernel=1, zeros=0.9, block=1, columns=40, linear=False, seed=0):
    """A network of one layer with zeros at random, singly or in blocks; its file has one sparse
    layer.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = (
        nn.Linear(columns, outputs)
        if linear
        else nn.Conv2d(columns, outputs, kernel, padding=kernel // 2)
    )
    with torch.no_grad():
        shape = (-(-outputs // block), layer.weight[0].numel())
        kept = (torch.rand(shape, generator=generator) >= zeros).repeat_interleave(block, 0)[
            :outputs
        ]
        layer.weight.mul_(kept.view_as(layer.weight))
    return layer.eval()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("outputs", [8, 10])
@pytest.mark.parametrize("block", [1, 4])
def test_every_form_gives_the_same(tmp_path, linear, kernel, outputs, block):
    if linear and kernel == 3:
        pytest.skip("a linear layer has no kernel")
    layer = sparse_net(
        outputs, kernel, 0.85 if block == 4 else 0.75, block, linear=linear
    )  # 0.75 at random: few blocks of four are empty
    x = (
        torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
        if linear
        else torch.randn(2, 40, 5, 5)
    )
    artifact = mb.export(layer, tmp_path, inputs=x)
    variants = sparse_forms.Variants(artifact.path, tmp_path / "variants")
    assert variants.operators == {
        "weight": next(iter(variants.operators.values()))
    } and variants.forms() == ["dense", "1x1", *(["4x1"] if block == 4 else [])]
    with torch.no_grad():
        expected = layer(x).numpy()
    times = {}
    for form in sparse_forms.FORMS:
        net = load(variants.write(tmp_path / f"{form}.mnn", form), "mnn")
        np.testing.assert_allclose(net(x.numpy()), expected, atol=1e-5)
        times[form] = net.bytes
    assert times["dense"] > times["1x1"] == times["4x1"]


@pytest.mark.parametrize("outputs", [8, 10, 3])
def test_blocks_are_written_as_mnn_itself_would(tmp_path, outputs):
    """Its converter, told to take blocks of four, against the numbers that are put into the file
    here; but for the random name that it gives.
    """
    layer = sparse_net(outputs, 3, 0.85, 4)
    artifact = mb.export(layer, tmp_path, inputs=torch.randn(1, 40, 5, 5))
    blocks = {
        "version": "0.0.0",
        "algo": [
            {
                "type": "PRUNE",
                "pruneParams": {"type": "SIMD_OC", "simdOcPrunerParams": {"ocBlocks": [4]}},
            }
        ],
    }
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    theirs = mnn.convert(
        artifact.path,
        tmp_path / "theirs",
        "--detectSparseSpeedUp",
        "--compressionParamsFile",
        str(tmp_path / "blocks.json"),
    )
    ours = sparse_forms.Variants(artifact.path, tmp_path / "ours").write(
        tmp_path / "ours.mnn", "4x1"
    )
    assert theirs.read_bytes() == ours.read_bytes()


def test_stored_weights_by_hand():
    rows = np.float32([[1, 0, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0], [0, 0, 3]])
    assert sparse_forms.stored(rows, 1) == (3, 3)
    assert sparse_forms.stored(rows, 2) == (
        2 * 2 + 1,
        3,
    )  # blocks (rows 0-1, column 0) and (rows 2-3, column 1); the fifth row by itself
    assert sparse_forms.stored(rows, 4) == (2 * 4 + 1, 3)


def test_flatbuffers_that_are_no_mnn_file():
    with pytest.raises(Exception):  # noqa: B017  whatever struct says; files are opened by MNN first
        mnnfile.sparse_layers(bytearray(b"xx"))


def test_files_of_open_sizes_are_opened(tmp_path):
    """MNN holds no array for a size that is open, and cannot be asked for its type."""
    from tests.measurement.test_macs import conv_of_constant_nodes

    artifact = mb.export(conv_of_constant_nodes(tmp_path), tmp_path / "mnn", runtime="mnn")
    assert artifact.inputs[0].shape == (None, 3, None, None)
    for side in (8, 11):
        x = np.random.default_rng(side).normal(size=(1, 3, side, side)).astype(np.float32)
        expected = x[:, :, : side - 2, : side - 2].shape
        assert artifact(x).shape == (1, 8, *expected[2:])
        assert artifact(x)[0, 0, 0, 0] == pytest.approx(x[0, :, :3, :3].sum(), abs=1e-4)
