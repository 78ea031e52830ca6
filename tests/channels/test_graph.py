"""Channels found and cut, judged by masking equivalence: the cut network computes what the whole
one does when nothing reads what was removed.
"""

import copy
import dataclasses
import functools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from examples.fashion import ResNet
from mirabelle.base.data import Batch, as_batch, example_inputs
from mirabelle.base.errors import CaptureError, InputError, SurgeryError
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import Coupling, Slot, analyse
from mirabelle.channels.rewrite import graph_form
from mirabelle.channels.surgery import difference, indices, mask, reference, remove
from mirabelle.graph.capture import capture, fixed_length
from mirabelle.measurement import count_macs, count_parameters
from tests.networks import NETWORKS, Head, Net, conv_bn, image, make, plans
from tests.wide_networks import GRAPH, STATISTICS, WIDE, after


def leaves(output):
    return [v for v in torch.utils._pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def some(coupling: Coupling, seed: int, share: float = 0.5) -> dict[str, torch.Tensor]:
    """A random removal: about `share` of the channels of each group, never all."""
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.randperm(g.channels, generator=generator)[
            : min(g.channels - 1, round(share * g.channels))
        ]
        for g in coupling.groups
    }


def state(model: nn.Module) -> dict:
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "training": {n: m.training for n, m in model.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "repr": repr(model),
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b or a == b
    )


def another(inputs: Batch, scale: float) -> Batch:
    return inputs.map(lambda t: scale * torch.randn_like(t) if t.is_floating_point() else t.flip(0))


def equivalent(
    model: nn.Module, small: nn.Module, coupling: Coupling, removed: dict, masks: bool = True
) -> bool:
    """Masking equivalence to float64 rounding, on inputs that surgery has not seen too: against the
    reference, which runs the graph node by node, and against the network with masked weights, which
    knows nothing of labels inside it.
    """
    small = small.eval()
    masked = mask(model, coupling, removed).eval()
    with torch.no_grad():
        for scale in (1.0, 3.0):
            inputs = another(coupling.inputs, scale)
            found = leaves(small(*inputs.args))
            for expected in [
                reference(coupling, indices(coupling, removed), inputs),
                *([masked(*inputs.args)] if masks else []),
            ]:
                for a, b in zip(leaves(expected), found, strict=True):
                    if a.shape != b.shape or (a - b).abs().max() > 1e-9 * (1 + a.abs().max()):
                        return False
    return True


def cut_and_check(
    model: nn.Module, x, seed: int, share: float = 0.5, graph: bool = False, masks: bool = True
) -> Coupling:
    inputs = example_inputs(x)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    coupling = analyse(model, inputs)
    removed = some(coupling, seed, share)
    small = remove(model, coupling, removed)
    assert same(before, state(model)), "the network that was given has changed"
    assert isinstance(small, torch.fx.GraphModule) if graph else type(small) is type(model)
    assert small.training
    assert equivalent(model, small, coupling, removed, masks)
    kept = {g.name: g.channels - len(removed[g.name]) for g in coupling.groups}
    assert coupling.macs(kept) == count_macs(small, x)
    assert coupling.macs() == count_macs(model, x)
    trained = [n for n, _ in model.named_parameters()]
    assert {n for n, _ in small.named_parameters()} == set(trained) <= set(coupling.shapes)
    assert coupling.parameters(kept, trained) == count_parameters(small)
    if any(len(r) for r in removed.values()):
        assert count_parameters(small) < count_parameters(model)
    small.train()
    sum(v.double().square().mean() for v in leaves(small(*inputs.args))).backward()
    assert all(
        p.grad is not None and p.grad.shape == p.shape
        for p in small.parameters()
        if p.requires_grad
    )
    return coupling


# --- masking equivalence
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_equivalence_of_each_network(name):
    model, x = make(name)
    coupling = cut_and_check(model, x, seed=1, graph=name == "split by size")
    assert coupling.groups, "nothing was found that can be pruned"
    assert not coupling.unknown


@pytest.mark.parametrize("name", WIDE)
def test_equivalence_of_each_wide_network(name):
    torch.manual_seed(0)
    model, x = WIDE[name]()
    model = networks.stir(model).double()
    x = x.double() if x.is_floating_point() else x
    coupling = cut_and_check(model, x, 1, graph=name in GRAPH, masks=name not in STATISTICS)
    assert coupling.groups and not coupling.unknown


