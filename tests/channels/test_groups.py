"""Groups of channels, their costs and their explanation, worked out by hand."""

import functools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.surgery import remove
from mirabelle.measurement import count_macs
from tests.channels.equivalence import some
from tests.channels.stuck import stuck
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make


def slots_of(coupling: Coupling) -> set[frozenset]:
    return {frozenset((s.parameter, s.dim, s.role) for s in g.slots) for g in coupling.groups}


def test_groups_of_a_residual_network_by_hand():
    model, x = make("residual")
    coupling = analyze(model, as_batch(x))

    def norm(n: str) -> set:
        names = ("weight", "bias", "running_mean", "running_var")
        return {(f"{n}.1.{v}", 0, "along") for v in names}

    stream = {
        ("a.0.weight", 0, "out"),
        ("c.0.weight", 0, "out"),
        ("b.0.weight", 1, "in"),
        ("head.fc.weight", 1, "in"),
        *norm("a"),
        *norm("c"),
    }
    inner = {("b.0.weight", 0, "out"), ("c.0.weight", 1, "in"), *norm("b")}
    assert slots_of(coupling) == {frozenset(stream), frozenset(inner)}
    assert {g.name: g.channels for g in coupling.groups} == {"a.0": 8, "b.0": 6}
    assert {(f.parameter, f.dim, f.role, f.count, f.reason) for f in coupling.frozen} == {
        ("a.0.weight", 1, "in", 3, "the network's own input"),
        ("head.fc.weight", 0, "out", 3, "an output of the network"),
    }


def test_flatten_gives_each_channel_its_pixels():
    model, x = make("flatten")
    (group,) = analyze(model, as_batch(x)).groups
    (reader,) = group.with_role("in")
    assert torch.equal(reader.index, torch.arange(6 * 16).view(6, 16))


def test_a_grouped_convolution_loses_the_same_position_of_every_group():
    model, x = make("grouped")
    by_name = {g.name: g for g in analyze(model, as_batch(x)).groups}
    assert {n: g.channels for n, g in by_name.items()} == {"a.0": 2, "g.0": 3}
    assert by_name["g.0"].with_role("out")[0].index.tolist() == [
        [0, 3, 6, 9],
        [1, 4, 7, 10],
        [2, 5, 8, 11],
    ]


def test_chunks_stay_equal():
    model, x = make("chunk, one part changed")
    (group,) = analyze(model, as_batch(x)).groups
    assert group.with_role("out")[0].index.tolist() == [[i, i + 6] for i in range(6)]


def test_a_shared_convolution_is_one_group_for_all_its_readers():
    model, x = make("shared by siblings")
    assert slots_of(analyze(model, as_batch(x))) == {
        frozenset(
            {
                ("c.weight", 0, "out"),
                ("c.bias", 0, "along"),
                ("left.weight", 1, "in"),
                ("right.weight", 1, "in"),
            }
        )
    }


def _auxiliary(self, x):
    y = torch.relu(self.a(x))
    out = self.head(self.b(y))
    return (out, self.aux(self.inner(y))) if self.training else out


def test_what_training_alone_computes_is_cut_along():
    """As GoogLeNet's and Inception's auxiliary classifiers: evaluation does not read them, and what
    they make themselves stays.
    """
    model, x = (
        networks.stir(
            Net(
                _auxiliary,
                a=conv_bn(3, 8),
                b=conv_bn(8, 6),
                head=Head(6),
                inner=conv_bn(8, 5),
                aux=Head(5),
            )
        ),
        image(),
    )
    inputs = as_batch(x)
    coupling = analyze(model, inputs)
    assert {g.name: g.channels for g in coupling.groups} == {"a.0": 8, "b.0": 6}
    assert ("inner.0.weight", 1, "along") in {
        (s.parameter, s.dim, s.role) for g in coupling.groups for s in g.slots
    }
    assert sum(c.macs for c in coupling.costs) == count_macs(model, x)
    removed = {"a.0": torch.tensor([1, 4, 6])}
    small = remove(model, coupling, removed).train()
    kept = [0, 2, 3, 5, 7]
    assert torch.equal(
        small.inner[0].weight, model.inner[0].weight[:, kept]
    ) and small.aux.fc.weight.shape == (3, 5)
    out, aux = small(x)
    (out.sum() + aux.sum()).backward()
    assert out.shape == aux.shape == (2, 3) and bool(small.inner[0].weight.grad.abs().sum() > 0)


