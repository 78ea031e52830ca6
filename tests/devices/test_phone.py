"""Timing on a phone: the output of each runtime's benchmark program as it is known, and whole
sessions against an `adb` that plays a phone.
"""

import json
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.cli import main
from mirabelle.devices import adb
from mirabelle.runtimes import RUNTIMES, Artifact, TensorSpec
from mirabelle.runtimes.artifact import Session

SESSIONS = Path(__file__).parent / "data" / "adb"
# What the sessions in `data/adb` say: mean, runs, median, smallest, largest; milliseconds.
SAID = {
    "litert": (12.9873, 76, 12.962, 12.861, 13.42),
    "onnxruntime": (14.24086, 50, 14.187, 14.0113, 15.902),
    "executorch": (12.625, 4, 12.75, 12.0, 13.5),
    "ncnn": (13.95, 50, None, 13.61, 14.9),
    "mnn": (15.337, 50, None, 15.104, 16.02),
    "openvino": (16.01, 50, 15.98, 15.71, 17.3),
}

# Plays a phone from files in PHONE: `devices`, `getprop`, what each program says, and, one line
# each, what it was asked.
FAKE = """#!{python}
import json, os, pathlib, shlex, sys
phone = pathlib.Path(os.environ["PHONE"])
words = sys.argv[1:]
with (phone / "asked").open("a") as f:
    f.write(json.dumps(words) + chr(10))
if words == ["devices"]:
    sys.exit(print((phone / "devices").read_text()))
assert words[:2] == ["-s", "R58M123"], words
command, *rest = words[2:]
if command == "push":
    kept = phone / "pushed" / rest[1].strip("/")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pathlib.Path(rest[0]).read_bytes())
    if (phone / "full").exists():
        sys.exit("adb: error: failed to copy: No space left on device")
elif command == "shell" and rest[0] == "getprop":
    print((phone / "getprop").read_text())
elif command == "shell" and rest[0].startswith("cd "):
    place, program = shlex.split(rest[0])[1], shlex.split(rest[0])[4]
    pushed = phone / "pushed"
    assert (pushed / program.strip("/")).is_file() and any((pushed / place.strip("/")).iterdir())
    print((phone / "said").read_text())
elif command == "logcat" and "-d" in rest:
    print((phone / "log").read_text())
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A folder that plays a phone, and an `adb` on the PATH that reads it."""
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "devices").write_text("List of devices attached\nR58M123\tdevice\n\n")
    (folder / "getprop").write_text(
        "[ro.board.platform]: [kona]\n[ro.build.version.release]: [14]\n[ro.product.cpu.abi]: "
        "[arm64-v8a]\n"
        "[ro.product.model]: [Pixel 7]\n[ro.soc.model]: [Tensor G2]\n"
    )
    (folder / "log").write_text("")
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    return folder


def binary(path: Path, machine: int = 183) -> Path:
    """The head of a program for a processor: 183 is 64-bit Arm."""
    path.write_bytes(b"\x7fELF" + bytes(14) + struct.pack("<H", machine) + bytes(40))
    return path


def asked(phone: Path) -> list[list[str]]:
    """What `adb` was asked to do with the phone."""
    words = [json.loads(line) for line in (phone / "asked").read_text().splitlines()]
    return [w[2:] for w in words if w[0] == "-s"]


def file_for(runtime: str, folder: Path, name: str = "model") -> Artifact:
    """A file that nobody opens; ncnn's shape is read from it."""
    path = folder / f"{name}{RUNTIMES[runtime].suffix}"
    text = "7767517\n1 1\nInput in 0 1 input 0=224 1=112 2=3\n" if runtime == "ncnn" else "file"
    path.write_text(text)
    if runtime in ("ncnn", "openvino"):
        path.with_suffix(".bin").write_bytes(b"weights")
    return Artifact(path, runtime)


@pytest.mark.parametrize("runtime", SAID)
def test_each_program_is_read(runtime):
    text = (SESSIONS / f"{runtime}.txt").read_text()
    program = adb.PROGRAMS[runtime]
    if program.log:
        text += (SESSIONS / f"{runtime}.log").read_text()
    found = program.read(text, 50)
    assert (
        found == pytest.approx(SAID[runtime])
        if None not in SAID[runtime]
        else tuple(found) == SAID[runtime]
    )
    assert found.typical == pytest.approx(SAID[runtime][2] or SAID[runtime][0])
    assert program.read("Segmentation fault", 50) is None


