"""Commands as people call them: a file of a network and a folder of pictures, in a fresh folder."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import mirabelle as mb
from mirabelle.base import progress
from mirabelle.base.png import URI
from mirabelle.cli import main
from mirabelle.cli.common import input_of
from tests.sources.pictures import Colors, folder
from tests.tiny import model

pytest.importorskip("PIL")
PICTURES = ["--size", "24", "--mean", "0.1", "--std", "0.5", "--resize", "stretch"]
ROOT = Path(__file__).parents[2]


class Net(torch.nn.Module):
    """Colors, on values of which 0.1 was subtracted and that were divided by 0.5."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(3, 3, 1, bias=False)
            self.colors = Colors((2, 1, 0))
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x):
        return self.colors(self.conv(x).relu())


def network() -> torch.nn.Module:
    return Net().eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    where = tmp_path_factory.mktemp("made")
    folder(where / "photos", 12)
    folder(where / "flat", 12, classes=False)
    mb.export(network(), where, runtime="onnxruntime", inputs=torch.randn(1, 3, 24, 24), name="net")
    return where


@pytest.fixture
def fresh(made, tmp_path, monkeypatch):
    for name in ("photos", "flat", "net.onnx"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(*line: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mirabelle", *line]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_an_onnx_file_and_photographs_become_a_verified_int8_file(fresh):
    pytest.importorskip("openvino")
    line = ["quantize", "net.onnx", "--data", "photos/", *PICTURES]
    done = called(*line, "--runtime", "openvino", "--folder", "out", "--json", folder=fresh)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    file = fresh / "out" / "openvino" / "model.xml"
    assert found["files"] == [str(file)] and file.is_file()
    assert [s["name"] for s in found["stages"]] == ["original", "quantize"]
    accuracy = [s["runtimes"]["openvino"]["accuracy"]["value"] for s in found["stages"]]
    assert accuracy == [1.0, 1.0]  # the classes are the colors, in the order of their names
    assert found["verification"] and found["verification"][0]["samples"] > 0
    assert "photos/: 36 samples, 3 classes" in done.stderr and "mean 0.1 0.1 0.1" in done.stderr
    assert "4/4 measure" in done.stderr  # progress, though nobody looks
    # the report that is left can be made again from its recipe
    recipe = yaml.safe_load((fresh / "out" / "recipe.yaml").read_text())
    assert (
        recipe["data"]
        == {"folder": "photos/", "size": [24], "mean": [0.1], "std": [0.5], "resize": "stretch"}
        or recipe["data"]["size"] == 24
    )
    seen = json.loads((fresh / "out" / "report.json").read_text())["data"]
    assert URI.fullmatch(seen["sheet"]["picture"]) and seen["check"]["right"] == 1.0
    assert set(seen["sheet"]["captions"]) == {"red", "green", "blue"}
    page = (fresh / "out" / "report.html").read_text()
    assert seen["sheet"]["picture"] in page and "is right about 100 % of them" in page


def test_without_labels_the_agreement_is_measured(fresh, capsys):
    line = ["quantize", "net.onnx", "--data", "flat", *PICTURES, "--folder", "out"]
    assert main([*line, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    accuracy = found["stages"][-1]["runtimes"]["onnxruntime"]["accuracy"]
    assert accuracy["value"] == 1.0 and accuracy["metric"].endswith("agreement")
    assert (
        main(
            [
                "compare",
                "net.onnx",
                "out/onnxruntime/model.onnx",
                "--data",
                "flat",
                *PICTURES[2:],
                "--runs",
                "3",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "agree on 100.00 %" in said and "speed-up" in said
    assert main(["compare", "out", "out/report.json"]) == 0
    assert "agreement, 95 %" in capsys.readouterr().out
    assert main(["compare", "out", "out/report.json", "out", "--page", "both.html"]) == 0
    assert capsys.readouterr().out.endswith("both.html\n")
    page = (fresh / "both.html").read_text()
    assert "channels, out/report.json" in page and "Limits" not in page
    assert main(["compare", "out", "out/report.json", "out"]) == 1
    assert "name it with --page" in capsys.readouterr().err
    assert main(["compare", "net.onnx", "net.onnx", "--page", "none.html"]) == 1
    assert "--page: that is for runs, and net.onnx is none" in capsys.readouterr().err
    assert main(["compare", "out", "net.onnx"]) == 1
    assert "two of a kind" in capsys.readouterr().err


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(fresh, capsys):
    line = ["quantize", "net.onnx", "--data", "photos", *PICTURES, "--folder", "out"]
    assert main([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1. quantize, about" in said and "in all; everything goes into out" in said
    assert not (fresh / "out").exists()
    assert main([*line, "--dry-run", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["seconds"]) == {
        "quantize",
        "export",
        "verify",
        "measure",
    }


def test_init_writes_a_recipe_that_runs(fresh, capsys):
    line = ["init", "net.onnx", "--data", "photos", *PICTURES]
    assert main(line) == 0
    text = (fresh / "recipe.yaml").read_text()
    assert "# photos: 36 samples, 3 classes" in text and "  - verify" in text
    assert main(["run", "recipe.yaml", "--check"]) == 0
    assert main(line) == 1
    assert "--force" in capsys.readouterr().err


def test_wrong_preprocessing_is_said(fresh, capsys):
    line = ["quantize", "net.onnx", "--data", "photos", *PICTURES, "--color", "bgr"]
    assert main([*line, "--dry-run"]) == 0
    assert "the preprocessing may be wrong" in (said := capsys.readouterr().out)
    assert "try --color rgb" in said
    assert main([*line[:-2], "--dry-run"]) == 0
    assert "may be wrong" not in capsys.readouterr().out


def test_prune_and_distill_take_the_options_of_their_verbs(fresh, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    options = ["--data", "tests.tiny:data", "--runtime", "ort", "--json"]
    line = ["prune", "tests.tiny:model", *options, "--macs", "0.6", "--align", "4"]
    assert main([*line, "--folder", "p", "--dry-run"]) == 0
    assert list(json.loads(capsys.readouterr().out)["seconds"]) == ["prune", "export", "measure"]
    assert main(["prune", "tests.tiny:model", *options, "--dry-run"]) == 1
    assert "exactly one budget" in capsys.readouterr().err
    line = [
        "distill",
        "tests.tiny:model",
        *options,
        "--teacher",
        "tests.tiny:teacher",
        "--lr",
        "0.01",
    ]
    assert main([*line, "--folder", "d", "--dry-run"]) == 0
    assert list(json.loads(capsys.readouterr().out)["seconds"])[:2] == ["distill", "export"]


def test_a_saved_network_is_where_a_command_starts(fresh, capsys, monkeypatch):
    """Pruned here, and again by the command: both folders belong to the unpruned network."""
    monkeypatch.syspath_prepend(str(ROOT))
    x, how = torch.randn(2, 1, 8, 8), {"criterion": "l2", "align": 1}
    once = mb.prune(model(), x, macs=0.7, **how)
    mb.save(once, "once")
    options = ["--data", "tests.tiny:data", "--criterion", "l2", "--repair", "none", "--align", "1"]
    line = ["prune", "tests.tiny:model", *options, "--macs", "0.7", "--json"]
    assert main([*line, "--load", "once", "--folder", "twice"]) == 0, capsys.readouterr().err
    stages = json.loads(capsys.readouterr().out)["stages"]
    twice = mb.load("twice/model", model())
    kept = [mb.measure(m, inputs=x, runs=1).macs for m in (model(), once, twice)]
    assert [s["macs"] for s in stages] == kept[1:] and kept[0] > kept[1] > kept[2]
    assert yaml.safe_load(Path("twice/recipe.yaml").read_text())["load"] == "once"
    mb.save(mb.quantize(once, [x]), "integers")
    for load, message in (("integers", "holds a quantized network"), ("no", "expected a folder")):
        assert main([*line, "--load", load, "--folder", "no_run"]) == 1
        assert message in capsys.readouterr().err


def test_an_onnx_file_goes_on_from_where_it_was_saved(fresh, capsys):
    net = mb.prune("net.onnx", torch.randn(1, 3, 24, 24), macs=0.8, criterion="l2", align=1)
    mb.save(net, "saved")
    line = ["quantize", "net.onnx", "--data", "photos", *PICTURES, "--folder", "out", "--json"]
    assert main([*line, "--load", "saved"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    whole = mb.measure("net.onnx", inputs=torch.randn(1, 3, 24, 24), runs=1).macs
    assert found["stages"][0]["macs"] < whole


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1,3,24,24", (None, (1, 3, 24, 24), "float32", ())),
        ("ids:1x8:int32", ("ids", (1, 8), "int32", ())),
        ("sr:int64=16000", ("sr", (), "int64", (16000,))),
        ("sr=0.5", ("sr", (), "float32", (0.5,))),
        ("scales:float32=1,2", ("scales", (2,), "float32", (1.0, 2.0))),
        ("x:1,3=0.5", ("x", (1, 3), "float32", (0.5,))),
    ],
)
def test_inputs_are_read(text, spec):
    assert tuple(input_of(text)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sr:int64=1.5", "no number of int64"),
        ("sr:in64=1", "did you mean 'int64'"),
        ("=3", "is no input"),
        ("a:b:1:int64", "is no input"),
    ],
)
def test_wrong_inputs_are_said(text, message):
    with pytest.raises(ValueError, match=message):
        input_of(text)


def test_a_scalar_that_cannot_be_random_is_given(fresh, capsys):
    """A sample rate that decides what a file computes, as in silero-vad."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    size = numpy_helper.from_array(np.array([-1, 4]), "size")
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["long"]),
        helper.make_node("Unsqueeze", ["sr", "zero"], ["row"]),
        helper.make_node("Concat", ["row", "one"], ["wide"], axis=0),
        helper.make_node("Reshape", ["long", "size"], ["y"]),
    ]
    parts = [numpy_helper.from_array(np.array([v]), n) for n, v in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(
        [nodes[1], nodes[2], nodes[0], nodes[3]], "g", [x, rate], [y], [size, *parts]
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), "vad.onnx")
    line = ["measure", "vad.onnx", "--runs", "2", "--json", "--input", "x:1,4"]
    assert main([*line, "sr:int64=2"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == [[1, 4], []]
    assert main(["explain", "vad.onnx"]) == 1
    assert "sr:int64=?" in capsys.readouterr().err
    assert main([*line, "sr:3:int64=1,2"]) == 1
    assert "2 values for 3 elements of sr" in capsys.readouterr().err


JSON = {
    "measure": ["measure", "net.onnx", "--input", "1,3,24,24", "--runs", "1"],
    "compare": ["compare", "net.onnx", "net.onnx", "--runs", "1", "--input", "1,3,24,24"],
    "explain": ["explain", "net.onnx"],
    "export": ["export", "net.onnx", "--folder", "e"],
    "init": ["init", "net.onnx", "--data", "photos", *PICTURES],
    "doctor": ["doctor"],
    "run --check": ["run", "recipe.yaml", "--check"],
    "--dry-run": ["run", "recipe.yaml", "--dry-run"],
}


@pytest.mark.parametrize("command", JSON)
def test_json_has_the_keys_that_are_documented(fresh, capsys, command):
    """And nothing else stands on standard output."""
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    (row,) = [r for r in page.splitlines() if r.startswith(f"| `{command}`")]
    documented = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    steps = {"version": 1, "model": "net.onnx", "data": {"folder": "photos", "size": 24}}
    Path("recipe.yaml").write_text(yaml.safe_dump({**steps, "steps": ["quantize", "export"]}))
    if command == "init":
        Path("recipe.yaml").unlink()
    assert main([*JSON[command], "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= documented if "and more" in row else set(found) == documented


def test_commands_that_fail_print_nothing_for_programs(fresh, capsys):
    for line, code in ((["measure", "none.onnx"], 1), (["measure"], 2)):
        assert main([*line, "--json"]) == code
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_doctor_says_what_is_installed_and_what_is_missing(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runtimes"]["onnxruntime"]["runs"] and found["kernels"]["target"]
    missing = [r for r in found["runtimes"].values() if r["version"] is None]
    assert all("pip install" in r["why"] for r in missing)
    assert main(["doctor"]) == 0
    assert "runtimes:" in capsys.readouterr().out


def test_measure_takes_pictures_names_and_types(fresh, capsys):
    assert (
        main(["measure", "net.onnx", "--data", "photos", *PICTURES, "--runs", "2", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["score"]["value"] == 1.0
    line = ["measure", "net.onnx", "--runs", "2", "--json", "--input"]
    assert main([*line, "input:1,3,24,24"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == [[1, 3, 24, 24]]
    assert main([*line, "image:1,3,24,24"]) == 1
    assert "the input is called 'input'" in capsys.readouterr().err
    assert main([*line, "1,3,24,24:float64"]) == 1
    assert "expected (?, 3, 24, 24) float32" in capsys.readouterr().err
    line = ["measure", "net.onnx", "--data", "photos", *PICTURES, "--runs", "2", "--json"]
    assert main([*line, "--metric", "tests.cli.test_commands:always"]) == 0
    assert json.loads(capsys.readouterr().out)["score"]["value"] == 0.5


def always(output, target):
    return np.full(len(target), 0.5)


def test_python_m_mirabelle(tmp_path):
    done = called("--version", folder=tmp_path)
    assert done.returncode == 0 and mb.__version__ in done.stdout


@pytest.mark.filterwarnings("default")
def test_damaged_pictures_are_a_line(fresh, capsys, monkeypatch):
    said = Console(file=io.StringIO(), width=10**4)
    monkeypatch.setattr(progress, "console", said)
    folder(fresh / "own", 8)
    (fresh / "own" / "red" / "0.png").write_bytes(b"no picture")
    line = ["measure", "net.onnx", "--data", "own", *PICTURES, "--as-part", "test", "--runs", "2"]
    assert main(line) == 0
    assert "n = 23" in capsys.readouterr().out
    lines = said.file.getvalue().splitlines()  # pyright: ignore
    (warned,) = [text for text in lines if "left out" in text]
    assert warned.startswith("warning: left out, 1 so far: own/red/0.png is no whole picture")
