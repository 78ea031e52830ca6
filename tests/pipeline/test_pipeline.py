"""Whole runs of a tiny recipe: killed in every step and resumed, damaged, changed, over a limit, on
a full disk, two at once.
"""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mirabelle.base.errors import InputError, LimitError, RecipeError
from mirabelle.base.files import tensors_hash
from mirabelle.cli import main
from mirabelle.pipeline import measuring, run
from mirabelle.quantization.search.rules import RULES
from mirabelle.report.schema import Report, unknown
from mirabelle.store import load
from tests.pipeline.runs import ENVIRONMENT, NAMES, STEPS, command, finished, ran, recipe, results
from tests.tiny import model as tiny_model


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Latencies of a few calls; as many threads as the processes that are killed have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LATENCY_SECONDS", 0.2)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run, in a process of its own as those that are killed."""
    folder = tmp_path_factory.mktemp("whole")
    child = command(recipe(folder), folder / "out")
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    return folder / "out"


def copied(whole: Path, folder: Path) -> Path:
    """A copy of a finished run, hard-linked files excepted."""
    return shutil.copytree(whole, folder / "out")


def test_leaves_everything(whole):
    assert list(finished(whole)) and set(finished(whole)) == set(NAMES)
    assert (whole / "report.html").stat().st_size > 1000
    assert not list((whole / "steps").glob(".*")) and not list((whole / "work").glob("*/*"))
    from tiny import model

    original = model()
    assert isinstance(load(whole / "model", original), torch.nn.Module)
    report = json.loads((whole / "report.json").read_text())
    assert unknown(Report, report) == []
    assert [s["name"] for s in report["stages"]] == ["original", "prune", "distill", "quantize"]
    assert report["stages"][1]["macs"] <= 0.5 * report["stages"][0]["macs"]
    assert len(report["training"][0]["history"]) == 3
    curve = report["training"][0]["curve"]
    assert curve["step"] == list(range(1, 10)) and set(curve["loss"]) == {"kd"}
    seen = json.loads((finished(whole)["measure"] / "changed.json").read_text())
    assert set(seen) == {f"{s}/onnxruntime" for s in ("prune", "distill", "quantize")}
    assert all(c["n"] == 60 and c["changed"] >= len(c["examples"]) for c in seen.values())
    # the first ones of the file that is recommended, as far as it has any
    shown = report.get("changed")
    best = seen[f"{report['result']['stage']}/onnxruntime"]
    assert (shown or {"examples": []})["examples"] == [
        {**e, **{k: str(e[k]) for k in ("before", "after", "label")}} for e in best["examples"]
    ]
    rows = {r["layer"]: r for r in report["profile"]["onnxruntime"]["layers"]}
    layers = {c["layer"] for c in report["channels"]}
    assert layers == {"0", "3", "9"} == {n for n in rows if not n.startswith("(")}
    assert all("advice" in r and r["int8"] for n, r in rows.items() if n in layers)
    macs = [c["macs"] for c in report["channels"]]
    stages = [s["macs"] for s in report["stages"]]
    assert [sum(m[i] for m in macs) for i in (0, 1)] == [stages[0], stages[2]]
    assert report["verification"][0]["tolerance"] == 1
    values = [t for t in report["quantization"]["tensors"] if t["kind"] == "activation"]
    assert all(t["chosen"] and t["rule"] in RULES for t in values)
    for folder, names in report["files"].items():
        assert all((whole / folder / name).is_file() for name in names)
    assert (whole / "onnxruntime" / "model.onnx").read_bytes() == (
        finished(whole)["export"] / "quantize/onnxruntime/model.onnx"
    ).read_bytes()


