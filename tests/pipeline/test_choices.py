"""Which file a run recommends, when it stops, and what it says on the way."""

import json
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mirabelle.base.errors import InputError, LimitError
from mirabelle.base.progress import console
from mirabelle.cli import main
from mirabelle.pipeline import measuring, run, steps
from mirabelle.pipeline.grids import grids_of
from mirabelle.pipeline.looks import Looks, hold_back, hopeless, said
from mirabelle.pipeline.recipe import parse
from mirabelle.pipeline.recommend import advice, recommended
from mirabelle.quantization.simulation.description import quantization
from mirabelle.report.schema import Stage
from mirabelle.report.units import change
from mirabelle.sources.callables import Loaders
from mirabelle.store import load
from tests import tiny
from tests.pipeline.runs import finished, recipe


def _recipe(*steps, **more):
    return parse(
        {
            "version": 1,
            "model": "tests.tiny:model",
            "data": "tests.tiny:data",
            "steps": list(steps),
            **more,
        }
    )


def _stages(times, drops=None):
    """By stage and runtime: milliseconds, and what is lost. The first stage is the original."""
    found = []
    for i, (name, row) in enumerate(times.items()):
        runtimes = {}
        for r, ms in row.items():
            first = next(iter(times.values()))[r]
            runtimes[r] = {
                "bytes": 1000 // (i + 1),
                "latency": {"p50_ms": ms},
                "speedup": {"value": first / ms},
                "look": drops
                and {"drop": drops[name][r], "on": "held-out training data", "n": 512},
            }
        stage = {"name": name, "label": name, "macs": 100 - 40 * i, "runtimes": runtimes}
        found.append(Stage.of(stage))
    return found


QUICK = {"samples": 16, "threshold": "absmax", "repair": []}
TIMES = {
    "original": {"ort": 1.0, "ncnn": 0.9},
    "pruned": {"ort": 0.5, "ncnn": 0.8},
    "int8": {"ort": 0.6, "ncnn": 0.4},
}


DROPS = {
    "original": {"ort": 0.0, "ncnn": 0.0},
    "pruned": {"ort": 0.004, "ncnn": 0.004},
    "int8": {"ort": 0.01, "ncnn": 0.05},
}


@pytest.mark.parametrize(
    ("limits", "best"),
    [
        ({"accuracy_drop": 0.06}, (2, "ncnn")),  # the fastest of all
        ({"accuracy_drop": 0.02}, (1, "ort")),  # that one loses too much; int8 on ort is slower
        ({"accuracy_drop": 0.001}, (0, "ncnn")),
        ({"accuracy_drop": 0.02, "size_ratio": 2.5}, (2, "ort")),
        ({"accuracy_drop": 0.02, "speedup": 50}, (1, "ort")),  # none can; accuracy counts alone
        ({}, (2, "ncnn")),  # none asked for: no more than the last stage loses
    ],
)
def test_the_best_file_is_the_fastest_that_meets_the_limits(limits, best):
    i, runtime, why = recommended(_stages(TIMES, DROPS), ["ort", "ncnn"], limits)
    assert (i, runtime) == best
    assert "held-out training data (n = 512)" in why


def test_without_data_to_choose_by_it_is_the_last_stages():
    assert recommended(_stages(TIMES), ["ort", "ncnn"], {})[:2] == (2, "ncnn")


def test_integers_that_are_slower_are_said():
    said = advice(_stages(TIMES), ["ort", "ncnn"], "int8", (1, "ort"))
    assert len(said) == 2
    assert said[0].startswith("integers are slower than float on ort: 0.600 ms against 0.500")
    assert "not of the last stage: pruned on ort" in said[1]
    assert advice(_stages(TIMES), ["ncnn"], "int8", (2, "ncnn")) == []


def test_gains_are_called_gains():
    assert change(-0.0063, True) == "0.63 points gained"
    assert change(0.0063, True, "top1") == "0.63 points of top1 lost"
    assert change(-0.00001, True, "top1") == "nothing of top1 lost"
    assert change(-0.012, False, "MeanAP") == "0.012 of MeanAP gained"


