"""Sensitivity of layers, and leaving the fewest unquantized that keep the accuracy."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.measurement.accuracy import predictor
from mirabelle.measurement.judge import Judge
from mirabelle.quantization import quantization, quantize, rebuild
from mirabelle.quantization.repairs import rounding
from mirabelle.quantization.search import timing
from mirabelle.quantization.search.fallback import fewest, sensitivities
from mirabelle.quantization.simulation.graph import captured
from tests.quantization.repairs.networks import as_batches
from tests.quantized_networks import Network, batches, build, conv, head


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.2)


OPTIONS = {"target": "x86-vnni", "threshold": "absmax", "per_channel": False}


def fragile(layers: int = 1) -> nn.Module:
    """Classes depend on small weights beside a large one, in the first `layers` of three layers: a
    step for the whole weight is too coarse for them.
    """
    torch.manual_seed(1)
    network = Network(
        lambda n, x: head(n, F.relu(n.c(F.relu(n.b(F.relu(n.a(x))))))),
        a=conv(3, 8),
        b=conv(8, 8),
        c=conv(8, 8),
        fc=nn.Linear(8, 5),
    ).eval()
    with torch.no_grad():
        for layer in [network.a, network.b, network.c][:layers]:
            layer.weight[7] *= 150
            layer.bias[7] = -2e3  # the channel itself is dead
        network.fc.bias.zero_()
        x = torch.cat(batches(count=4))
        network.fc.bias.sub_(network(x).mean(0))  # no class is the largest everywhere
    return network


def test_sensitivity_by_hand():
    # Two linear layers in a row; the weights of the first are on the grid and its input and output
    # nearly so, those of the second half a step off at the most.
    network = Network(
        lambda n, x: n.b(n.a(x)), a=nn.Linear(2, 2, bias=False), b=nn.Linear(2, 1, bias=False)
    ).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[127.0, 0.0], [0.0, 127.0]]) / 127)
        network.b.weight.copy_(torch.tensor([[127.0, 0.5]]) / 127)
    x = torch.arange(-127.0, 128.0).repeat(2, 1).T / 127
    options = {"target": "x86-vnni", "threshold": "absmax", "symmetric": True}
    q = quantize(network, [x], **options)
    found = sensitivities(q, captured(network, as_batches([x])[0]), as_batches([x]))
    assert list(found) == ["b.weight", "a.weight"] and (
        found["a.weight"] is None or found["a.weight"] > 100
    )
    # 0.5 becomes 0: of 127.5 x the output loses 0.5 x, which is 20 log10(255) dB.
    assert found["b.weight"] == pytest.approx(
        20 * torch.log10(torch.tensor(255.0)).item(), abs=0.05
    )
    with torch.no_grad():
        again = quantize(network, [x], **options)
        assert torch.equal(q(x), again(x)), "everything is at work again"


@pytest.mark.parametrize("needed", range(1, 9))
def test_the_fewest_are_found(needed):
    asked = []

    def holds(found):
        asked.append(len(found))
        return len(found) >= needed

    assert fewest("abcdefgh", holds) == list("abcdefgh"[:needed])
    assert len(asked) <= 6 and len(set(asked)) == len(asked)


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fragile_layers_stay_in_float_and_no_others(layers):
    network, data = fragile(layers), batches(count=4)
    plain = quantize(network, data, **OPTIONS)
    q = quantize(network, data, **OPTIONS, accuracy_drop=0.1, validation=data)
    found = quantization(q).fallback
    assert found.layers == tuple("abc"[:layers]) or set(found.layers) == set("abc"[:layers])
    assert found.all_quantized > 0.1 >= found.drop and found.metric == "agreement" and found.n == 64
    assert found.interval[0] <= found.drop <= found.interval[1]
    assert [s.layer for s in found.sensitivity][:layers] == list(found.layers) and len(
        found.sensitivity
    ) == 4
    assert set(quantization(q).keep) == {f"{n}.weight" for n in found.layers}
    judge = Judge(network, data, "top1")
    drops = [judge.drop(judge.of(predictor(n)))[0] for n in (q, plain)]
    assert drops == [found.drop, found.all_quantized]
    assert set(found.milliseconds) == {"float", "all_quantized", "fallback"} and all(
        v > 0 for v in found.milliseconds.values()
    )
    again = rebuild(network, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(data[0]), q(data[0])) and quantization(again) == quantization(q)


def test_labels_are_used_where_there_are_any(tmp_path):
    network, data = fragile(), batches(count=4)
    with torch.no_grad():
        labeled = [
            (x, (network(x).argmax(1) + (torch.arange(len(x)) % 4 == 0)) % 5) for x in data
        ]  # a quarter is wrong
    q = quantize(network, labeled, **OPTIONS, accuracy_drop=0.1, validation=labeled)
    found = quantization(q).fallback
    assert found.metric == "top1" and found.layers == ("a",) and found.drop <= 0.1
    mb.save(q, tmp_path)
    again = mb.load(tmp_path, fragile())
    assert quantization(again).fallback == found and torch.equal(again(data[0]), q(data[0]))


def test_sixteen_bits_instead_of_float():
    network, data = fragile(), batches(count=4)
    q = quantize(network, data, **OPTIONS, accuracy_drop=0.1, validation=data, fallback=16)
    described = quantization(q)
    assert (
        described.fallback.layers == ("a",)
        and described.fallback.precision == "16"
        and described.fallback.milliseconds is None
    )
    assert described.precision == {"a_weight": 16, "x": 16} and described.keep == ()
    assert (
        q.get_submodule("quantizers.a_weight").bits == 16
        and q.get_submodule("quantizers.b_weight").bits == 8
    )
    again = rebuild(network, described.to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(data[0]), q(data[0]))
    with pytest.raises(InputError, match="a_weight has 16"):
        mb.export(q, "unused", inputs=data[0][:1])


def test_nothing_falls_back_where_nothing_has_to():
    network, data = build("residual"), batches(count=4)
    q = quantize(network, data, accuracy_drop=0.2, validation=data)
    found = quantization(q).fallback
    assert (
        found.layers == ()
        and found.drop == found.all_quantized <= 0.2
        and found.milliseconds is None
        and quantization(q).keep == ()
    )


@pytest.mark.slow
def test_repairs_are_done_again_for_the_layers_that_are_left(monkeypatch):
    network, data = fragile(), batches(count=4)
    limit = {"accuracy_drop": 0.1, "validation": data}
    q = quantize(network, data, **OPTIONS, repair="bias", **limit)
    fallen = [f"{n}.weight" for n in quantization(q).fallback.layers]
    assert "a.weight" in fallen
    assert torch.equal(
        q(data[0]), quantize(network, data, **OPTIONS, repair="bias", keep=fallen)(data[0])
    )
    monkeypatch.setattr(rounding, "STEPS", 5)
    repairs = ["learned-rounding", "bias"]
    whole, q = (quantize(network, data, **OPTIONS, repair=repairs, **more) for more in ({}, limit))
    state, exact = q.state_dict(), network.state_dict()
    for layer in "abc":
        kept = layer in quantization(q).fallback.layers
        assert torch.equal(
            state[f"{layer}.weight"],
            exact[f"{layer}.weight"] if kept else whole.state_dict()[f"{layer}.weight"],
        )


BAD = {
    "no data": ({"accuracy_drop": 0.1}, "needs validation="),
    "iterator": ({"accuracy_drop": 0.1, "validation": iter([])}, "read only once"),
    "limit": (
        {"accuracy_drop": 5, "validation": batches()},
        "accuracy_drop is 5; expected a fraction of at least 0 and below 1",
    ),
    "fallback": (
        {"accuracy_drop": 0.1, "validation": batches(), "fallback": 8},
        "expected 'float' or 16",
    ),
    "metric": (
        {
            "accuracy_drop": 0.1,
            "validation": [(batches()[0], torch.zeros(16).long())],
            "metric": "top2",
        },
        "did you mean 'top",
    ),
    "runtime": (
        {"accuracy_drop": 0.1, "validation": batches(), "runtime": "onnxruntim"},
        "did you mean 'onnxruntime'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unsound_requests(name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        quantize(build("residual"), batches(), **options)


def test_outputs_that_are_no_classes_agree_by_their_values():
    network = Network(lambda n, x: head(n, n.a(x)).sum(1), a=conv(3, 8), fc=nn.Linear(8, 5))
    q = quantize(network, batches(), **OPTIONS, accuracy_drop=0.1, validation=batches())
    found, judge = quantization(q).fallback, Judge(network, batches(), "top1")
    assert found.metric == "agreement" and found.drop == judge.drop(judge.of(predictor(q)))[0]


def test_a_limit_that_nothing_holds():
    network, data = fragile(3), batches(count=4)
    with torch.no_grad():
        network.fc.weight[4] *= 600
        network.fc.bias[4] = -1e6
    with pytest.raises(InputError, match="even with all layers but"):
        quantize(network, data, **{**OPTIONS, "bits": 3}, accuracy_drop=0.0, validation=data)