def test_training_that_cannot_be_captured_is_said():
    def forward(self, x):
        if self.training and float(x.sum()) > 0:
            return self.aux(self.a(x))
        return self.head(self.a(x))

    model = Net(forward, a=conv_bn(3, 8), aux=Head(8), head=Head(8))
    with pytest.warns(
        UserWarning,
        match=r"aux\.fc\.weight and 1 parameters more are not read in evaluation, and training "
        r"cannot be captured",
    ):
        coupling = analyze(model, as_batch(image()))
    assert [g.name for g in coupling.groups] == ["a.0"]


def test_tied_weights_stay_tied():
    model, x = make("tied weights")
    inputs = as_batch(x)
    coupling = analyze(model, inputs)
    small = remove(model, coupling, some(coupling, 0))
    assert small.a.weight is small.b.weight and small.a.weight.shape[0] == 4
    assert {f.reason for f in analyze(model, inputs, ["b"]).frozen} >= {"keep='b'"}
    assert not analyze(model, inputs, ["b"]).groups


def test_the_whole_batch_where_two_samples_will_not_do():
    fixed = Net(lambda s, x: s.head(s.a(x).view(4, 8, 8, 8)), a=conv_bn(3, 8), head=Head(8))
    assert analyze(fixed, as_batch(image(4))).frozen
    unbatched = Net(
        lambda s, x: s.b(torch.relu(s.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 3)
    )
    coupling = analyze(unbatched, as_batch(image(1)[0]))
    assert [g.channels for g in coupling.groups] == [8]


def test_keep():
    model, x = make("residual")
    inputs = as_batch(x)
    assert {g.name for g in analyze(model, inputs, ["b"]).groups} == set()
    assert {g.name for g in analyze(model, inputs, ["head.fc.weight"]).groups} == {"b.0"}
    assert {g.name for g in analyze(model, inputs, "head").groups} == {"b.0"}
    with pytest.raises(InputError, match=r"'heat'.*did you mean 'head'"):
        analyze(model, inputs, ["heat"])
    with pytest.raises(InputError, match="heat"):
        explain(model, x, keep=["heat"])


def test_explanation_is_readable():
    model, x = make("residual")
    text = str(explain(model, x))
    assert (
        "channels that live and die together" in text
        and "an output of the network" in text
        and "a.0, c.0" in text
    )
    unknown = explain(stuck("in-place copy")[0], image())
    assert "no rule for operator index_fill_" in str(unknown)
    assert unknown.to_dict()["groups"] and unknown.to_dict()["problem"] is None


@functools.cache
def _coupling() -> Coupling:
    return analyze(make("dense")[0], as_batch(make("dense")[1]))


@settings(deadline=None, derandomize=True, max_examples=20)
@given(kept=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)))
def test_costs_by_hand(kept):
    a, b, c = kept
    counts = dict(zip(("a.0", "b.0", "c.0"), kept, strict=True))
    assert _coupling().macs(counts) == 64 * 9 * (3 * a + a * b + (a + b) * c) + 3 * (a + b + c)
    assert (
        _coupling().parameters(counts, ["a.0.weight", "head.fc.weight", "head.fc.bias"])
        == 27 * a + 3 * (a + b + c) + 3
    )


def test_work_that_does_not_shrink_is_counted():
    model = Net(
        lambda s, x: s.fc(
            (lambda y: torch.baddbmm(y[:, :, :4], y, y.transpose(1, 2)))(
                s.b(s.a(x)).flatten(2)
            ).flatten(1)
        ),
        a=conv_bn(3, 8),
        b=conv_bn(8, 4),
        fc=nn.Linear(16, 3),
    )
    coupling = analyze(model, as_batch(image()))
    assert coupling.rest == 4 * 4 * 64 and coupling.macs() == count_macs(model, image())
    small = remove(model, coupling, {"a.0": torch.arange(3)})
    assert coupling.macs({"a.0": 5}) == count_macs(small, image())


def test_of_an_example_two_samples_are_looked_at_or_a_large_one():
    model = Net(lambda s, x: (s.head(s.a(x)), torch.ones(())), a=conv_bn(3, 8), head=Head(8)).eval()
    assert analyze(model, as_batch(image(4))).inputs.size == 2
    large = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = analyze(nn.Sequential(large, nn.Linear(4, 2)), as_batch(torch.randn(3, 3, 640, 640)))
    assert found.inputs.size == 1


def test_what_cannot_be_counted_is_no_rest(monkeypatch):
    def uncounted(*given):
        raise InputError("two names")

    monkeypatch.setattr("mirabelle.channels.groups.count_macs", uncounted)
    assert analyze(make("plain", torch.float32)[0], as_batch(image())).rest == 0
