"""Cuts of every network, judged by masking equivalence; and what cuts refuse."""

import dataclasses

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from examples.fashion import ResNet
from mirabelle.base.data import as_batch, example_inputs
from mirabelle.base.errors import InputError, SurgeryError
from mirabelle.channels.groups import Slot, analyze
from mirabelle.channels.rewrite import graph_form
from mirabelle.channels.surgery import indices, remove
from mirabelle.graph.proof import difference
from tests import random_networks
from tests.channels.equivalence import cut_and_check, equivalent, same, some, state
from tests.modules import Head, Net, conv_bn, image
from tests.networks import NETWORKS, make
from tests.random_networks import plans
from tests.wide_networks import GRAPH, STATISTICS, WIDE


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
    coupling = analyze(model, example_inputs(x))
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
    coupling = analyze(WIDE["lstm"]()[0], example_inputs(torch.randn(2, 5, 5)))
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
    coupling = analyze(model, example_inputs((torch.randn(2, 4, 5), torch.randn(1, 2, 8))))
    assert [g.name for g in coupling.groups] == ["embed"] and not coupling.unknown
    assert {f.reason for f in coupling.frozen if f.parameter.startswith("gru")} == {
        "gru in gru: meets values that cannot be removed"
    }
    small = remove(model, coupling, some(coupling, 1))
    assert small.gru.input_size == 3 and small.gru.hidden_size == 8


@settings(deadline=None, derandomize=True, max_examples=25)
@given(plan=plans, seed=st.integers(0, 99), share=st.floats(0, 0.9))
def test_equivalence_of_random_networks(plan, seed, share):
    model = random_networks.build(plan).double()
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
    coupling = analyze(model, inputs)
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
    coupling = analyze(model, inputs)
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
    coupling = analyze(model, inputs)
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
    coupling = analyze(model, inputs)
    small = remove(model, coupling, some(coupling, 0))
    assert small.head.fc.in_features == 4


def test_difference_sees_every_output():
    x = torch.randn(3, 4)
    assert difference((x, {"a": x}), (x, {"a": x + 1e-8})) is None
    assert "differs" in difference((x, {"a": x}), (x, {"a": x * 1.1}))
    assert "shapes" in difference((x, x), (x, x[:2]))


def test_removals_that_make_no_sense():
    model, x = make("residual")
    inputs = as_batch(x)
    coupling = analyze(model, inputs)
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
    coupling = analyze(model, as_batch(x))
    small = remove(model, coupling, {"a.0": torch.tensor([0, 5])})
    depthwise = small.d[0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert (small.d[1].num_features, small.c[0].in_channels, small.a[0].out_channels) == (6, 6, 6)
    model, x = make("depthwise transposed")
    coupling = analyze(model, as_batch(x))
    transposed = remove(model, coupling, {coupling.groups[0].name: torch.tensor([0, 5])}).d
    assert (transposed.in_channels, transposed.out_channels, transposed.groups) == (4, 8, 4)


def test_pruning_twice():
    model, x = make("bottlenecks")
    inputs = as_batch(x)
    for seed in range(2):
        coupling = analyze(model, inputs)
        removed = some(coupling, seed, 0.3)
        small = remove(model, coupling, removed)
        assert equivalent(model, small, coupling, removed)
        model = small