def test_every_runtime_for_phones_has_a_program():
    assert {
        "litert",
        "executorch",
        "ncnn",
        "onnxruntime",
        "onnxruntime-mobile",
        "openvino",
    } <= adb.PROGRAMS.keys()


def test_older_words_of_the_same_programs():
    same = (
        "count=50 curr=1200(all same)\nInference timings in us: Init: 1, First inference: "
        "1200, Warmup (avg): 1200, Inference (avg): 1200"
    )
    assert adb.PROGRAMS["litert"].read(same, 50) == (1.2, 50, None, None, None)
    warm_up_only = (
        "count=50 first=3 curr=2 min=1 max=3 avg=2 std=1\nERROR: Node number 3 failed to invoke."
    )
    assert adb.PROGRAMS["litert"].read(warm_up_only, 50) is None
    older = "Average inference time cost: 62.2935 ms\nP50 Latency is 0.0603562 s"
    assert adb.PROGRAMS["onnxruntime"].read(older, 100)[:3] == pytest.approx(
        (62.2935, 100, 60.3562)
    )
    assert adb.PROGRAMS["executorch"].read(
        "Model executed successfully 10 time(s) in 20.5 ms.", 10
    ) == (2.05, 10, None, None, None)


def test_a_session(phone, tmp_path):
    (phone / "said").write_text((SESSIONS / "litert.txt").read_text())
    files = {"new": file_for("litert", tmp_path, "new"), "old": file_for("litert", tmp_path, "old")}
    timings, found = adb.run(
        files, binary(tmp_path / "android_aarch64_benchmark_model"), threads=2, runs=50, rounds=3
    )
    assert str(found) == "Pixel 7 (Tensor G2), Android 14, arm64-v8a"
    assert {k: len(v) for k, v in timings.items()} == {"new": 3, "old": 3} and timings["new"][
        0
    ].typical == 12.962
    words = asked(phone)
    runs = [w[1] for w in words if w[0] == "shell" and w[1].startswith("cd ")]
    assert ["new.tflite" in r for r in runs] == [True, False] * 3, "in turn"
    assert (
        "--num_threads=2" in runs[0]
        and "--num_runs=50" in runs[0]
        and runs[0].endswith("; echo exit status $?")
    )
    folder = runs[0].split()[1].rpartition("/")[0]
    assert folder.startswith("/data/local/tmp/mirabelle-") and words[-1] == [
        "shell",
        f"rm -rf {folder}",
    ]
    assert [w[1] for w in words if w[0] == "push"].count(str(files["new"].path)) == 1, "pushed once"


def test_executorch_is_read_from_the_log(phone, tmp_path):
    (phone / "said").write_text((SESSIONS / "executorch.txt").read_text())
    (phone / "log").write_text((SESSIONS / "executorch.log").read_text())
    timings, _ = adb.run(
        {"net": file_for("executorch", tmp_path)},
        binary(tmp_path / "executor_runner"),
        runs=4,
        rounds=1,
    )
    assert timings["net"][0] == (12.625, 4, 12.75, 12.0, 13.5)
    words = asked(phone)
    assert words.index(["logcat", "-c"]) < words.index(["logcat", "-d", "-s", "ExecuTorch:I"])