@pytest.mark.parametrize(
    "name", [n for n in WIDE if n.startswith(("lstm", "gru", "plain recurrent"))]
)
def test_recurrent_networks_in_graph_form(name):
    """The sizes of initial states are in the graph; the batch stays free."""
    torch.manual_seed(0)
    model, x = WIDE[name]()
    model, x = model.double().eval(), x.double()
    coupling = analyse(model, example_inputs(x))
    removed = some(coupling, 1)
    small, graph = (
        remove(model, coupling, removed),
        graph_form(model, coupling.inputs, indices(coupling, removed)),
    )
    with torch.no_grad():
        for y in (torch.randn_like(x), torch.randn(3, *x.shape[1:]).double()):
            torch.testing.assert_close(graph(y), small(y))
    graph.train()(x).sum().backward()
    assert all(p.grad is not None for p in graph.parameters())


def test_what_a_hidden_channel_of_an_lstm_is():
    """Four gates, both layers, both directions; the layers' own rows make it, the next steps, the
    next layer and the head read it.
    """
    coupling = analyse(WIDE["lstm"]()[0], example_inputs(torch.randn(2, 5, 5)))
    hidden = next(g for g in coupling.groups if g.name == "layer")
    at = {(s.parameter, s.dim): (s.role, s.index[1].tolist()) for s in hidden.slots}
    gates = [1, 9, 17, 25]
    for end in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert at[f"layer.weight_ih_{end}", 0] == ("out", gates) and at[
            f"layer.weight_hh_{end}", 0
        ] == ("out", gates)
        assert at[f"layer.weight_hh_{end}", 1] == ("in", [1])
        assert at[f"layer.bias_ih_{end}", 0] == at[f"layer.bias_hh_{end}", 0] == ("along", gates)
    for name in ("layer.weight_ih_l1", "layer.weight_ih_l1_reverse", "head.weight"):
        assert at[name, 1] == ("in", [1, 9])
    assert len(at) == 4 * 5 + 3 and hidden.channels == 8


@pytest.mark.parametrize("shared", [False, True])
def test_states_that_are_given_keep_their_size(shared):
    """A state that comes from outside is as wide as it is; zeros that are used for something else
    too.
    """

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.gru, self.head = (
                nn.Linear(5, 6),
                nn.GRU(6, 8, batch_first=True),
                nn.Linear(8, 3),
            )

        def forward(self, x, state):
            state = torch.zeros(1, len(x), 8) if shared else state
            y = self.gru(self.embed(x), state)[0]
            return self.head(y), state + 1

    model = Given().eval()
    coupling = analyse(model, example_inputs((torch.randn(2, 4, 5), torch.randn(1, 2, 8))))
    assert [g.name for g in coupling.groups] == ["embed"] and not coupling.unknown
    assert {f.reason for f in coupling.frozen if f.parameter.startswith("gru")} == {
        "gru in gru: meets values that cannot be removed"
    }
    small = remove(model, coupling, some(coupling, 1))
    assert small.gru.input_size == 3 and small.gru.hidden_size == 8


@settings(deadline=None, derandomize=True, max_examples=25)
@given(plan=plans, seed=st.integers(0, 99), share=st.floats(0, 0.9))
def test_equivalence_of_random_networks(plan, seed, share):
    model = networks.build(plan).double()
    coupling = cut_and_check(model, image().double(), seed, share)
    assert coupling.groups and not coupling.unknown


def test_equivalence_of_bottlenecks():
    torch.manual_seed(0)
    model = networks.stir(networks.BottleneckNet()).double()
    coupling = cut_and_check(model, image(size=32).double(), seed=3)
    # Two inner groups a block, one for each stage's residual stream, one for the stem.
    assert len(coupling.groups) == 2 * 9 + 4 + 1
    assert not [
        f
        for f in coupling.frozen
        if f.reason not in ("an output of the network", "the network's own input")
    ]


def test_equivalence_of_the_fashion_network():
    torch.manual_seed(0)
    model = networks.stir(ResNet(width=8)).double()
    cut_and_check(model, torch.randn(2, 1, 28, 28, dtype=torch.float64), seed=3)


