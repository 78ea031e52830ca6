"""Budgets in milliseconds: the model of what layers cost, and the loop that corrects it by
measuring.
"""

import json
from itertools import product

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import analyze
from mirabelle.measurement.latency import Latency
from mirabelle.pruning import kernel_blocks, latency, prune
from mirabelle.pruning.allocation import worth
from mirabelle.pruning.api import plan, settings_of
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make

SLOW = pytest.mark.slow
KNOWN: dict[str, bytes] = {}  # what one test measured of kernels and networks, for the next


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    monkeypatch.setenv("MIRABELLE_CACHE", str(tmp_path))
    monkeypatch.setattr(latency, "SECONDS", 0.2)
    monkeypatch.setattr(kernel_blocks, "SECONDS", 1.0)  # blocks are told apart by small differences
    monkeypatch.setattr(latency, "UNEVEN", 2)
    monkeypatch.setattr(latency, "ROUNDS", 2)
    if request.function is test_the_block_of_this_machines_kernels:
        yield tmp_path
        return
    (tmp_path / "latency").mkdir()
    # who looks at what is kept begins without networks
    anew = request.function is test_every_layer_is_found_in_the_runtimes_own_profile
    for name, content in KNOWN.items():
        if not anew or name.startswith("block-"):
            (tmp_path / "latency" / name).write_bytes(content)
    yield tmp_path
    kept = (tmp_path / "latency").glob("block-*" if anew else "*.json")
    KNOWN.update({f.name: f.read_bytes() for f in kept})


def chain():
    torch.manual_seed(0)
    return Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.a(x))))),
        a=conv_bn(3, 16),
        b=conv_bn(16, 24),
        head=Head(24),
    )


def test_fit_finds_the_coefficients_and_none_below_zero():
    features = np.array([[1, 1, 1], [1, 0.5, 0.75], [1, 0.25, 0.5], [1, 0.09, 0.3]])
    np.testing.assert_allclose(
        latency._fit(features, features @ [0.1, 2.0, 0.5]), [0.1, 2.0, 0.5], atol=1e-9
    )
    found = latency._fit(features, features @ [-0.5, 2.0, 0.0])
    assert (found >= 0).all() and found[1] > 1


def test_shares_by_hand():
    coupling = analyze(chain(), as_batch(image()))
    shares = latency._features(coupling, {"a.0": 4, "b.0": 12}, 1, (1.0, 1.0))[:, 1:]
    # a: outputs 4/16, inputs whole; b: 4/16 of its inputs and 12/24 of its outputs; the head reads
    # 12/24.
    np.testing.assert_allclose(
        shares, [[1 / 4, (1 / 4 + 1) / 2], [1 / 8, (1 / 4 + 1 / 2) / 2], [1 / 2, (1 / 2 + 1) / 2]]
    )
    model = latency.LatencyModel(
        np.array([[0, 8.0, 0], [1, 8.0, 0], [0, 0, 4.0]]),
        np.array([0.5, 0.0]),
        coupling,
        1,
        (1.0, 1.0),
    )
    assert model({"a.0": 4, "b.0": 12}) == pytest.approx(2 + 2 + 3 + 0.5) and model(
        {}
    ) == pytest.approx(8 + 9 + 4 + 0.5)


def test_shares_are_of_whole_blocks():
    """In blocks of 8: 16 channels are two and 4 are one, 24 are three and 12 are two; the three
    channels of the image are one, whatever happens.
    """
    coupling = analyze(chain(), as_batch(image()))
    shares = latency._features(coupling, {"a.0": 4, "b.0": 12}, 8, (1.0, 1.0))[:, 1:]
    np.testing.assert_allclose(
        shares, [[1 / 2, 3 / 4], [1 / 3, (1 / 2 + 2 / 3) / 2], [2 / 3, (2 / 3 + 1) / 2]]
    )
    np.testing.assert_array_equal(
        *(latency._features(coupling, kept, 8, (1.0, 1.0)) for kept in ({"a.0": 9, "b.0": 17}, {}))
    )
    # Where a started block takes half of what is missing as it is written, 4 are 6 and 12 are 14;
    # where it is summed over, nothing or half of it.
    shares = latency._features(coupling, {"a.0": 4, "b.0": 12}, 8, (0.5, 0.0))
    np.testing.assert_allclose(shares[:, 1], [6 / 16, 4 / 16 * 14 / 24, 12 / 24])
    shares = latency._features(coupling, {"a.0": 4, "b.0": 12}, 8, (0.0, 0.5))
    np.testing.assert_allclose(shares[:, 1], [4 / 16, 6 / 16 * 12 / 24, 14 / 24])