def test_ncnn_gets_both_files_and_the_shape(phone, tmp_path):
    (phone / "said").write_text((SESSIONS / "ncnn.txt").read_text())
    artifact = file_for("ncnn", tmp_path)
    vars(artifact)["session"] = Session(
        [TensorSpec("input", (1, 3, 112, 224), "float32")], [], list
    )  # only its shape is asked for
    adb.run({"net": artifact}, binary(tmp_path / "benchncnn"), rounds=1)
    words = asked(phone)
    assert {Path(w[1]).suffix for w in words if w[0] == "push"} >= {".param", ".bin"}
    assert any("shape=[224,112,3]" in w[1] for w in words if w[0] == "shell")


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("List of devices attached\n\n", "sees no phone.*none connected.*docs/phone.md"),
        ("List of devices attached\nR58M123\tunauthorized\n", "does not trust this computer"),
        ("List of devices attached\nR58M123\toffline\n", "offline"),
        ("List of devices attached\nA1\tdevice\nB2\tdevice\n", "2 phones.*A1, B2.*--serial"),
    ],
)
def test_phones_that_are_not_ready(phone, tmp_path, devices, words):
    (phone / "devices").write_text(devices)
    with pytest.raises(InputError, match=words):
        adb.run({"net": file_for("litert", tmp_path)}, binary(tmp_path / "b"))


def test_programs_that_do_not_fit(phone, tmp_path):
    net = {"net": file_for("litert", tmp_path)}
    with pytest.raises(InputError, match="is not there.*docs/phone.md"):
        adb.run(net, tmp_path / "none")
    (tmp_path / "script").write_text("#!/bin/sh")
    with pytest.raises(InputError, match="no ELF file"):
        adb.run(net, tmp_path / "script")
    with pytest.raises(InputError, match="is for x86_64, the phone is arm64-v8a"):
        adb.run(net, binary(tmp_path / "x86", 62))
    with pytest.raises(InputError, match="files of one runtime; these are for litert and openvino"):
        adb.run({**net, "other": file_for("openvino", tmp_path)}, binary(tmp_path / "b"))
    with pytest.raises(InputError, match="runs is 0"):
        adb.run(net, binary(tmp_path / "b"), runs=0)


def test_what_fails_on_the_phone_is_said_and_cleaned_up(phone, tmp_path):
    (phone / "said").write_text(
        "CANNOT LINK EXECUTABLE: library libc++_shared.so not found\nexit status 1\n"
    )
    with pytest.raises(
        InputError,
        match=r"benchmark_model gave no timing on the phone \(exit status 1\): CANNOT LINK",
    ):
        adb.run({"net": file_for("litert", tmp_path)}, binary(tmp_path / "b"))
    assert asked(phone)[-1][1].startswith("rm -rf /data/local/tmp/mirabelle-")
    (phone / "full").touch()
    with pytest.raises(InputError, match="No space left on device"):
        adb.run({"net": file_for("litert", tmp_path)}, binary(tmp_path / "b"))
    assert asked(phone)[-1][1].startswith("rm -rf /data/local/tmp/mirabelle-")


def test_without_adb(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="adb is not installed.*apt-get install adb"):
        adb.run({"net": file_for("litert", tmp_path)}, binary(tmp_path / "b"))


def test_measure_and_the_command_line(phone, tmp_path, capsys):
    from tests.runtimes.test_runtimes import conv_file

    (phone / "said").write_text((SESSIONS / "onnxruntime.txt").read_text())
    net, program = (
        conv_file(tmp_path / "net.onnx", batch=1),
        binary(tmp_path / "onnxruntime_perf_test"),
    )
    found = mb.measure(
        net, device="adb", binary=program, baseline=net, inputs=np.zeros((1, 3, 8, 8), "float32")
    )
    assert (
        found.latency.p50_ms == pytest.approx(14.187)
        and found.speedup.value == 1
        and found.latency.runs == 5
    )
    assert "Pixel 7 (Tensor G2)" in str(found) and found.memory is None and found.score is None
    assert (
        json.loads(json.dumps(found.to_dict()))["device"]
        == "Pixel 7 (Tensor G2), Android 14, arm64-v8a"
    )
    assert main(["measure", str(net), "--device", "adb", "--benchmark", str(program)]) == 0
    assert "p50 14.187 ms" in capsys.readouterr().out
    assert main(["measure", str(net), "--device", "adb"]) == 1
    assert "needs binary=" in capsys.readouterr().err
    with pytest.raises(InputError, match="did you mean 'adb'"):
        mb.measure(net, device="abd")
    import torch

    with pytest.raises(InputError, match="measures exported files; export the network first"):
        mb.measure(torch.nn.Linear(2, 2), inputs=torch.zeros(1, 2), device="adb", binary=program)
