"""Runtimes whose files are for one batch size, those of phones: the same promises for each, float
and int8; skipped where one is not installed.
"""

import copy
import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, MissingRuntimeError
from mirabelle.quantization import quantize
from mirabelle.runtimes import RUNTIMES, Artifact, load
from tests.quantized_networks import Network, batches, build, needs

PHONES = sorted(n for n, r in RUNTIMES.items() if not r.free_batch)
INT8 = [n for n in PHONES if RUNTIMES[n].int8]


@pytest.fixture(scope="module", params=PHONES)
def runtime(request):
    needs(request.param)
    return request.param


@pytest.fixture(scope="module", params=INT8)
def int8_runtime(request):
    needs(request.param)
    return request.param


@pytest.fixture(scope="module")
def network():
    return build("residual")


@pytest.fixture(scope="module")
def net(runtime, network, tmp_path_factory):
    return mb.export(
        network, tmp_path_factory.mktemp(runtime), runtime=runtime, inputs=batches(count=1)[0][:1]
    )


@pytest.fixture(scope="module")
def q(network):
    return quantize(network, batches(), target="symmetric")  # grids that every one of them has


@pytest.fixture(scope="module")
def net8(int8_runtime, q, tmp_path_factory):
    return mb.export(
        q,
        tmp_path_factory.mktemp(int8_runtime),
        runtime=int8_runtime,
        inputs=batches(count=1)[0][:1],
    )


def test_float_files_compute_what_torch_does(net, network):
    x = batches(count=1, seed=3)[0]
    expected = network(x).detach().numpy()
    np.testing.assert_allclose(net(x[:1].numpy()), expected[:1], atol=2e-5)
    np.testing.assert_allclose(net(input=x[1:2]), expected[1:2], atol=2e-5)


def test_a_batch_of_any_size_runs_in_pieces(net, network):
    for size in (1, 3, 16):
        batch = as_batch(batches(count=1, size=size, seed=size)[0])
        np.testing.assert_allclose(
            net.predict(batch), network(batch.args[0]).detach().numpy(), atol=2e-5
        )
    with pytest.raises(InputError, match=r"expected \(1, 3, 16, 16\)"):
        net(batches(count=1)[0])


def test_the_last_piece_is_filled_up(runtime, tmp_path):
    if runtime == "ncnn":
        pytest.skip("one sample at a time")
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = batches(count=1, size=7)[0]
    net = mb.export(conv, tmp_path, runtime=runtime, inputs=x[:3])
    assert net.inputs[0].shape == (3, 3, 16, 16)
    np.testing.assert_allclose(net.predict(as_batch(x)), conv(x).detach().numpy(), atol=1e-5)


def test_says_what_it_takes_and_gives(net):
    assert net.inputs == [("input", (1, 3, 16, 16), "float32")]
    assert [(o.shape, o.dtype) for o in net.outputs] in ([((1, 5), "float32")], [(None, "float32")])
    assert net.version[0].isdigit() and net.version in str(net)
    assert net.bytes == sum(
        f.stat().st_size for f in net.path.parent.iterdir()
    )  # and nothing temporary is left


def test_outputs_are_not_overwritten_by_the_next_call(net):
    x = batches(count=1)[0].numpy()
    first = net(x[:1])
    kept = first.copy()
    net(x[1:2])
    np.testing.assert_array_equal(first, kept)