@pytest.mark.parametrize(
    "name", ["residual", "dense", "grouped", "flatten", "chunk", "shuffle after grouped"]
)
def test_every_single_channel_can_go(name):
    """One channel at a time: the finest oracle that the labels have."""
    model, x = make(name)
    inputs = example_inputs(x)
    coupling = analyse(model, inputs)
    for group in coupling.groups:
        for channel in range(group.channels if group.channels > 1 else 0):
            removed = {group.name: torch.tensor([channel])}
            assert equivalent(model, remove(model, coupling, removed), coupling, removed)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "depthwise", "flatten", "u-net"])
def test_wrong_coupling_is_caught(name):
    """The test of the test, and of surgery's own: each slot's indices are permuted in turn, and
    equivalence must fail.
    """
    model, x = make(name)
    inputs = example_inputs(x)
    coupling = analyse(model, inputs)
    wrong, caught = 0, 0
    for i, group in enumerate(coupling.groups):
        for j, slot in enumerate(group.slots):
            if group.channels < 2:
                continue
            broken: Slot = dataclasses.replace(slot, index=slot.index.roll(1, 0))
            slots = (*group.slots[:j], broken, *group.slots[j + 1 :])
            groups = [*coupling.groups]
            groups[i] = dataclasses.replace(group, slots=slots)
            bad = dataclasses.replace(coupling, groups=groups)
            wrong += 1
            try:
                remove(model, bad, {group.name: torch.tensor([0])})
            except SurgeryError as error:
                caught += 1
                assert "differs by" in str(error)
    assert wrong and caught == wrong


def test_a_missing_slot_is_caught():
    model, x = make("residual")
    inputs = example_inputs(x)
    coupling = analyse(model, inputs)
    for i, group in enumerate(coupling.groups):
        for j in range(len(group.slots)):
            groups = [*coupling.groups]
            groups[i] = dataclasses.replace(group, slots=group.slots[:j] + group.slots[j + 1 :])
            with pytest.raises(SurgeryError):
                remove(
                    model,
                    dataclasses.replace(coupling, groups=groups),
                    {group.name: torch.tensor([0])},
                )


def test_float32_and_a_network_that_is_random_in_eval_mode():
    model = Net(
        lambda s, x: s.head(F.dropout(s.a(x), 0.5)), a=conv_bn(3, 8), head=Head(8)
    )  # dropout that eval mode leaves on
    inputs = example_inputs(image())
    coupling = analyse(model, inputs)
    small = remove(model, coupling, some(coupling, 0))
    assert small.head.fc.in_features == 4


def test_difference_sees_every_output():
    x = torch.randn(3, 4)
    assert difference((x, {"a": x}), (x, {"a": x + 1e-8})) is None
    assert "differs" in difference((x, {"a": x}), (x, {"a": x * 1.1}))
    assert "shapes" in difference((x, x), (x, x[:2]))


# --- groups
# --------------------------------------------------------------------------------------------------


def slots_of(coupling: Coupling) -> set[frozenset]:
    return {frozenset((s.parameter, s.dim, s.role) for s in g.slots) for g in coupling.groups}


def test_groups_of_a_residual_network_by_hand():
    model, x = make("residual")
    coupling = analyse(model, as_batch(x))

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
    (group,) = analyse(model, as_batch(x)).groups
    (reader,) = group.with_role("in")
    assert torch.equal(reader.index, torch.arange(6 * 16).view(6, 16))


def test_a_grouped_convolution_loses_the_same_position_of_every_group():
    model, x = make("grouped")
    by_name = {g.name: g for g in analyse(model, as_batch(x)).groups}
    assert {n: g.channels for n, g in by_name.items()} == {"a.0": 2, "g.0": 3}
    assert by_name["g.0"].with_role("out")[0].index.tolist() == [
        [0, 3, 6, 9],
        [1, 4, 7, 10],
        [2, 5, 8, 11],
    ]


def test_chunks_stay_equal():
    model, x = make("chunk, one part changed")
    (group,) = analyse(model, as_batch(x)).groups
    assert group.with_role("out")[0].index.tolist() == [[i, i + 6] for i in range(6)]