FACT = {
    "metric": "top1",
    "on": "held-out training data",
    "n": 500,
    "share": True,
    "value": 0.8,
    "drop": 0.1,
    "interval": [0.07, 0.13],
}


def test_what_is_left_is_a_sentence():
    assert said(FACT) == "top1 80.00 %, 10.00 points lost, on held-out training data (n = 500)"
    assert said(None) == ""


@pytest.mark.parametrize(
    ("limits", "later", "fact", "stops"),
    [
        ({"accuracy_drop": 0.05}, [], FACT, "at least 0.07 .* limit is 0.05, and no later"),
        ({"accuracy_drop": 0.05}, ["fit"], FACT, None),  # that may still raise it
        ({"accuracy_drop": 0.08}, [], FACT, None),  # within the interval
        ({"accuracy_drop": 0.05, "on_fail": "warn"}, [], FACT, None),
        ({"accuracy_drop": 0.05}, [], {**FACT, "metric": "agreement"}, None),
        ({"accuracy_drop": 0.05}, [], None, None),
    ],
)
def test_a_limit_is_hopeless_where_nothing_can_raise_the_accuracy(limits, later, fact, stops):
    found = _recipe("quantize", *later, "export", limits=limits)
    why = hopeless(found, [s for s in found.steps if s.name in later], fact, None)
    if stops is None:
        assert why is None
    else:
        import re

        assert why is not None and re.search(stops, why)


def test_macs_are_hopeless_behind_the_last_cut():
    found = _recipe({"prune": {"macs": 0.5}}, "fit", limits={"macs": 0.5})
    assert hopeless(found, [], None, 0.49) is None
    assert "0.6 of the MACs" in str(hopeless(found, list(found.steps[1:]), None, 0.6))
    assert hopeless(found, list(found.steps), None, 0.6) is None


def test_each_runtime_gets_grids_of_its_own():
    steps = ("quantize", {"export": {"runtimes": ["onnxruntime", "openvino", "ncnn"]}})
    found = grids_of(_recipe(*steps).steps)
    assert [g.runtimes for g in found] == [("onnxruntime",), ("openvino",), ("ncnn",)]
    assert [g.options["target"] for g in found][1:] == ["openvino", "symmetric"]
    named = grids_of(_recipe({"quantize": {"target": "arm"}}, *steps[1:]).steps)
    assert [(g.runtimes, g.options) for g in named] == [(("onnxruntime", "openvino", "ncnn"), {})]
    trained = grids_of(_recipe("quantize", {"fit": {"lr": 0.1}}, *steps[1:]).steps)
    assert len(trained) == 1
    placed = grids_of(_recipe({"quantize": {"placement": "fastest"}}, *steps[1:]).steps)
    assert [g.options["runtime"] for g in placed] == ["onnxruntime", "openvino", "ncnn"]


def test_data_that_choose_are_held_back_and_test_data_never_looked_at():
    torch.manual_seed(0)
    x, y = torch.randn(100, 4), torch.randint(3, (100,))
    train = DataLoader(list(zip(x, y)), batch_size=10, shuffle=True)  # type: ignore[arg-type]

    class Test:
        def __iter__(self):
            raise AssertionError("the test data were read")

    loaders = Loaders(train, train, Test())
    held = hold_back(_recipe("fit"), loaders)
    assert held.validation is not None
    kept = torch.cat([b[0] for b in held.train])
    back = torch.cat([b.args[0] for b in held.validation])  # type: ignore[union-attr]
    assert len(kept) == 90 and len(back) == 10
    assert not (kept[:, None] == back[None]).all(-1).any()
    model = nn.Linear(4, 3)
    looks = Looks(_recipe("fit"), held, model, True)
    fact = looks.fact(lambda b: model(*b.args).detach())
    assert fact is not None and fact["drop"] == 0.0 and fact["n"] == 10
    assert fact["on"] == "held-out training data"


def test_without_labels_it_is_agreement_with_the_original():
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    few = [torch.randn(8, 4), torch.randn(4, 4)]
    looks = Looks(_recipe("fit"), Loaders(few, few, few, few), model, False)
    fact = looks.fact(lambda b: other(*b.args).detach())
    same = torch.cat([model(b).argmax(1) == other(b).argmax(1) for b in few]).float().mean()
    assert fact is not None and fact["metric"] == "agreement"
    assert fact["value"] == pytest.approx(float(same)) and fact["on"] == "the validation data"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "LATENCY_SECONDS", 0.2)