def test_a_finished_run_is_certified(whole, tmp_path):
    out = copied(whole, tmp_path)
    assert main(["certify", str(out)]) == 0 and main(["certify", "--check", str(out)]) == 0
    found = json.loads((out / "certificate.json").read_text())
    weights = found["inputs"]["model"][-1]
    assert weights == tensors_hash(tiny_model().state_dict()) and len(found["files"]) > 15
    file = out / "onnxruntime" / "model.onnx"
    whole_file = bytearray(file.read_bytes())
    whole_file[len(whole_file) // 2] ^= 1
    file.unlink()  # the copy may share its bytes with the run
    file.write_bytes(whole_file)
    assert main(["certify", "--check", str(out)]) == 4


@pytest.mark.slow
def test_killed_in_every_step_and_resumed(whole, tmp_path):
    out = tmp_path / "out"
    path = recipe(tmp_path)
    slow = {**ENVIRONMENT, "TINY_SLEEP": "0.2"}
    for number, name in enumerate(NAMES, 1):
        pattern = (
            "work/*/checkpoint.safetensors"
            if name == "distill"
            else f"steps/.{number:02d}-{name}.*"
        )
        child = command(
            path, out, "--resume", environment=slow if name == "distill" else ENVIRONMENT
        )
        try:
            begun = time.monotonic()
            while not list(out.glob(pattern)):
                assert child.poll() is None and time.monotonic() - begun < 60, (
                    f"{name} was not caught: {child.communicate()[0]}"
                )
                time.sleep(0.002)
            time.sleep(0.3 if name == "distill" else 0.01)
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate()
        assert list((out / "steps").glob(f".{number:02d}-*")), "killed too late"
        assert set(finished(out)) == set(NAMES[: number - 1])
        assert not (out / "report.json").exists()
    child = command(path, out, "--resume")
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    assert said.count("done before") == 5
    assert results(out) == results(whole)
    assert not list((out / "steps").glob(".*"))


def test_resume_of_a_finished_run_does_nothing_and_gives_the_same(whole, tmp_path):
    out = copied(whole, tmp_path)
    before, report = ran(out), (out / "report.json").read_text()
    again = run(recipe(tmp_path), resume=True, folder=out)
    assert ran(out) == before and (out / "report.json").read_text() == report
    assert again.report == json.loads(report)


def test_damaged_checkpoint_starts_the_step_again(whole, tmp_path):
    out = copied(whole, tmp_path)
    step = finished(out)["distill"]
    shutil.rmtree(step)
    (out / "work" / step.name).mkdir(parents=True)
    (out / "work" / step.name / "checkpoint.safetensors").write_bytes(b"half of a file")
    child = command(recipe(tmp_path), out, "--resume")
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0 and "2/5 distill: its checkpoint cannot be used" in said, said
    assert results(out) == results(whole)


def test_damaged_step_is_done_again(whole, tmp_path):
    out = copied(whole, tmp_path)
    for victim in ("model/model.safetensors", "step.json"):
        before = ran(out)
        file = finished(out)["prune"] / victim
        content = bytearray(file.read_bytes())
        # Of the record a digit inside the facts or timings: it stays JSON.
        place = content.index(b'"wall": ') + 8 if victim == "step.json" else len(content) - 5
        content[place] = ord("7") if content[place] != ord("7") else ord("8")
        file.write_bytes(bytes(content))
        run(recipe(tmp_path), resume=True, folder=out)
        after = ran(out)
        assert {n for n in after if after[n] != before[n]} == {"prune"}
        assert results(out) == results(whole)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": 3, "key": "x"}', "\x00"])
def test_a_record_that_is_none_is_done_again(whole, tmp_path, record):
    out = copied(whole, tmp_path)
    before = ran(out)
    (finished(out)["verify"] / "step.json").write_text(record)
    run(recipe(tmp_path), resume=True, folder=out)
    assert {n for n, t in ran(out).items() if t != before[n]} == {"verify"}


def test_a_changed_option_redoes_that_step_and_the_later_ones(whole, tmp_path):
    out = copied(whole, tmp_path)
    before = finished(out)
    changed = [*STEPS[:2], {"quantize": {"samples": 16}}, *STEPS[3:]]
    stamps = ran(out)
    run(recipe(tmp_path, changed), resume=True, folder=out)
    records = list((out / "steps").glob("[0-9]*"))
    assert sum(p.name.split("-")[1] in ("prune", "distill") for p in records) == 2
    assert all(
        (before[n] / "step.json").stat().st_mtime_ns == stamps[n] for n in ("prune", "distill")
    )
    assert len(records) == 2 + 4 * 2


def test_limits_do_not_redo_steps_and_bind(whole, tmp_path, capsys):
    out = copied(whole, tmp_path)
    before = ran(out)
    path = recipe(tmp_path, limits={"size_ratio": 1000, "macs": 0.9})
    assert main(["run", str(path), "--folder", str(out), "--resume"]) == 3
    said = capsys.readouterr().err
    assert (
        "limit missed" in said
        and "size_ratio is" in said
        and "missed by" in said
        and "1000" in said
        and "macs" not in said
        and str(out) in said
    )
    assert (
        ran(out) == before
        and (out / "onnxruntime/model.onnx").is_file()
        and (out / "report.html").is_file()
    )
    limits = {x["name"]: x for x in json.loads((out / "report.json").read_text())["limits"]}
    assert not limits["size_ratio"]["met"] and limits["macs"]["met"]
    with pytest.raises(LimitError, match="size_ratio"):
        run(path, resume=True, folder=out)
    assert run(path, resume=True, folder=out, check=False).missed
    path = recipe(tmp_path, limits={"size_ratio": 1000, "on_fail": "warn"})
    assert main(["run", str(path), "--folder", str(out), "--resume"]) == 0
    assert "warning: limit missed: size_ratio" in " ".join(capsys.readouterr().err.split())
    path = recipe(
        tmp_path, limits={"size_ratio": 1000, "speedup": 1e6, "on_fail": {"speedup": "warn"}}
    )
    finished = run(path, resume=True, folder=out, check=False)
    assert [w.split()[0] for w in finished.warnings] == ["speedup"] and [
        w.split()[0] for w in finished.missed
    ] == ["size_ratio"]
    with pytest.raises(LimitError, match="size_ratio"):
        run(path, resume=True, folder=out)
    path = recipe(tmp_path, limits={"speedup": 1e6, "on_fail": {"speedup": "warn"}})
    assert "speedup is" in run(path, resume=True, folder=out).warnings[0], "the run ends well"


def test_two_runs_at_once(whole, tmp_path, capsys):
    from mirabelle.pipeline.workspace import Workspace

    out = copied(whole, tmp_path)
    with Workspace(out, True).lock():
        with pytest.raises(InputError, match="another run"):
            run(recipe(tmp_path), resume=True, folder=out)
        assert main(["run", str(recipe(tmp_path)), "--resume", "--folder", str(out)]) == 1
    assert "another run" in capsys.readouterr().err
    run(recipe(tmp_path), resume=True, folder=out)


@pytest.mark.slow
def test_full_disk_leaves_earlier_steps(whole, tmp_path, capsys, monkeypatch):
    out = copied(whole, tmp_path)
    before = ran(out)
    path = recipe(tmp_path, [*STEPS[:2], {"quantize": {"samples": 16}}, *STEPS[3:]])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mirabelle.store.write_tensors", full)
        assert main(["run", str(path), "--folder", str(out), "--resume"]) == 1
    said = capsys.readouterr().err
    assert "No space left" in said and "Traceback" not in said
    assert ran(out) == before and not list((out / "steps").glob(".*"))
    assert main(["run", str(path), "--folder", str(out), "--resume"]) == 0


def test_full_disk_while_the_file_grows(tmp_path):
    """The operating system refuses: whatever writes, the command says so in one line."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
    )
    code += "from mirabelle.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [
        sys.executable,
        "-c",
        code,
        "run",
        str(recipe(tmp_path)),
        "--folder",
        str(tmp_path / "out"),
    ]
    child = subprocess.run(
        line, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 1, child.stderr
    assert "Traceback" not in child.stderr and "error:" in child.stderr


def test_without_export_accuracy_is_pytorchs(tmp_path):
    found = run(
        recipe(tmp_path, [{"prune": {"macs": 0.6, "align": 2, "criterion": "l1"}}, "fit"]),
        folder=tmp_path / "out",
    )
    assert [s["name"] for s in found.report["stages"]] == ["original", "prune", "fit"]
    assert (
        found.report["result"]["runtime"] == "pytorch" and found.report["result"]["speedup"] is None
    )
    assert load(found.folder / "model", __import__("tiny").model()) is not None


def test_loader_with_a_generator_of_its_own_resumes_to_the_same(tmp_path):
    """The generator's state is lost with the process; the steps that were cached did not advance
    it.
    """
    two = [{"prune": {"macs": 0.6, "align": 2}}, {"fit": {"epochs": 2}}]
    path = recipe(tmp_path, two, data="tests.tiny:own_generator")
    run(path, folder=tmp_path / "a")
    run(path, folder=tmp_path / "b")
    import shutil

    shutil.rmtree(finished(tmp_path / "b")["fit"])
    run(path, resume=True, folder=tmp_path / "b")
    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_changed_teacher_weights_redo_the_distillation(tmp_path, monkeypatch):
    from tests import tiny

    path = recipe(tmp_path, [{"distill": {"teacher": "tests.tiny:teacher"}}])
    run(path, folder=tmp_path / "out")
    monkeypatch.setattr(tiny, "teacher", lambda: tiny.model(2, 12))
    run(path, resume=True, folder=tmp_path / "out")
    assert len(list((tmp_path / "out/steps").glob("01-distill-*"))) == 2


def distilled(features: dict[str, str], **options: str) -> dict:
    lesson = {"losses": {"features": 1}, "features": features, **options}
    return {"steps": [{"distill": lesson}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tests.tiny:modle"}, "did you mean 'model'"),
        ({"model": "tinny:model"}, "no module 'tinny'"),
        ({"model": "tests.tiny:broken"}, "no weights here"),
        ({"model": "tests.tiny:nothing"}, "expected a torch.nn.Module"),
        ({"model": "tests.tiny:not_callable"}, "expected a function"),
        ({"data": "tests.tiny:dat"}, "did you mean 'data'"),
        ({"data": "tests.tiny:failing"}, "the disk with the images is gone"),
        ({"data": "tests.tiny:failing_loader"}, "image 3 is truncated"),
        ({"data": "tests.tiny:nothing"}, "expected train, calibration and test"),
        ({"data": "tests.tiny:wrong_shape"}, "train loader's first batch"),
        ({"data": "tests.tiny:iterator"}, "iterator"),
        ({"data": "tests.tiny:empty"}, "train loader yielded no batch"),
        ({"loss": "mse", "steps": [{"prune": {"macs": 0.5, "criterion": "taylor"}}]}, "loss 'mse'"),
        ({"metric": "tests.tiny:nothing"}, "tests.tiny:nothing"),
        ({"steps": [{"prune": {"macs": 0.5, "keep": ["fc"]}}]}, "keep names 'fc'"),
        ({"steps": [{"distill": {"teacher": "tests.tiny:other_classes"}}]}, r"\(1, 5\)"),
        (distilled({"1": "99"}, teacher="tests.tiny:teacher"), "no module of the teacher"),
        (distilled({"99": "1"}), "no module of the student"),
    ],
)
def test_what_does_not_fit_is_found_before_any_step(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run(recipe(tmp_path, **changes), folder=tmp_path / "out")
    assert not (tmp_path / "out" / "steps").exists()


def test_errors_of_fit_are_recipe_errors(tmp_path):
    for changes in (
        {"model": "tests.tiny:modle"},
        {"data": "tests.tiny:dat"},
        {"data": "tests.tiny:wrong_shape"},
    ):
        with pytest.raises(RecipeError):
            run(recipe(tmp_path, **changes), folder=tmp_path / "out")


def test_unlabeled_data_is_enough_for_l1_and_distillation(tmp_path):
    two = [{"prune": {"macs": 0.6, "align": 2, "criterion": "l1"}}, "distill"]
    asked = recipe(tmp_path, two, data="tests.tiny:unlabeled_train")
    assert run(asked, folder=tmp_path / "out").report["result"]["macs_ratio"] <= 0.6


def test_dict_batches(tmp_path):
    found = run(
        recipe(tmp_path, [{"fit": {}}], model="tests.tiny:DictModel", data="tests.tiny:by_name"),
        folder=tmp_path / "out",
    )
    assert found.report["network"]["inputs"][0]["name"] == "x"