def test_a_shared_convolution_is_one_group_for_all_its_readers():
    model, x = make("shared by siblings")
    assert slots_of(analyse(model, as_batch(x))) == {
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
    coupling = analyse(model, inputs)
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
        coupling = analyse(model, as_batch(image()))
    assert [g.name for g in coupling.groups] == ["a.0"]


def test_tied_weights_stay_tied():
    model, x = make("tied weights")
    inputs = as_batch(x)
    coupling = analyse(model, inputs)
    small = remove(model, coupling, some(coupling, 0))
    assert small.a.weight is small.b.weight and small.a.weight.shape[0] == 4
    assert {f.reason for f in analyse(model, inputs, ["b"]).frozen} >= {"keep='b'"}
    assert not analyse(model, inputs, ["b"]).groups


def test_the_whole_batch_where_two_samples_will_not_do():
    fixed = Net(lambda s, x: s.head(s.a(x).view(4, 8, 8, 8)), a=conv_bn(3, 8), head=Head(8))
    assert analyse(fixed, as_batch(image(4))).frozen
    unbatched = Net(
        lambda s, x: s.b(torch.relu(s.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 3)
    )
    coupling = analyse(unbatched, as_batch(image(1)[0]))
    assert [g.channels for g in coupling.groups] == [8]


# --- what cannot be pruned
# --------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 8), Head(8)
        self.constant = [torch.randn(8, 1, 1)]

    def forward(self, x):
        return self.head(self.a(x) * self.constant[0])


STUCK = {
    "cumsum": (after(lambda y: y.cumsum(1)), "cumsum"),
    "softmax over channels": (after(lambda y: y.softmax(1)), "softmax"),
    "roll": (after(lambda y: y.roll(2, 1)), "cuts the channels"),
    "roll of everything": (after(lambda y: y.roll(2)), "cuts the channels"),
    "unbind": (after(lambda y: torch.stack(y.unbind(1)[::-1], 1)), "a single channel"),
    "pooling over channels": (
        after(lambda y: F.avg_pool2d(y.permute(0, 2, 3, 1), 3, 1, 1).permute(0, 3, 1, 2)),
        "dimension that it changes",
    ),
    "max pooling over channels": (
        after(
            lambda y: (
                F.max_pool1d(y.flatten(2).transpose(1, 2), 3, 1, 1)
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "dimension that it changes",
    ),
    "reflected channels": (
        after(
            lambda y: (
                F.pad(y.flatten(2).transpose(1, 2), (1, 1), mode="reflect")
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "repeats channels",
    ),
    "conv over channels": (
        after(
            lambda y: (
                F.conv1d(y.flatten(2).transpose(1, 2), torch.ones(64, 1, 3), padding=1, groups=64)
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "does not read",
    ),
    "matrix product": (
        after(lambda y: torch.einsum("nchw,nkhw->nck", y, y)[..., None]),
        "two dimensions at once",
    ),
    "a product of three": (
        after(lambda y: torch.einsum("nchw,nchw,nchw->nchw", y, y, y)),
        "not a product of two",
    ),
    "a constant": (Constant(), "cannot be removed"),
    "ones made in forward": (
        after(lambda y: y * torch.ones(y.shape[1], 1, 1)),
        "cannot be removed",
    ),
    "padded channels met": (
        after(lambda y: F.pad(y, (0, 0, 0, 0, 0, 2), value=1.0) + F.pad(y, (0, 0, 0, 0, 2, 0))),
        "cannot be removed",
    ),
    "in-place copy": (
        after(lambda y: torch.cat([y, y], 1).clone().index_fill_(1, torch.tensor([0]), 0.0)),
        "no rule",
    ),
    "manual concatenation": (after(lambda y: _by_hand(y)), "a part of a tensor"),
    "no_grad inside": (after(lambda y: _no_grad(y)), "no rule"),
}


def _by_hand(y):
    out = torch.zeros(y.shape[0], 16, *y.shape[2:], dtype=y.dtype)
    out[:, :8] = y
    out[:, 8:] = -y
    return out


def _no_grad(y):
    with torch.no_grad():
        return torch.cumsum(y, 1)


def stuck(name: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    model, reason = STUCK[name]
    model.eval()(image())  # lazy layers
    return networks.stir(copy.deepcopy(model)), reason


@pytest.mark.parametrize("name", STUCK)
def test_what_cannot_be_pruned_is_named_and_left_alone(name):
    model, reason = stuck(name)
    model = model.double()
    x = image().double()
    if name in ("a constant", "ones made in forward", "conv over channels"):
        model, x = model.float(), x.float()
    coupling = analyse(model, as_batch(x))
    explanation = explain(model, x)
    assert reason in str(explanation).replace("\n", " ") or any(
        reason in f.reason for f in coupling.frozen
    )
    assert any(
        reason in f.reason
        for f in coupling.frozen
        if f.parameter in ("a.0.weight", "a.weight", "w", "b.weight", "a.0.bias")
    )
    frozen = {(f.parameter, f.role) for f in coupling.frozen}
    assert ("a.0.weight", "out") in frozen or ("a.weight", "out") in frozen
    if hasattr(model, "z"):
        assert {g.name for g in coupling.groups} >= {"z.0", "b"} - (
            {"b"} if name == "matrix product" else set()
        ), "the rest goes on"
    removed = some(coupling, 0)
    small = remove(model, coupling, removed)
    if x.dtype == torch.float64:
        assert equivalent(model, small, coupling, removed)


def test_keep():
    model, x = make("residual")
    inputs = as_batch(x)
    assert {g.name for g in analyse(model, inputs, ["b"]).groups} == set()
    assert {g.name for g in analyse(model, inputs, ["head.fc.weight"]).groups} == {"b.0"}
    assert {g.name for g in analyse(model, inputs, "head").groups} == {"b.0"}
    with pytest.raises(InputError, match=r"'heat'.*did you mean 'head'"):
        analyse(model, inputs, ["heat"])
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
    with pytest.raises(CaptureError, match=rf"test_graph\.py:{line}\b"):
        analyse(DataDependent(), as_batch(image()))
    explanation = explain(DataDependent(), image())
    assert (
        explanation.coupling is None
        and f"test_graph.py:{line}" in explanation.problem
        and "nothing can be pruned" in str(explanation)
    )
    assert explanation.to_dict()["problem"] == explanation.problem


# --- sizes written into forward
# --------------------------------------------------------------------------------------------------

WRITTEN = {
    # Runs at half the channels and 4 samples: rows of two samples become one, and only the shape of
    # the output tells.
    "a view that eats the batch": Net(
        lambda s, x: s.a(x).mean((2, 3)).view(-1, 8).sum() + s.b(s.a(x)),
        a=conv_bn(3, 8),
        b=nn.Conv2d(8, 1, 1),
    ),
    # Runs at half the channels: 4 groups of 4 become 2 groups of 4. Nothing but the values tells.
    "silent": Net(
        lambda s, x: s.head(
            s.g(s.a(x)).view(len(x), -1, 4, 8, 8).transpose(1, 2).reshape(len(x), -1, 8, 8)
        ),
        a=conv_bn(3, 8),
        g=conv_bn(8, 16, groups=4),
        head=Head(16),
    ),
}


def test_a_size_that_hides_in_one_batch_is_found():
    model, inputs = networks.stir(WRITTEN["a view that eats the batch"]), as_batch(image(4))
    small = remove(model, coupling := analyse(model, inputs), some(coupling, 0))
    assert (
        isinstance(small, torch.fx.GraphModule)
        and small.eval()(image(7)).shape == model.eval()(image(7)).shape
    )


def test_sizes_that_cannot_be_rewritten_are_not_cut_silently():
    model, inputs = networks.stir(WRITTEN["silent"]), as_batch(image(4))
    coupling = analyse(model, inputs)
    with pytest.raises(
        SurgeryError, match=r"the batch is fixed.*sizes written into it.*x\.shape.*keep="
    ):
        remove(model, coupling, some(coupling, 0))


# --- errors
# --------------------------------------------------------------------------------------------------


def test_removals_that_make_no_sense():
    model, x = make("residual")
    inputs = as_batch(x)
    coupling = analyse(model, inputs)
    for removed, message in [
        ({"b": [0]}, "no group 'b'.*a.0, b.0"),
        ({"b.0": range(6)}, "all its 6"),
        ({"b.0": [6]}, "0 to 5, got 6"),
        ({"b.0": [-1]}, "got -1"),
    ]:
        with pytest.raises(InputError, match=message):
            remove(model, coupling, {k: torch.tensor(list(v)) for k, v in removed.items()})
    small = remove(model, coupling, {})
    assert same(state(small)["tensors"], state(model)["tensors"]) and small is not model


def test_sizes_of_modules_say_what_the_weights_say():
    model, x = make("depthwise")
    coupling = analyse(model, as_batch(x))
    small = remove(model, coupling, {"a.0": torch.tensor([0, 5])})
    depthwise = small.d[0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert (small.d[1].num_features, small.c[0].in_channels, small.a[0].out_channels) == (6, 6, 6)
    model, x = make("depthwise transposed")
    coupling = analyse(model, as_batch(x))
    transposed = remove(model, coupling, {coupling.groups[0].name: torch.tensor([0, 5])}).d
    assert (transposed.in_channels, transposed.out_channels, transposed.groups) == (4, 8, 4)


def test_pruning_twice():
    model, x = make("bottlenecks")
    inputs = as_batch(x)
    for seed in range(2):
        coupling = analyse(model, inputs)
        removed = some(coupling, seed, 0.3)
        small = remove(model, coupling, removed)
        assert equivalent(model, small, coupling, removed)
        model = small


@functools.cache
def _coupling() -> Coupling:
    return analyse(make("dense")[0], as_batch(make("dense")[1]))


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
    coupling = analyse(model, as_batch(image()))
    assert coupling.rest == 4 * 4 * 64 and coupling.macs() == count_macs(model, image())
    small = remove(model, coupling, {"a.0": torch.arange(3)})
    assert coupling.macs({"a.0": 5}) == count_macs(small, image())


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
    coupling = analyse(model, as_batch(x))
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
    coupling = analyse(model, inputs)
    removed = some(coupling, 0)
    small = remove(model, coupling, removed)
    assert same(before, state(model)) and small.alias is small.block
    assert {g.name: g.channels for g in coupling.groups} == {"a.0": 8, "block.0.0": 6}
    assert equivalent(model, small, coupling, removed)


# --- capturing for any batch
# --------------------------------------------------------------------------------------------------


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
    ("forward", "shapes"),
    [
        (lambda x: x if len(x) < 4 else x * 2, [(16, 8)]),
        (lambda x: x[3:] - x[:1], [(16, 8)]),
        (lambda x: torch.cat([x[i : i + 1] * i for i in range(len(x))]), [(5, 8)]),
        (lambda x: x.view(4, -1), [(16, 8)]),
        (lambda x, t: x + t if len(x) == len(t) else x * 2, [(4, 8), (1, 8)]),
        (lambda x, mask: x * mask, [(8, 3, 4, 4), (1, 1, 4, 4)]),
        (lambda x, mask: x * mask, [(8, 3, 4, 4), (8, 1, 4, 4)]),
    ],
)
def test_a_graph_does_what_the_network_does_with_the_whole_example(forward, shapes):
    """Also where two samples of it would take another path."""
    inputs = [torch.randn(s) for s in shapes]
    found = capture(
        Net(lambda _, *given: forward(*given)), Batch(tuple(inputs), {}, None), dynamic_batch=True
    )
    torch.testing.assert_close(found(*inputs), forward(*inputs))


def test_two_samples_are_traced_of_a_large_example():
    seen = []
    found = capture(
        Net(lambda _, x: (seen.append(x.shape[0]), torch.relu(x))[1]),
        Batch((torch.randn(64, 8),), {}, None),
        dynamic_batch=True,
    )
    assert found(torch.randn(64, 8)).shape == (64, 8)
    assert [s for s in seen if isinstance(s, int)] == [2] and len(
        seen
    ) > 1  # when it ran; when it was traced, the size was a symbol


def test_an_example_that_does_not_run_is_named_whatever_its_batch():
    with pytest.raises(InputError, match=r"does not run on the example input \(inputs: \(16, 3\)"):
        capture(nn.Linear(4, 2), Batch((torch.randn(16, 3),), {}, None), dynamic_batch=True)