def test_threads_copies_and_pickles(net):
    x = batches(count=1)[0][:1].numpy()
    for other in (net.with_threads(2), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_allclose(other(x), net(x), atol=1e-6)


def test_named_inputs_and_several_outputs(runtime, tmp_path):
    class Two(nn.Module):
        def forward(self, a, k, b):
            return a + b, a * b, k + 1

    if runtime == "ncnn":
        pytest.skip("one sample at a time, floats only")
    x = {"b": torch.randn(2, 3), "a": torch.randn(2, 3), "k": torch.tensor([[1], [2]])}
    net = mb.export(Two(), tmp_path, runtime=runtime, inputs=x)
    total, product, more = net(**{k: v.numpy() for k, v in x.items()})
    np.testing.assert_allclose(total, (x["a"] + x["b"]).numpy(), atol=1e-6)
    np.testing.assert_allclose(product, (x["a"] * x["b"]).numpy(), atol=1e-6)
    assert more.tolist() == [[2], [3]] and more.dtype == np.int64


@pytest.mark.parametrize("keep", [0, 5, 300, -40])
def test_damaged_files(net, tmp_path, keep):
    for i, file in enumerate(net.files):  # each of the files, with the others whole
        folder = tmp_path / str(i)
        folder.mkdir()
        for other in net.files:
            content = other.read_bytes()
            (folder / other.name).write_bytes(content[:keep] if other == file else content)
        with pytest.raises(InputError, match="model.*damaged"):
            load(folder / net.path.name, net.runtime)


def test_saving_twice_gives_the_same_bytes(net8, q, tmp_path):
    again = mb.export(q, tmp_path / "again", runtime=net8.runtime, inputs=batches(count=1)[0][:1])
    program = (
        "import sys; import mirabelle as mb; from tests.quantized_networks import build, "
        "batches; from mirabelle.quantization.api import quantize; "
        "mb.export(quantize(build('residual'), batches(), target='symmetric'), sys.argv[2], "
        "runtime=sys.argv[1], inputs=batches(count=1)[0][:1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    subprocess.run(
        [sys.executable, "-c", program, net8.runtime, tmp_path / "b"],
        check=True,
        env=environment,
        capture_output=True,
    )
    contents = [
        [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(p.iterdir())]
        for p in (net8.path.parent, again.path.parent, tmp_path / "b")
    ]
    assert contents[0] == contents[1] == contents[2]
    content = b"".join(f.read_bytes() for f in net8.files)
    for word in (
        b"/work",
        b"/tmp",
        b"/root",
        b"/home",
        b"site-packages",
        b".py",
        str(tmp_path).encode(),
    ):
        assert word not in content


def test_integers_are_those_of_the_reference(net8, q):
    found = mb.verify(q, net8, batches(count=2, seed=5))
    assert found.samples == 32 and len(found.layers) == len(q.meta["quantization"].sites)
    assert (
        max(c.max_off_by for c in found.layers) <= RUNTIMES[net8.runtime].off_by
        and min(c.exact for c in found.layers) >= 0.99
    )
    assert found.sqnr_db is None or found.sqnr_db > 50


@pytest.mark.parametrize(
    "name", ["depthwise", "concatenation", "ends_in_conv", "conv1d", "squeeze_excite"]
)
def test_other_networks(int8_runtime, name, tmp_path):
    q = quantize(build(name), batches(name, 2), target="symmetric")
    found = mb.verify(
        q,
        mb.export(q, tmp_path, runtime=int8_runtime, inputs=batches(name, 1)[0][:1]),
        batches(name, 1, seed=5),
    )
    assert len(found.layers) == len(q.meta["quantization"].sites), found.note
    assert max(c.max_off_by for c in found.layers) <= RUNTIMES[int8_runtime].off_by, found


def test_a_changed_weight_is_found(int8_runtime, q, tmp_path):
    changed = copy.deepcopy(q)
    with torch.no_grad():
        weight = changed.get_parameter("c1.weight")[3].view(-1)
        weight[weight.abs().argmax()] *= -1
    found = mb.verify(
        q,
        mb.export(changed, tmp_path, runtime=int8_runtime, inputs=batches(count=1)[0][:1]),
        batches(count=1),
    )
    assert (
        found.first_departure is not None and found.first_departure.layer == "c1"
    ) or "gives other outputs" in found.note


def test_quantized_files_are_small(int8_runtime, tmp_path):
    outputs = (
        10 if int8_runtime == "executorch" else 200
    )  # there a last layer whose result has no grid stays in float
    network = Network(
        lambda n, x: n.fc(torch.relu(n.b(torch.relu(n.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 64, 3),
        b=nn.Conv2d(64, 128, 3),
        fc=nn.Linear(128, outputs),
    )
    x = batches(count=1)
    before = mb.export(network, tmp_path / "f", runtime=int8_runtime, inputs=x[0][:1])
    after = mb.export(
        quantize(network, x, target="symmetric"),
        tmp_path / "q",
        runtime=int8_runtime,
        inputs=x[0][:1],
    )
    assert after.bytes < before.bytes / 3


def test_onnx_files_are_refused_in_words(net, tmp_path):
    if RUNTIMES[net.runtime].save is None:
        with pytest.raises(InputError, match=f"files for {net.runtime} are made from networks"):
            mb.export(tmp_path / "net.onnx", tmp_path, runtime=net.runtime)


def test_a_runtime_that_is_not_installed(net, monkeypatch, tmp_path):
    packages = ("ai_edge_litert", "executorch", "ncnn")
    for name in [*packages, *(m for m in sys.modules if m.split(".")[0] in packages)]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRuntimeError, match=rf"pip install 'mirabelle\[{net.runtime}\]'"):
        load(net.path, net.runtime)
    with pytest.raises(MissingRuntimeError, match=rf"pip install 'mirabelle\[{net.runtime}\]'"):
        mb.export(nn.Linear(2, 2), tmp_path, runtime=net.runtime, inputs=torch.zeros(1, 2))


def test_other_files(runtime, tmp_path):
    suffix = RUNTIMES[runtime].suffix
    with pytest.raises(InputError, match="is not there"):
        load(tmp_path / f"none{suffix}", runtime)
    for ending in {suffix, ".bin"}:
        (tmp_path / f"text{ending}").write_text("<html>" * 20)
    with pytest.raises(InputError, match="damaged"):
        Artifact(tmp_path / f"text{suffix}", runtime)(np.zeros(1, "float32"))


def test_ncnn_says_what_it_cannot_take(tmp_path):
    needs("ncnn")
    x = batches(count=1)
    with pytest.raises(
        InputError, match=r"no zero point, and the grid of '.*quantize with target=.symmetric"
    ):
        mb.export(
            quantize(build("residual"), x, target="arm"), tmp_path, runtime="ncnn", inputs=x[0][:1]
        )
    with pytest.raises(InputError, match="ncnn needs float inputs"):
        mb.export(nn.Embedding(3, 4), tmp_path, runtime="ncnn", inputs=torch.tensor([[1, 2]]))
    assert not list(tmp_path.iterdir()), "nothing is left behind"