def test_a_runtime_that_fails_leaves_the_files_of_the_others(quick, tmp_path, monkeypatch, capsys):
    """And each of the others has grids of its own, and the report says what each step has left."""
    real = steps.export

    def export(model, folder, *, runtime, inputs):
        if runtime == "openvino":
            raise RuntimeError("no converter for this")
        return real(model, folder, runtime=runtime, inputs=inputs)

    monkeypatch.setattr(steps, "export", export)
    path = recipe(
        tmp_path, [{"quantize": QUICK}, {"export": {"runtimes": ["openvino", "onnxruntime"]}}]
    )
    out = tmp_path / "out"
    with console.capture() as captured:
        assert main(["run", str(path), "--folder", str(out)]) == 3
    missed, said = (" ".join(t.split()) for t in (capsys.readouterr().err, captured.get()))
    assert "openvino has no file: RuntimeError: no converter for this" in missed
    assert "openvino: no file: no converter" in said
    assert "quantize: " in said and "on held-out training data (n = 5)" in said
    assert (out / "onnxruntime" / "model.onnx").is_file() and not (out / "openvino").exists()
    report = json.loads((out / "report.json").read_text())
    assert list(report["failed"]) == ["openvino"] and report["looks"][0]["step"] == "quantize"
    assert list(report["stages"][1]["runtimes"]) == ["onnxruntime"]
    grids = report["quantization"]["grids"]
    assert [g["runtimes"] for g in grids] == [["openvino"], ["onnxruntime"]]
    other = load(finished(out)["quantize"] / "grids" / "1", tiny.model())
    described = quantization(other)
    assert described is not None and described.target == grids[1]["target"] != "openvino"
    assert os.path.isfile(out / report["result"]["file"])


def test_a_run_stops_where_its_limit_is_hopeless(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(
        steps, "STEPS", {**steps.STEPS, "prune": lambda *a: steps.Outcome(model=_ruined())}
    )
    changes = {"data": "tests.pipeline.test_choices:labeled", "limits": {"accuracy_drop": 0.05}}
    path = recipe(
        tmp_path,
        [{"prune": {"macs": 0.5}}, "quantize", "export"],
        **changes,
        model="tests.pipeline.test_choices:exact",
    )
    out = tmp_path / "out"
    with (
        console.capture() as captured,
        pytest.raises(LimitError, match="no later step trains.*accuracy_drop is 0.6"),
    ):
        run(path, folder=out)
    assert set(finished(out)) == {"prune", "measure"}
    assert "stopped after step 1" in captured.get()
    assert "stopped before its last step" in (out / "report.html").read_text()


class Exact(nn.Module):
    """Brightness says the class."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(1, 3)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[-10.0], [0.0], [10.0]]))
            self.last.bias.copy_(torch.tensor([5.0, 0.0, -15.0]))

    def forward(self, x):
        return self.last(x.mean((1, 2, 3))[:, None])


def exact():
    return Exact()


def _ruined():
    model = Exact()
    with torch.no_grad():
        model.last.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    return model


def labeled():
    many = DataLoader(tiny.Noisy(300, 0.0), batch_size=50)
    return many, many, many


def test_check_converts_to_every_runtime(tmp_path, monkeypatch, capsys):
    from mirabelle.pipeline import dry

    real = dry.export

    def export(model, folder, *, runtime, inputs):
        if runtime == "openvino" and quantization(model) is not None:
            raise InputError("no kernel for this")
        return real(model, folder, runtime=runtime, inputs=inputs)

    path = recipe(tmp_path, ["quantize", {"export": {"runtimes": ["onnxruntime", "openvino"]}}])
    monkeypatch.setattr(dry, "export", export)
    assert main(["run", str(path), "--check"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 runtimes cannot have files" in said
    assert "openvino: the quantized network: InputError: no kernel for this" in said
    assert not (tmp_path / "runs").exists()
