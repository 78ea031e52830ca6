"""The commands on a tiny network; errors are one line and exit status 1."""

import io
import json
import subprocess
import sys

import onnx
import pytest
import torch
from rich.table import Table
from torch import nn

import mirabelle as mb
from mirabelle.base import progress
from mirabelle.base.errors import RecipeError
from mirabelle.base.terminal import drawn
from mirabelle.cli import COMMANDS, main
from mirabelle.cli.table import summary
from mirabelle.report.schema import Report
from tests.pipeline.runs import ENVIRONMENT, HERE
from tests.pipeline.test_recipe import written
from tests.tiny import data, model


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Usage: mirabelle" in said and COMMANDS[name][2].split()[-1] in said
    assert all(f"--{o}" in said for o in ("quiet", "verbose", "debug", "json"))
    assert all(len(line) <= 80 for line in said.splitlines())


def test_help_shows_defaults_and_choices(capsys):
    assert main(["measure", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "[choices: top1, top5] [default: top1]" in said and "[default: 100]" in said
    assert main(["export", "--help"]) == 0
    assert "onnxruntime, onnxruntime-mobile, openvino" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("line", [[], ["--help"]])
def test_help_takes_no_time_and_neither_torch_nor_pydantic(line):
    code = (
        "import sys, time; from mirabelle.cli import main; status = main(sys.argv[1:]); "
        "print(time.process_time(), sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)), "
        "file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    seconds, modules = done.stderr.split(maxsplit=1)
    assert modules.strip() == "[]" and float(seconds) < 0.4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["exprt", "x"], "there is no command 'exprt'; did you mean 'export'"),
        (["measure", "x", "--thread", "3"], "--thread. Did you mean --threads?"),
        (["measure", "x", "--threads", "two"], "--threads"),
        (["--versoin"], "there is no option"),
        (["run"], "RECIPE"),
        (["explain", "tests.tiny:model", "--input", "1,a"], "'1,a' is no shape"),
        (["explain", "tests.tiny:model", "--input", "x:1,8:int33"], "did you mean 'int32'"),
        (["export", "tests.tiny:model", "--runtime", "openvin"], "did you mean 'openvino'"),
        (["quantize", "a.onnx", "--data", "p", "--size", "big"], "got 'big'; expected pixels"),
        (["prune", "a.onnx", "--data", "p", "--macs", "2"], "--macs: got '2'"),
        (["report", "a.json", "b.json"], "b.json"),
        (["export", "tests.tiny:model", "--runtime", "onnxrunti"], "did you mean 'onnxruntime'"),
    ],
)
def test_wrong_command_lines(line, words, capsys):
    assert main(line) == 2
    seen = capsys.readouterr()
    assert words in seen.err and len(seen.err.splitlines()) == 1 and not seen.out


def test_flags_before_the_command_and_tracebacks(capsys):
    assert main(["--json", "run", "none.yaml"]) == 1
    for flag in ("--debug", "--verbose", "-v"):
        with pytest.raises(RecipeError):
            main([flag, "run", "none.yaml"])
        with pytest.raises(RecipeError):
            main(["run", "none.yaml", flag])


def test_version(capsys):
    assert main(["--version"]) == 0 and mb.__version__ in capsys.readouterr().out


