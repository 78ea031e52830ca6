"""Graphs that leave their inputs as they are, do what the network does for the user's batch, and
hold no graphs of their own; and networks that come in wrappers.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.base.checks import check_network
from mirabelle.base.data import Batch, as_batch
from mirabelle.base.errors import CaptureError, InputError, MirabelleWarning
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from mirabelle.exporter import export
from mirabelle.graph.capture import capture, operator
from mirabelle.graph.plain import compute_once
from mirabelle.pruning.api import prune
from mirabelle.quantization.api import quantize
from mirabelle.verification import verify
from tests.modules import Net

# torch says which line asked from some version after 2.8 on
NAMES_LINES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def two(forward) -> nn.Module:
    torch.manual_seed(1)
    a, e, b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)
    return Net(forward, a=a, e=e, b=b).eval()


def written(s, x):
    x[:, 0] = 1.0
    return s.a(x)


def through_dropout(s, x):
    F.dropout(x, 0.5, False).mul_(50.0)
    return s.a(x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.a(x.mul_(50.0)),
        lambda s, x: s.a(F.relu(x, inplace=True)),
        lambda s, x: s.a(x.transpose(2, 3).sub_(3.0)),
        lambda s, x: s.a(x.type_as(x).add_(1.0)),
        written,
        through_dropout,
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_leaves_its_inputs_as_they_are(forward, dynamic):
    model = two(forward)
    expected = model(X.clone())
    given = X.clone()
    found = capture(model, as_batch(given), dynamic_batch=dynamic)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(found(given), expected)
        assert torch.equal(given, X)


def test_what_forward_reads_from_outside_is_copied():
    outside = nn.Parameter(torch.ones(16, 1, 1))
    found = capture(two(lambda s, x: s.b(s.a(x) * outside)), as_batch(X))
    with torch.no_grad():
        expected = found(X).clone()
        outside.mul_(7.0)
        torch.testing.assert_close(found(X), expected)


def test_what_writes_into_values_of_its_own_is_not_copied():
    found = capture(two(lambda s, x: F.relu(s.a(x), inplace=True)), as_batch(X))
    assert [operator(n) for n in found.graph.nodes if operator(n)] == ["conv2d", "relu_"]


def test_quantizing_a_network_that_writes_into_its_input():
    inside = quantize(two(lambda s, x: s.b(torch.relu(s.a(x.mul_(50.0))))), [X.clone()])
    outside = quantize(two(lambda s, x: s.b(torch.relu(s.a(x * 50.0)))), [X.clone()])
    with torch.no_grad():
        torch.testing.assert_close(inside(X.clone()), outside(X.clone()))


def deeper(s, x):
    y = torch.relu(s.a(x))
    if x.shape[0] > 2:  # THE LINE
        y = torch.relu(s.e(y))
    return s.b(y)


def test_a_layer_that_only_larger_batches_use_is_cut_with_them():
    model = two(deeper)
    coupling = analyze(model, as_batch(X))
    assert {g.name for g in coupling.groups} == {"a", "e"}
    small = remove(model, coupling, {"a": torch.tensor([0, 1]), "e": torch.tensor([3])})
    assert small.e.in_channels == 14 and small(X).shape == (4, 8, 6, 6)


def test_a_sample_that_only_larger_batches_have_is_seen():
    def third(s, x):
        y = torch.relu(s.a(x))
        return s.b(torch.cat([y[:2], torch.relu(s.e(y[2:]))]))

    assert {g.name for g in analyze(two(third), as_batch(X)).groups} == {"a"}
    assert analyze(two(third), as_batch(X)).inputs.size == 4
    assert analyze(two(lambda s, x: s.b(s.a(x))), as_batch(X)).inputs.size == 2


def test_a_graph_for_some_batches_says_so_and_where():
    with open(__file__, encoding="utf-8") as f:
        line = next(i for i, text in enumerate(f, 1) if text.rstrip().endswith("# THE LINE"))
    model = two(deeper)
    place = rf" at .*test_plain\.py:{line}: if x" if NAMES_LINES else ""
    with pytest.warns(UserWarning, match=f"number of samples{place}"):
        found = capture(model, as_batch(X), dynamic_batch=True)
    torch.testing.assert_close(found(X), model(X))


def test_a_network_that_does_something_else_for_a_single_sample():
    model = two(lambda s, x: s.a(x) if x.shape[0] == 1 else s.a(x) * 2)
    with pytest.warns(UserWarning, match="something else for a single one"):
        found = capture(model, as_batch(X[:1]), dynamic_batch=True)
    torch.testing.assert_close(found(X[:1]), model(X[:1]))


def halves(s, x):
    y = torch.relu(s.a(x))
    y = torch.cat([y[:, 8:], y[:, :8]], 1)
    return s.b(y.view(len(x), -1, 6, 6)).flatten(2).reshape(int(8 * x.shape[0] / 8), -1)


def test_a_batch_that_forward_holds_as_an_integer_stays_open():
    """The number of samples and the places of the halves are both written into it."""
    model = two(halves)
    found = capture(model, as_batch(X), dynamic_batch=True)
    small = prune(model, X, macs=0.7, criterion="l1", align=1)
    assert isinstance(small, torch.fx.GraphModule)
    for count in (1, 2, 3, 7):
        x = torch.randn(count, 3, 6, 6)
        torch.testing.assert_close(found(x), model(x))
        assert small(x).shape == (count, 8 * 36)


def under_autocast(s, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = s.b(torch.cat([torch.relu(s.a(x)), x.repeat(1, 2, 1, 1)], 1)[:, :16])
        y = F.layer_norm(y, y.shape[1:]) + F.batch_norm(y, s.mean, s.var)
    with torch.no_grad():
        return y.float() * 2


def autocast() -> nn.Module:
    model = two(under_autocast)
    model.register_buffer("mean", torch.randn(8))
    model.register_buffer("var", torch.rand(8) + 0.5)
    return model


def test_what_is_computed_under_autocast_is_written_out():
    model = autocast()
    found = capture(model, as_batch(X), dynamic_batch=True)
    assert all(
        isinstance(n.target, torch._ops.OpOverload) for n in found.graph.nodes if operator(n)
    )
    assert not [n for n, m in found.named_modules() if isinstance(m, torch.fx.GraphModule) and n]
    torch.testing.assert_close(found(X), model(X), atol=0, rtol=0)
    assert not found(X).requires_grad


def test_a_network_under_autocast_is_pruned_and_quantized():
    small = prune(autocast(), X, macs=0.8, criterion="l1", align=1)
    assert len(small.a.weight) < 16
    model = autocast()
    found, expected = quantize(model, [X])(X), model(X)
    assert (found - expected).norm() < 0.05 * expected.norm()


@dataclass
class Inner:
    classes: torch.Tensor


@dataclass(frozen=True)
class Output:
    scores: torch.Tensor
    inner: Inner
    count: int = 3


def test_dataclasses_are_outputs_like_others():
    def forward(s, x):
        y = torch.relu(s.a(x))
        y = s.b(torch.cat([y[:, 8:], y[:, :8]], 1))
        return Output(y.mean((2, 3)), Inner(y.argmax(1)))

    model = two(forward)
    with torch.no_grad():
        model.a.weight[:3] = 0
        model.a.bias[:3] = 0
    small = remove(model, analyze(model, as_batch(X)), {"a": torch.tensor([0, 1, 2])})
    found, expected = small(X), model(X)
    assert type(found) is Output and type(found.inner) is Inner and found.count == 3
    assert torch.equal(found.inner.classes, expected.inner.classes)


def plain() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_wrappers_come_off(wrap):
    model = plain()
    assert check_network(wrap(model)) is model
    small = prune(wrap(model), X, macs=0.5, criterion="l1", align=1)
    assert type(small) is nn.Sequential and small[0].out_channels == 8
    assert [g.name for g in explain(wrap(model), X).coupling.groups] == ["0"]
    assert "0.weight" in dict(quantize(wrap(model), [X]).named_parameters())


def test_an_exported_module_is_a_network():
    model = torch.export.export(plain(), (X,)).module()
    assert prune(model, X, macs=0.5, criterion="l1", align=1)(X).shape == (4, 8, 6, 6)
    with pytest.raises(InputError, match=r"is an ExportedProgram.*give its \.module\(\)"):
        prune(torch.export.export(plain(), (X,)), X, macs=0.5, criterion="l1")


@pytest.mark.parametrize("wrap", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
def test_scripted_modules_are_refused_with_the_remedy(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(wrap(plain()))
    for verb in (lambda: prune(model, X, macs=0.5, criterion="l1"), lambda: quantize(model, [X])):
        with pytest.raises(CaptureError, match=r"0 is scripted or traced.*load_state_dict"):
            verb()
    assert "scripted or traced" in explain(model, X).problem


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (lambda m: nn.utils.weight_norm(m), "remove_weight_norm"),
        (lambda m: nn.utils.spectral_norm(m), "remove_spectral_norm"),
        (lambda m: nn.utils.prune.l1_unstructured(m, "weight", 0.5), r"prune\.remove"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_weights_that_an_old_hook_computes_are_refused_with_the_remedy(wrap, remedy):
    model = plain()
    wrap(model[0])
    for verb in (lambda: prune(model, X, macs=0.5, criterion="l1"), lambda: quantize(model, [X])):
        with pytest.raises(CaptureError, match=rf"^0 computes a weight.*{remedy}"):
            verb()


def test_a_lazy_network_is_to_be_run_once():
    model = nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match=r"0\.weight has no size yet.*run the network once"):
        capture(model, Batch((X,), {}, None))


def halved_data(s, x):
    x.data.mul_(0.5)
    return s.a(x)


def clamped(s, x):
    y = s.a(x)
    y.data.clamp_(0.0, 1.0)
    return s.b(y)


@pytest.mark.parametrize(
    "forward",
    [
        halved_data,
        clamped,
        lambda s, x: s.b(F.conv2d(x, s.a.weight.data, s.a.bias.data, padding=1)),
    ],
    ids=["input", "between", "weights"],
)
def test_what_is_read_as_data_is_captured_and_exported(forward, tmp_path):
    """`torch.export` refuses it, and torch.onnx ended the process with a fault of memory."""
    network, x = two(forward), X.clone()
    with torch.no_grad():
        expected = network(x.clone())
        assert torch.equal(capture(network, as_batch(x), dynamic_batch=True)(x), expected)
    file = export(network, tmp_path, inputs=x)
    assert torch.equal(x, X) and np.allclose(np.asarray(file(x)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "training"])
def test_names_that_graphs_need_are_refused(name, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    network._modules[name] = nn.Linear(108, 2)
    for call in (
        lambda: capture(network, as_batch(X)),
        lambda: export(network, tmp_path, inputs=X),
    ):
        with pytest.raises(CaptureError, match=f"module called '{name}'.*another name"):
            call()


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.b(s.a(x)) if len(x) < 3 else s.b(s.e(s.a(x))),
        lambda s, x: s.b(s.e(s.a(x))) if x.shape[0] == 4 else s.b(s.a(x)),
        lambda s, x: torch.stack([s.b(s.a(x[i : i + 1]))[0] for i in range(len(x))]),
    ],
    ids=["fewer", "one number", "loop"],
)
def test_a_number_of_samples_that_torch_holds_fast_is_said(forward):
    """torch.export takes such a number for the only one, and the graph runs for others, too."""
    place = "; " if NAMES_LINES else ""
    said = f"depends on the number of samples{place}.*computes for 4"
    with pytest.warns(MirabelleWarning, match=said):
        graph = capture(two(forward), as_batch(X), dynamic_batch=True)
    with torch.no_grad():
        assert torch.allclose(graph(X), two(forward)(X), atol=1e-6)


def test_what_forward_computes_twice_is_one_layer(tmp_path):
    """As exporters write it: a layer of the integers without a place in the file could not be
    compared. Noise is drawn twice, and what is written over stays two values.
    """
    model = two(lambda s, x: s.b(torch.where(s.a(x) > 0, s.a(x), 0.1 * s.a(x))))
    q = quantize(model, [X, X])
    assert sum(operator(n) == "conv2d" for n in q.graph.nodes) == 2
    file = export(q, tmp_path, inputs=X)
    checked = verify(q, file, [X], samples=4)
    assert checked.first_departure is None and max(r.max_off_by for r in checked.layers) <= 1
    batch = as_batch(X)
    noisy = capture(two(lambda s, x: torch.rand_like(x) - torch.rand_like(x) + s.a(x).sum()), batch)
    written = capture(two(lambda s, x: (s.a(x) + 1).add_(s.a(x)) + (s.a(x) + 1)), batch)
    for graph_module, count in ((noisy, 2), (written, 3)):
        compute_once(graph_module)
        names = [operator(n) for n in graph_module.graph.nodes]
        assert names.count("rand_like") + names.count("conv2d") >= count
