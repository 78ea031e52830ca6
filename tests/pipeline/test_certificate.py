"""A certificate proves a folder: one byte that differs, in whatever file, is found and named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from mirabelle import report as reports
from mirabelle.base.errors import CertificateError, InputError
from mirabelle.cli import main
from mirabelle.pipeline.certificate import NAME, SUMS, certify, check
from mirabelle.report.schema import Report
from tests.report.pages import EXAMPLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run leaves, certified; test_pipeline.py certifies a run that took place."""
    place = tmp_path_factory.mktemp("certified") / "run"
    report = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    inputs = {"model": ["m:net", None, "ab" * 32], "data": ["m:data", None, "4 cd"], "seed": 0}
    reports.write(Report.of({**report, "inputs": inputs}), place)
    made = {
        ".mirabelle-run": b"A run's own folder.",
        ".lock": b"",
        "model/model.json": b"{}",
        "model/model.safetensors": bytes(range(200)),
        "onnxruntime/model.onnx": b"onnx" * 9,
        "steps/01-prune-c026d0b7f119/step.json": b'{"key": 1}',
        "work/checkpoint": b"half",
    }
    for name, content in made.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    certify(place)
    return place


def files(folder):
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    return [p for p in found if p.parent.name != "work"]


def test_a_certificate_says_what_was_run_where_and_what_came_of_it(folder):
    found, report = (json.loads((folder / n).read_text()) for n in (NAME, "report.json"))
    assert found["recipe"]["content"] == report["recipe"]
    assert re.fullmatch("[0-9a-f]{64}", found["inputs"]["model"][-1])
    assert found["machine"] == report["machine"] and "torch" in found["versions"]
    score = found["stages"][-1]["runtimes"]["openvino"]["accuracy"]
    assert score["n"] == 10000 and score["low"] < score["value"] < score["high"]
    layers = found["verification"][1]["layers"]
    assert {"layer", "max_off_by", "exact", "sqnr_db", "cause"} == set(layers[0])
    assert max(c["max_off_by"] for c in layers) == 3
    listed = {str(p.relative_to(folder)) for p in files(folder)} - {NAME, SUMS}
    assert set(found["files"]) == listed
    assert {"report.html", "onnxruntime/model.onnx", "model/model.safetensors"} <= listed


def test_an_untouched_folder_passes_and_so_does_sha256sum(folder, capsys):
    assert main(["certify", "--check", str(folder)]) == 0
    said = capsys.readouterr().out
    own = re.search(r"SHA-256 ([0-9a-f]{64})", said)
    assert own and check(folder, own[1]).sha256 == own[1]
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder)
    assert done.returncode == 0


def test_one_byte_of_any_file_is_found_and_named(folder, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    tried = 0
    for path in files(copy):
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert main(["certify", "--check", str(copy)]) == 4, (path, place)
            assert str(path) in capsys.readouterr().err or path.name == NAME
            tried += 1
        path.write_bytes(whole)
    assert tried > 20 and main(["certify", "--check", str(copy)]) == 0


def test_white_space_in_the_certificate_counts_too(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    text = (copy / NAME).read_text()
    (copy / NAME).write_text(text.replace("{\n ", "{\n\t", 1))
    with pytest.raises(CertificateError, match=SUMS):
        check(copy)


def test_a_missing_file_fails_and_a_missing_cache_is_said(folder, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "steps")
    (copy / "notes.txt").write_text("from the buyer")
    assert main(["certify", "--check", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "steps/ is not there" in said and "not in the certificate: notes.txt" in said
    (copy / "onnxruntime" / "model.onnx").unlink()
    with pytest.raises(CertificateError, match=r"model\.onnx"):
        check(copy)


def test_a_forged_certificate_is_known_by_its_own_hash(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    own = check(copy).sha256
    (copy / "model" / "model.json").write_text("[]")
    certify(copy)  # whoever changes a file can certify it again
    assert check(copy).sha256 != own
    with pytest.raises(CertificateError, match=own):
        check(copy, own)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_certificate_never_reads_outside_its_folder(folder, tmp_path, name):
    from mirabelle.base.files import sealed, write_json

    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    content = json.loads((copy / NAME).read_text())
    content.pop("seal")
    content["files"][name] = "0" * 64
    write_json(copy / NAME, sealed(content))
    with pytest.raises(CertificateError, match="lists what no certificate"):
        check(copy)


def test_what_is_no_run_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        certify(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"report\.json is not there"):
        certify(tmp_path)
    with pytest.raises(InputError, match=r"has no certificate\.json; write one"):
        check(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "model" / "link.json").symlink_to(copy / "report.json")
    with pytest.raises(InputError, match="is a link"):
        certify(copy)
