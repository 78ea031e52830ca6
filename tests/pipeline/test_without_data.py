"""Commands without data: pictures are made up, it is said, and there is no figure of accuracy."""

import io
import json

import pytest
import torch
from rich.console import Console

import mirabelle as mb
from examples import shapes
from mirabelle.base.errors import InputError
from mirabelle.cli import main
from mirabelle.pipeline import inputs, run
from mirabelle.pipeline.recipe import parse
from mirabelle.runtimes import load
from mirabelle.sources import synthetic
from mirabelle.verification import sqnr


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SAMPLES", 48)
    monkeypatch.setattr("mirabelle.pipeline.measuring.LATENCY_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)


def left(folder):
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


def test_an_onnx_file_becomes_an_int8_file(tmp_path, capsys, monkeypatch):
    """The oracle is the float network on test pictures, which no step has seen."""
    network, images = shapes.network(), shapes.draw(5, 64)[0]
    mb.export(network, tmp_path, runtime="onnxruntime", inputs=images[:1], name="net")
    told = io.StringIO()
    monkeypatch.setattr(inputs, "console", Console(file=told, width=10**4))
    assert main(["quantize", "net.onnx", "--folder", "out"]) == 0
    assert told.getvalue().startswith("no data were given: 48 synthetic pictures")
    said = capsys.readouterr().out
    assert "accuracy unknown" in said and "note: no data were given" in said
    report, page = left(tmp_path / "out")
    timed = [row["layer"] for row in report["profile"]["onnxruntime"]["layers"]]
    assert {n for n in timed if n[0] != "("} == {c["layer"] for c in report["channels"]}
    figures = [s["runtimes"]["onnxruntime"] for s in report["stages"]]
    assert [f["accuracy"] for f in figures] == [None, None]
    assert all(f["latency"]["p50_ms"] > 0 for f in figures)
    assert report["result"]["accuracy_drop"] is None and "data" not in report["recipe"]
    assert report["verification"][0]["samples"] > 0
    assert "No data were given: 48 synthetic pictures" in page and "Accuracy against" not in page
    assert main(["compare", "out", "out/report.json", "--page", "both.html"]) == 0
    assert "top1" not in capsys.readouterr().out
    file = load(tmp_path / "out" / "onnxruntime" / "model.onnx", "onnxruntime")
    with torch.no_grad():
        assert sqnr(network(images).numpy(), file(images.numpy())) > 25


def test_a_callable_is_pruned(tmp_path, capsys):
    """As the command has it, and its recipe without the export, which takes longest."""
    line = ["prune", "examples.shapes:network", "--macs", "0.5", "--folder", "out"]
    assert main([*line, "--dry-run"]) == 1
    assert "give --size" in capsys.readouterr().err
    known = ["--size", "24", "--mean", "0.5", "--std", "0.5"]
    assert main([*line, *known, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "none"
    named = {"version": 1, "model": "examples.shapes:network", "steps": [{"prune": {"macs": 0.5}}]}
    told = {"size": 24, "mean": 0.5, "std": 0.5}
    found = run(parse({**named, "data": told}, "out.yaml"), folder="out").report
    before, after = found["stages"]
    assert after["macs"] <= 0.5 * before["macs"]
    assert after["runtimes"]["pytorch"]["accuracy"] is None
    report, page = left(tmp_path / "out")
    assert report["recipe"]["data"] == told and "No data were given" in page


def test_black_and_white_are_those_that_are_said():
    """What the steps are given, of the recipe's `data`."""
    named = {"version": 1, "model": "examples.shapes:network", "steps": ["quantize"]}
    told = {"size": 24, "mean": 0.5, "std": 0.25}
    how = inputs.opened(parse({**named, "data": told})).data.how
    assert how is not None and not how.guessed and how.std == (0.25,) * 3
    how = inputs.opened(parse({**named, "data": {"size": 24}})).data.how
    assert how is not None and how.guessed


@pytest.mark.parametrize(
    ("steps", "more", "words"),
    [
        (["distill"], {}, r"no data, which step 1 \(distill\) needs"),
        ([{"quantize": {"accuracy_drop": 0.01}}], {}, r"accuracy_drop of step 1 \(quantize\)"),
        (["quantize"], {"limits": {"accuracy_drop": 0.01}}, r"limits.accuracy_drop needs"),
        (["quantize"], {"data": {"batch": 3}}, "batch is of data that are named"),
    ],
)
def test_what_needs_data_is_said_before_anything_runs(steps, more, words):
    steps = [*steps, {"export": {"runtimes": ["onnxruntime"]}}]
    with pytest.raises(InputError, match=words):
        parse({"version": 1, "model": "examples.shapes:network", "steps": steps, **more})
