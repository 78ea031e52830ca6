"""Placement by measured time: chains of integer layers, and which of them stay in float."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.measurement.latency import Latency
from mirabelle.measurement.layers import BETWEEN, LayerRow
from mirabelle.quantization import quantization, quantize, rebuild
from mirabelle.quantization.search import timing
from mirabelle.quantization.search.timing import chains
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.placement import place
from tests.quantization.repairs.networks import as_batches
from tests.quantized_networks import Network, batches, build

OPTIONS = {"target": "x86-vnni", "placement": "fastest"}
# Squeeze and excite: a hands integers to the two layers of the gate, whose sigmoid and product are
# floats; b reads the product.
BEFORE = {"a": 1.0, "e1": 0.1, "e2": 0.1, "b": 1.0, "fc": 0.2}
AFTER = {"a": 0.5, "e1": 0.3, "e2": 0.3, "b": 1.5, "fc": 0.1}


def found(name: str) -> list[tuple[tuple[str, ...], int]]:
    graph = captured(build(name), as_batches(batches(name, 1))[0]).graph
    return [(c.weights, c.elements) for c in chains(graph, place(graph))]


def test_a_residual_network_is_one_chain():
    assert found("residual") == [
        (("c0.weight", "c1.weight", "c2.weight", "fc.weight"), 3 * 16 * 16 + 5)
    ]


def test_chains_end_at_floats():
    # The image is converted; a's result to floats for the product; the gate's for the sigmoid. b
    # reads the product: 14 x 14. Its result of 12 x 12 goes on as integers.
    assert found("squeeze_excite") == [
        (("a.weight", "e1.weight", "e2.weight"), 3 * 16 * 16 + 8 * 14 * 14 + 8),
        (("b.weight", "fc.weight"), 8 * 14 * 14 + 5),
    ]


def test_samples_in_another_dimension():
    """As in torch's own attention, whose tokens come first: each sample has 4 tokens of 8, 16 and 5
    numbers.
    """
    network = Network(
        lambda n, x: n.fc(F.gelu(n.a(x.transpose(0, 1)))).transpose(0, 1),
        a=nn.Linear(8, 16),
        fc=nn.Linear(16, 5),
    ).eval()
    graph = captured(network, Batch((torch.randn(3, 4, 8),), {}, None)).graph
    assert [(c.weights, c.elements) for c in chains(graph, place(graph))] == [
        (("a.weight",), 4 * (8 + 16)),
        (("fc.weight",), 4 * (16 + 5)),
    ]


def faked(monkeypatch, milliseconds):
    """Files are the set of their layers in float, None for the float network; a call takes what
    `milliseconds` says of it.
    """

    def file_of(network, example, folder, runtime):
        described = quantization(network)
        return (
            None
            if described is None
            else frozenset(w.removesuffix(".weight") for w in described.keep)
        )

    rows = [LayerRow(n, BEFORE[n], AFTER[n], True, ("Conv",)) for n in BEFORE] + [
        LayerRow(BETWEEN, 0.0, 0.1, False, ())
    ]
    monkeypatch.setattr(timing, "file_of", file_of)
    monkeypatch.setattr(timing, "compare_layers", lambda *a, **k: rows)
    monkeypatch.setattr(
        timing,
        "time_in_turn",
        lambda files, example, seconds: {
            n: Latency.of([milliseconds(f)] * 5) for n, f in files.items()
        },
    )


def test_what_loses_stays_in_float(monkeypatch):
    faked(
        monkeypatch,
        lambda kept: (
            2.4 if kept is None else sum(BEFORE[n] if n in kept else AFTER[n] for n in BEFORE)
        ),
    )
    data = batches(count=2)
    q = quantize(build("squeeze_excite"), data, **OPTIONS)
    described = quantization(q)
    assert described.timing.layers == ("e1.weight", "e2.weight", "b.weight") == described.keep
    assert described.timing.milliseconds == pytest.approx(
        {"float": 2.4, "all_quantized": 2.7, "placed": 1.8}
    )
    again = rebuild(build("squeeze_excite"), described.to_dict())
    again.load_state_dict(q.state_dict())
    assert (again(data[0]) == q(data[0])).all() and quantization(again) == described


def test_whole_chains_stay_in_float_where_conversions_decide(monkeypatch):
    # Single layers in float cost conversions on both sides; the chain of b and fc does not.
    faked(monkeypatch, lambda kept: 2.4 if kept is None else 1.6 if kept == {"b", "fc"} else 3.0)
    assert quantization(
        quantize(build("squeeze_excite"), batches(count=1), **OPTIONS)
    ).timing.layers == ("b.weight", "fc.weight")


def test_where_all_is_faster_nothing_stays_in_float(monkeypatch):
    faked(monkeypatch, lambda kept: 2.4 if kept is None else 1.0 + len(kept))
    described = quantization(quantize(build("squeeze_excite"), batches(count=1), **OPTIONS))
    assert described.keep == described.timing.layers == ()


def test_where_nothing_is_faster_that_is_said(monkeypatch):
    faked(monkeypatch, lambda kept: 1.0 if kept is None else 1.25)
    with pytest.raises(
        InputError,
        match="none is faster than float on onnxruntime: the best takes 1.25 of its time",
    ):
        quantize(build("squeeze_excite"), batches(count=1), **OPTIONS)


@pytest.mark.slow
def test_real_files_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    x = batches(count=1)[0]
    network = build("mean")
    times = timing.milliseconds(
        {"float": network, "int8": quantize(network, [x])}, as_batches([x])[0], "onnxruntime"
    )
    assert set(times) == {"float", "int8"} and all(t > 0 for t in times.values())
    file = mb.export(network, tmp_path, inputs=x[:1]).path
    times = timing.milliseconds({"int8": quantize(file, [x])}, as_batches([x])[0], "onnxruntime")
    assert times["int8"] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"placement": "fastes"}, "did you mean 'fastest'"),
        ({"placement": "fastest", "bits": 4}, "take 8 bits; got bits=4"),
        (
            {"placement": "fastest", "runtime": "tensort"},
            "runtime is 'tensort'; did you mean 'tensorrt'",
        ),
        (
            {"placement": "fastest", "runtime": "mnn"},
            "'mnn' does not run quantized networks; choose one of onnxruntime",
        ),
    ],
)
def test_unsound_requests(options, message):
    with pytest.raises(InputError, match=message):
        quantize(build("mean"), batches(count=1), **options)