@pytest.mark.parametrize("parts", list(product(latency.PARTS, latency.PARTS)))
def test_what_a_part_of_a_block_takes_is_found_in_the_times_of_layers(parts):
    coupling = analyze(chain(), as_batch(image()))
    true = latency.LatencyModel(
        np.array([[0.1, 2.0, 0.5], [0.2, 8.0, 0.0], [0.0, 0.0, 4.0]]),
        np.array([0.5, 0.2]),
        coupling,
        8,
        parts,
    )
    widths = latency._cuts(coupling, 4)
    assert widths[0] == {"a.0": 16, "b.0": 24} and all(
        w % 4 == 0 for kept in widths for w in kept.values()
    )
    times = np.array(
        [(latency._features(coupling, w, 8, parts) * true.layers).sum(1) for w in widths]
    )
    rest = np.array([true(w) for w in widths]) - times.sum(1)
    found = latency._model(coupling, 8, latency.PARTS, widths, np.column_stack([times, rest]))
    assert found.parts == parts and found.align == (8 if min(parts) > 0.5 else 4)
    assert [found(w) for w in widths] == pytest.approx([true(w) for w in widths])


@pytest.mark.parametrize("block", kernel_blocks.BLOCKS)
def test_the_block_is_the_widest_that_costs_as_a_whole(block):
    times = {
        w: 0.05 + 0.01 * -(-w // block) * block
        for b in kernel_blocks.BLOCKS[:-1]
        for w in kernel_blocks._probed(b)
    }
    assert kernel_blocks.widest_block(times) == block


@SLOW
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_block_of_this_machines_kernels(runtime, own_cache):
    pytest.importorskip(runtime)
    block = kernel_blocks.kernel_block(runtime)
    assert block in kernel_blocks.BLOCKS
    (file,) = (own_cache / "latency").iterdir()
    file.write_text(json.dumps({"block": 4 if block != 4 else 8}))
    assert kernel_blocks.kernel_block(runtime) == (4 if block != 4 else 8), "measured once"
    file.write_text("broken")
    assert kernel_blocks.kernel_block(runtime) in kernel_blocks.BLOCKS


def test_what_is_fused_belongs_to_the_layer_before_it():
    h = onnx.helper
    nodes = [
        h.make_node("Conv", ["x", "w"], ["c"], "conv"),
        h.make_node("Relu", ["c"], ["r"], "relu"),
        h.make_node("MaxPool", ["r"], ["p"], "pool"),
        h.make_node("Gemm", ["p", "v"], ["g"], "gemm"),
        h.make_node("Relu", ["g"], ["left"], "left"),
        h.make_node("Tanh", ["g"], ["right"], "right"),
    ]
    owner, count = latency._owners(h.make_graph(nodes, "g", [], []))
    assert count == 2 and owner == {"conv": 0, "c": 0, "relu": 0, "r": 0, "gemm": 1, "g": 1}


@SLOW
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_layer_is_found_in_the_runtimes_own_profile(runtime, own_cache):
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.head(s.b(F.relu6(s.a(x)))),
        a=conv_bn(3, 32),
        b=conv_bn(32, 48),
        head=Head(48),
    ).eval()
    coupling = analyze(model, as_batch(image(size=32)))
    found = latency.latency_model(model, coupling, runtime)
    assert (found.layers.sum(1) > 0).all(), "a layer costs nothing"
    assert found.layers.sum() > 0.5 * found({}), "most of the time is no layer's"
    assert found({}) > found({"a.0": 16, "b.0": 16}) > 0
    (file,) = (f for f in (own_cache / "latency").iterdir() if not f.name.startswith("block"))
    assert latency.latency_model(model, coupling, runtime)({}) == found({}), "measured once"
    file.write_text(json.dumps({"layers": "broken"}))
    assert latency.latency_model(model, coupling, runtime)({}) > 0


