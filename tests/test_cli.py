"""The commands on a tiny network; errors are one line and exit status 1."""

import json

import pytest

import mirabelle as mb
from mirabelle.cli import main
from tests.pipeline.test_recipe import written
from tests.tiny import data, model


def test_help(capsys):
    for line in (
        ["--help"],
        *([c, "--help"] for c in ("run", "explain", "measure", "export", "verify", "report")),
    ):
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert stop.value.code == 0 and "usage" in capsys.readouterr().out


def test_check(tmp_path, capsys):
    assert main(["run", str(written(tmp_path)), "--check"]) == 0
    assert "is sound" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == [
        "recipe.yaml"
    ]
    assert main(["run", str(written(tmp_path, model="tests.tiny:modle")), "--check"]) == 1
    assert "did you mean 'model'" in capsys.readouterr().err


def test_explain_and_measure(capsys):
    assert main(["explain", "tests.tiny:model", "--input", "1,1,8,8", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert main(["measure", "tests.tiny:model", "--input", "1x1x8x8", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_export_and_verify(tmp_path, capsys):
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
    capsys.readouterr()
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
        "--json",
    ]
    assert main(line) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


@pytest.mark.parametrize(
    "line",
    [
        ["run", "none.yaml"],
        ["explain", "tests.tiny:modle", "--input", "1,1,8,8"],
        ["explain", "tests.tiny:model", "--input", "1,3,8,8"],
        ["measure", "tests.tiny:model"],
        ["measure", "none.onnx", "--input", "1,1,8,8"],
        ["export", "tests.tiny:model", "--input", "1,1,8,8", "--runtime", "onnxrunti"],
        ["export", "tests.tiny:model"],
        ["export", "tests.tiny:model", "--load", "nowhere", "--input", "1,1,8,8"],
        ["report", "none.json"],
    ],
)
def test_errors(line, capsys):
    assert main(line) == 1
    seen = capsys.readouterr()
    assert seen.err.startswith("error: ") and "Traceback" not in seen.err