def test_schema(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A recipe of Mirabelle"


REPORT = {
    "recipe": {"metric": "top1"},
    "stages": [
        {
            "label": label,
            "macs": 123456789.0,
            "runtimes": {
                runtime: {
                    "bytes": 1234567,
                    "accuracy": {"binary": True, "value": 0.947, "low": 0.9424, "high": 0.9512},
                    "latency": {"p50_ms": 12.3456},
                    "speedup": {"value": 3.14159},
                }
                for runtime in ("onnxruntime", "onnxruntime-tensorrt")
            },
        }
        for label in ("original", "sparsified", "fine-tuned", "quantized")
    ],
    "result": {
        "runtime": "onnxruntime-tensorrt",
        "speedup": 3.14159,
        "size_ratio": 10.25,
        "accuracy_drop": -0.0012,
    },
    "limits": [
        {"name": "speedup", "limit": 3.0, "value": 3.14159, "met": True, "on_fail": "stop"},
        {"name": "macs", "limit": 0.4, "value": None, "met": False, "on_fail": "warn"},
    ],
}


def test_the_table_of_a_run_fits_80_columns_and_names_each_limit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = summary(Report.of(REPORT))
    assert all(len(line) <= 80 for line in said.splitlines()), said
    assert "94.70 ±0.46" in said and "12.346" in said
    assert "limit speedup 3: met (3.142)" in said
    assert "limit macs 0.4: missed (not measured)" in said


def test_check(tmp_path, capsys):
    assert main(["run", str(written(tmp_path)), "--check"]) == 0
    assert "is sound" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == [
        "recipe.yaml"
    ]
    assert main(["run", str(written(tmp_path)), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0] == "prune"
    assert main(["run", str(written(tmp_path, model="tests.tiny:modle")), "--check"]) == 1
    assert "did you mean 'model'" in capsys.readouterr().err


def test_explain_and_measure(capsys):
    assert main(["explain", "tests.tiny:model", "--input", "1,1,8,8", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert main(["measure", "tests.tiny:model", "--input", "1x1x8x8", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_export_and_verify(tmp_path, capsys, monkeypatch):
    q = mb.quantize(model().eval(), data()[1], samples=32)
    mb.save(q, tmp_path / "q")
    line = [
        "export",
        "tests.tiny:model",
        "--load",
        str(tmp_path / "q"),
        "--input",
        "1,1,8,8",
        "--folder",
        str(tmp_path / "out"),
    ]
    assert main(line) == 0
    file = next((tmp_path / "out").rglob("*.onnx"))
    assert f"{file}: " in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(file)
    line = [
        "verify",
        "tests.tiny:model",
        "--load",
        str(tmp_path / "q"),
        "--file",
        str(file),
        "--data",
        "tests.tiny:data",
        "--samples",
        "20",
    ]
    assert main([*line, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "against the integer reference" in said
    assert all(len(line) <= 80 for line in said.splitlines()), said


@pytest.mark.parametrize(
    "line",
    [
        ["run", "none.yaml"],
        ["explain", "tests.tiny:modle", "--input", "1,1,8,8"],
        ["explain", "tests.tiny:model", "--input", "1,3,8,8"],
        ["measure", "tests.tiny:model"],
        ["measure", "none.onnx", "--input", "1,1,8,8"],
        ["export", "tests.tiny:model"],
        ["export", "tests.tiny:model", "--load", "nowhere", "--input", "1,1,8,8"],
        ["report", "none.json"],
    ],
)
def test_errors(line, capsys):
    assert main(line) == 1
    seen = capsys.readouterr()
    assert seen.err.startswith("error: ") and "Traceback" not in seen.err


def quantized_file(folder):
    """An ONNX file, and the folder of its quantized form."""
    source = mb.export(model(), folder / "float", inputs=torch.zeros(1, 1, 8, 8)).path
    mb.save(mb.quantize(source, data()[1], samples=32), folder / "q")
    return source, folder / "q"


def test_an_onnx_file_is_exported_in_its_saved_form(tmp_path, capsys):
    source, saved = quantized_file(tmp_path)
    out = tmp_path / "out"
    assert main(["export", str(source), "--load", str(saved), "--folder", str(out)]) == 0
    kinds = {n.op_type for n in onnx.load(out / "model.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    capsys.readouterr()
    line = ["verify", str(source), "--load", str(saved), "--file", str(out / "model.onnx")]
    assert main([*line, "--data", "tests.tiny:data", "--samples", "20", "--json"]) == 0


def in_a_folder_with_a_trap(folder, *line):
    """The command, called where an `onnxruntime.py` lies that says so when it is executed."""
    (folder / "onnxruntime.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(HERE / "src")}
    call = [sys.executable, "-m", "mirabelle.cli", *line]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)


def test_nothing_in_the_working_folder_is_executed_unless_it_is_named(tmp_path):
    path = mb.export(model(), tmp_path, inputs=torch.zeros(1, 1, 8, 8)).path
    done = in_a_folder_with_a_trap(tmp_path, "measure", path.name)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


def test_modules_of_the_working_folder_can_be_named_and_shadow_nothing(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    line = ["export", "mine:net", "--input", "1,1,8,8", "--folder", "out"]
    done = in_a_folder_with_a_trap(tmp_path, *line)
    assert done.returncode == 0 and (tmp_path / "out/model.onnx").is_file(), done.stderr
    assert not (tmp_path / "executed").exists()


def test_what_no_machine_can_hold_is_refused(capsys):
    assert main(["explain", "tests.tiny:model", "--input", "1,99999999999"]) == 2
    assert "elements" in capsys.readouterr().err


def test_brackets_and_colons_in_names_and_paths_are_shown_as_they_are(tmp_path, capsys):
    folder = tmp_path / "[red]runs[bold] :smile:"
    folder.mkdir()
    assert main(["report", str(folder / "none.json")]) == 1
    assert str(folder) in capsys.readouterr().err
    net = nn.Sequential()
    net.add_module("a[/red]:smile:[bold]b", nn.Conv2d(1, 4, 3))
    net.add_module("last", nn.Conv2d(4, 2, 3))
    assert "a[/red]:smile:[bold]b" in str(mb.explain(net, torch.zeros(1, 1, 8, 8)))
    drawing = drawn(Table("[/x]"), "[/y] :smile:", most=100)
    assert "[/x]" in drawing and "[/y] :smile:" in drawing


def test_what_a_run_says_is_no_markup(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress.console, "file", out)
    monkeypatch.setattr(progress.console, "_force_terminal", True)
    progress.console.print("1/1 prune: [/home/me] :smile:", style="dim")
    assert "[/home/me] :smile:" in out.getvalue()
    with progress.bar("on [/onnx]", 2) as bar:
        bar.note(file="[/x]")
        bar.advance()