def test_the_budget_is_corrected_until_what_is_measured_fits(monkeypatch):
    """A machine on which time falls with the square root of what the model predicts."""
    model, x = make("plain", torch.float32)
    coupling = analyze(model, as_batch(x))
    asked = []

    def cut(share):
        asked.append(share)
        return model, {"share": torch.tensor(share)}

    def measured(files, inputs, seconds):
        return {"whole": Latency.of([1.0]), "small": Latency.of([asked[-1] ** 0.5])}

    monkeypatch.setattr(latency, "time_in_turn", measured)
    _, removed = latency.until_measured(model, coupling, 0.5, cut, "onnxruntime")
    assert (
        float(removed["share"]) ** 0.5 == pytest.approx(0.5, rel=latency.TOLERANCE)
        and 1 < len(asked) <= latency.TRIES
    )


@SLOW
def test_a_network_cut_to_its_latency():
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.head(s.c(torch.relu(s.b(torch.relu(s.a(x)))))),
        a=conv_bn(3, 64),
        b=conv_bn(64, 64),
        c=conv_bn(64, 64),
        head=Head(64),
    ).eval()
    x = image(1, size=32)
    small, coupling, removed = plan(
        model, x, settings_of(latency=0.5, criterion="l1", allocation="uniform", repair=None)
    )[:3]
    kept = {g.name: g.channels - len(removed[g.name]) for g in coupling.groups}
    align = latency.latency_model(model, coupling).align
    assert (
        small(x).shape == (1, 3)
        and small.b[0].out_channels == kept["b.0"] < 64
        and all(k % align == 0 for k in kept.values())
    )


def test_channels_are_worth_their_share_of_a_block_also_where_less_than_one_can_go():
    network = Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.a(x))))),
        a=conv_bn(3, 32),
        b=conv_bn(32, 32),
        head=Head(32),
    )
    coupling = analyze(network, as_batch(image()))
    costly = latency.LatencyModel(
        np.full((len(coupling.costs), 3), [0.0, 8.0, 0.0]), np.zeros(2), coupling, 16, (1.0, 1.0)
    )
    scores = {g.name: torch.ones(g.channels) for g in coupling.groups}
    for align in (
        8,
        16,
        # the last block of 16 takes half of 8 ms from its layer, and half of 8 from the layer that
        # reads it
    ):
        found = worth(coupling, scores, costly, align)
        assert all(s.tolist() == [2.0] * 32 for s in found.values()) and len(found) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latency": 0.5, "macs": 0.5}, "exactly one budget"),
        ({"latency": 1.5}, "latency is 1.5; expected a number above 0 and at most 1"),
        ({"latency": 0.5, "runtime": "onnxrun"}, "did you mean 'onnxruntime'"),
        # Only what was measured tells that a budget of time is out of reach.
        pytest.param(
            {"latency": 1e-6}, "latency=1e-06 cannot be reached.*or lower least", marks=SLOW
        ),
        pytest.param(
            {"latency": 1e-6, "align": 64},
            "latency=1e-06 cannot be reached.*or lower align or least",
            marks=SLOW,
        ),
    ],
)
def test_wrong_budgets(options, words):
    with pytest.raises(InputError, match=words):
        prune(chain(), image(), criterion="l1", **options)


@SLOW
def test_products_without_weights_have_a_cost_too():
    from wide_networks import WIDE

    model, x = WIDE["attention: fused"]()
    coupling = analyze(model.eval(), as_batch(x))
    found = latency.latency_model(model.eval(), coupling)
    assert (
        len(found.layers) == len(coupling.costs) == 8
        and (found.layers.sum(1) > 0).all()
        and found({}) > 0
    )
