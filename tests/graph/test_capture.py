"""Capturing a network: for any batch size, and what forward keeps."""

import copy
import io
import warnings

import networks
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import Batch, as_batch
from mirabelle.base.errors import CaptureError, InputError, MirabelleWarning
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from mirabelle.graph.capture import capture, fixed_length
from tests import tiny
from tests.channels.equivalence import equivalent, same, some, state
from tests.modules import Head, Net, conv_bn, image


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 8), Head(8)

    def forward(self, x):
        y = self.a(x)
        if y.sum() > 0:  # THE LINE
            y = -y
        return self.head(y)


def test_a_network_that_export_refuses():
    with open(__file__, encoding="utf-8") as f:
        line = next(i for i, text in enumerate(f, 1) if "# THE LINE" in text)
    with pytest.raises(CaptureError, match=rf"test_capture\.py:{line}\b"):
        analyze(DataDependent(), as_batch(image()))
    explanation = explain(DataDependent(), image())
    assert (
        explanation.coupling is None
        and f"test_capture.py:{line}" in explanation.problem
        and "nothing can be pruned" in str(explanation)
    )
    assert explanation.to_dict()["problem"] == explanation.problem


@pytest.mark.parametrize("how", ["positional", "named", "both"])
def test_capture_for_any_batch_size(how):
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = conv_bn(3, 4), Head(4)

        def forward(self, x, y):
            return self.head(self.a(x) * y)

    x, y = image(1), image(1, 1)
    batch = {
        "positional": Batch((x, y), {}, None),
        "named": Batch((), {"x": x, "y": y}, None),
        "both": Batch((x,), {"y": y}, None),
    }[how]
    model = TwoInputs().eval()
    captured = capture(model, batch, dynamic_batch=True)
    x, y = image(5), image(5, 1)
    torch.testing.assert_close(
        captured(
            *(x, y)[: len(batch.args)],
            **{k: v for k, v in (("x", x), ("y", y)) if k in batch.kwargs},
        ),
        model(x, y),
    )


def test_what_forward_keeps_is_its_own():
    """Cutting runs copies of the network without computing; what these keep is no tensor that
    anybody could use.
    """

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head, self.grid = conv_bn(3, 8), Head(8), None

        def forward(self, x):
            if self.grid is None or self.grid.shape != x.shape:
                self.grid = torch.ones_like(x)
            return self.head(self.a(x * self.grid))

    model, x = Keeps(), image()
    coupling = analyze(model, as_batch(x))
    small = remove(model, coupling, some(coupling, 0))
    assert type(model.eval()(x)) is type(small.eval()(x)) is type(small.grid) is torch.Tensor


def test_a_module_under_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.block, self.head = (
                conv_bn(3, 8),
                nn.Sequential(conv_bn(8, 6), nn.ReLU(), conv_bn(6, 8)),
                Head(8),
            )
            self.alias = self.block

        def forward(self, x):
            y = self.a(x)
            for block in (self.block, self.alias):
                y = y + block(y)
            return self.head(y)

    torch.manual_seed(0)
    model, inputs = networks.stir(Twice()).double(), as_batch(image().double())
    before = state(model)
    coupling = analyze(model, inputs)
    removed = some(coupling, 0)
    small = remove(model, coupling, removed)
    assert same(before, state(model)) and small.alias is small.block
    assert {g.name: g.channels for g in coupling.groups} == {"a.0": 8, "block.0.0": 6}
    assert equivalent(model, small, coupling, removed)


class _WithTable(nn.Module):
    """Its second input is a table, which has no dimension of samples."""

    def forward(self, x, table):
        return torch.relu(x) @ table.T


class _Sixteen(nn.Module):
    def forward(self, x):
        return x.view(16, 2, -1).mean(1)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_a_graph_for_any_batch_whatever_the_example_holds(size):
    model, x, table = _WithTable(), torch.randn(size, 4), torch.randn(5, 4)
    found = capture(model, Batch((x, table), {}, None), dynamic_batch=True)
    free = [fixed_length(n.meta["val"]) is None for n in found.graph.nodes if n.op == "placeholder"]
    assert free[0]
    for count in (1, 2, 7, 16):
        x = torch.randn(count, 4)
        torch.testing.assert_close(found(x, table), model(x, table))


def test_a_batch_that_the_network_fixes_is_the_examples():
    x = torch.randn(16, 8)
    found = capture(_Sixteen(), Batch((x,), {}, None), dynamic_batch=True)
    assert [fixed_length(n.meta["val"]) for n in found.graph.nodes if n.op == "placeholder"] == [16]
    torch.testing.assert_close(found(x), _Sixteen()(x))


@pytest.mark.parametrize(
    ("forward", "shapes", "said"),
    [
        (lambda x: x if len(x) < 4 else x * 2, [(16, 8)], True),
        (lambda x: x[3:] - x[:1], [(16, 8)], False),
        (lambda x: torch.cat([x[i : i + 1] * i for i in range(len(x))]), [(5, 8)], True),
        (lambda x: x.view(4, -1), [(16, 8)], False),
        (lambda x, t: x + t if len(x) == len(t) else x * 2, [(4, 8), (1, 8)], True),
        (lambda x, mask: x * mask, [(8, 3, 4, 4), (1, 1, 4, 4)], False),
        (lambda x, mask: x * mask, [(8, 3, 4, 4), (8, 1, 4, 4)], False),
    ],
)
def test_a_graph_does_what_the_network_does_with_the_whole_example(forward, shapes, said):
    """Also where two samples of it would take another path."""
    inputs = [torch.randn(s) for s in shapes]
    network = Net(lambda _, *given: forward(*given))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", MirabelleWarning)
        graph = capture(network, Batch(tuple(inputs), {}, None), dynamic_batch=True)
    assert bool(found) is said
    torch.testing.assert_close(graph(*inputs), forward(*inputs))


def test_two_samples_are_traced_of_a_large_example():
    seen = []
    found = capture(
        Net(lambda _, x: (seen.append(x.shape[0]), torch.relu(x))[1]),
        Batch((torch.randn(64, 8),), {}, None),
        dynamic_batch=True,
    )
    assert found(torch.randn(64, 8)).shape == (64, 8)
    assert seen[0] == 2 and not isinstance(seen[1], int)  # when traced, the size was a symbol
    asked = [64] if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9) else []
    assert [s for s in seen if isinstance(s, int)] == [2, *asked]


def test_an_example_that_does_not_run_is_named_whatever_its_batch():
    with pytest.raises(InputError, match=r"does not run on the example input \(inputs: \(16, 3\)"):
        capture(nn.Linear(4, 2), Batch((torch.randn(16, 3),), {}, None), dynamic_batch=True)


def test_what_comes_of_a_captured_network_can_be_pickled_and_copied():
    """`mb.save` needs no pickle, but `torch.save` of a whole network is what people are used to:
    it wrote a file that could not be read.
    """
    x = torch.randn(4, 1, 8, 8)
    q = mb.quantize(tiny.model(), [x, x]).eval()
    kept = io.BytesIO()
    torch.save(q, kept)
    kept.seek(0)
    for again in (torch.load(kept, weights_only=False), copy.deepcopy(q)):
        assert torch.equal(again(x), q(x))
        assert again.state_dict().keys() == q.state_dict().keys()
