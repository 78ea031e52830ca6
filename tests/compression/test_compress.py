"""`mb.compress` from end to end, on a small trained network."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import batches
from mirabelle.base.files import read_json
from mirabelle.compression import finish, trial
from mirabelle.compression.api import compress
from mirabelle.compression.study import Study
from mirabelle.measurement.accuracy import scores_of
from mirabelle.measurement.macs import count_macs
from mirabelle.pipeline.recipe import parse
from mirabelle.pipeline.yaml_file import read_yaml
from mirabelle.report.schema import Report, unknown
from mirabelle.report.sections.recipe import as_yaml
from mirabelle.runtimes import load as open_file
from tests import tiny

QUICK = 0.3  # seconds of timing


def trained() -> nn.Module:
    """The tiny network after a few steps, which tells three brightnesses apart."""
    return mb.fit(tiny.model(), tiny.data()[0], steps=40, lr=0.02)


def loaders() -> Any:
    return SimpleNamespace(**small_loaders())


def small_loaders() -> dict:
    train, calibration, test = tiny.data()
    return {"train": train, "calibration": calibration, "test": test}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, one_thread):
    """One search, for half of the multiply-accumulates."""
    folder = tmp_path_factory.mktemp("search")
    model = trained()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "SECONDS", QUICK)
        patch.setattr(finish, "SECONDS", QUICK)
        found = compress(
            model, small_loaders(), macs=0.5, minutes=0.3, folder=folder / "study", check=False
        )
    return model, before, found


def test_the_limit_holds_and_the_file_is_the_network(searched):
    model, _, found = searched
    x = torch.randn(1, 1, 8, 8)
    assert found.missed == []
    assert found.best.macs <= 0.5 * 1.03 * count_macs(model, x)
    assert found.artifact.path.is_file() and found.artifact.path.parent.name == "onnxruntime"
    assert found.artifact.bytes < found.folder.joinpath("original/model.onnx").stat().st_size
    x = next(batches(tiny.data()[2])).args[0][:4]
    by_file = torch.as_tensor(
        found.artifact(x.numpy())[0]
        if isinstance(found.artifact(x.numpy()), (list, tuple))
        else found.artifact(x.numpy())
    )
    with torch.no_grad():
        by_network = found.model(x)
    assert torch.allclose(by_file.float(), by_network, atol=0.1 * float(by_network.abs().max()))


def test_the_users_network_stays_as_it_was(searched):
    model, before, _ = searched
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_test_data_are_judged_by_something_else_too(searched):
    """The drop in the report is that of the file on the test data, computed anew."""
    model, _, found = searched
    test = tiny.data()[2]
    with torch.no_grad():
        original = scores_of(lambda b: model.eval()(b.args[0]), test)
    drop, _, _ = original.drop(scores_of(found.artifact.predict, test))
    assert found.numbers["stages"][1]["runtimes"]["onnxruntime"]["accuracy_drop"] == (
        pytest.approx(drop, abs=1e-9)
    )


def test_the_report_says_what_was_tried(searched):
    _, _, found = searched
    page = found.report.read_text(encoding="utf-8")
    assert "<html" in page and "compressed" in page
    numbers = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    assert unknown(Report, numbers) == []
    assert len(numbers["front"]) == len(found.points) and any(p["best"] for p in numbers["front"])
    assert {r["form"] for r in numbers["search"]["plan"]} <= {"int8", "float"}
    assert numbers["limits"][0]["met"] and numbers["search"]["trials"] >= 1
    assert all(a.costs["macs"] <= b.costs["macs"] for a, b in zip(found.front, found.front[1:]))


def test_the_recipe_has_the_structure_without_the_search(searched):
    """Its cuts make a network with the shapes of the best one; what it trained is said."""
    model, _, found = searched
    recipe = parse(read_yaml(found.recipe), str(found.recipe))
    assert recipe.model == "module:callable" and "module:callable for" in found.recipe.read_text()
    assert {"export": {"runtimes": ["onnxruntime"]}} in found.numbers["recipe"]["steps"]
    small, x = model, next(batches(tiny.data()[0])).args[0]
    for step in recipe.steps:
        if step.name == "prune":
            small = mb.prune(small, x[:1], data=[x], **step.options)
    best = mb.load(found.folder / found.best.folder / "student", model)
    shapes = {n: t.shape for n, t in best.state_dict().items()}
    assert shapes != {n: t.shape for n, t in model.state_dict().items()}
    assert {n: t.shape for n, t in small.state_dict().items()} == shapes
    taught = [s.options["steps"] for s in recipe.steps if s.name == "distill"]
    assert sum(taught) == found.best.steps


@pytest.mark.slow
def test_the_recipe_runs(searched, tmp_path):
    _, _, found = searched
    here = "tests.compression.test_compress:"
    named = {"model": f"{here}trained", "data": f"{here}loaders"}
    text = as_yaml({**found.numbers["recipe"], **named, "steps": _short(found.numbers["recipe"])})
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    run = mb.run(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    assert run.report["stages"][-1]["macs"] == found.best.macs


def _short(recipe):
    """The steps, with few of training."""
    return [
        {"distill": {**s["distill"], "steps": 2}} if "distill" in s else s for s in recipe["steps"]
    ]


def test_pictures_whose_class_changed(searched):
    """Pixels are few here: 8 on a side are pictures."""
    _, _, found = searched
    changed = found.numbers.get("changed")
    test = tiny.data()[2]
    original = open_file(found.folder / "original" / "model.onnx", "onnxruntime")
    before, after = (
        torch.cat([torch.as_tensor(file.predict(b)).argmax(1) for b in batches(test)])
        for file in (original, found.artifact)
    )
    count = int((before != after).sum())
    assert (changed or {"changed": 0})["changed"] == count
    assert count == 0 or "changed class" in found.report.read_text(encoding="utf-8")


def test_the_same_call_again_is_the_same_result_at_once(searched):
    model, _, found = searched
    start = time.monotonic()
    again = compress(model, small_loaders(), macs=0.5, minutes=0.3, folder=found.folder)
    assert again.best == found.best and time.monotonic() - start < 20


def test_another_search_is_refused_in_the_folder(searched):
    model, _, found = searched
    with pytest.raises(mb.InputError, match="another folder"):
        compress(model, small_loaders(), macs=0.6, minutes=0.1, folder=found.folder)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "what must hold"),
        ({"macs": 0.5, "minutes": 0}, "minutes"),
        ({"macs": 1.5}, "macs"),
        ({"macs": 0.5, "runtime": "onnx"}, "onnxruntime"),
    ],
)
def test_what_is_asked_is_checked_first(options, word, tmp_path):
    with pytest.raises(mb.InputError, match=word):
        mb.compress(tiny.model(), small_loaders(), folder=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_a_network_without_channels(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(mb.InputError, match="no channel"):
        mb.compress(model, small_loaders(), macs=0.5, folder=tmp_path / "s")


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.compression import test_compress as t
from mirabelle.compression import finish, trial
trial.SECONDS = finish.SECONDS = 0.3
t.compress(t.trained(), t.small_loaders(), macs=0.5, minutes=0.5, folder={folder!r})
"""


@pytest.mark.slow
def test_the_minutes_are_kept(tmp_path):
    """By the search's own clock: no phase begins that does not fit, and there is an end to each."""
    folder = tmp_path / "study"
    found = compress(
        trained(),
        small_loaders(),
        accuracy_drop=0.1,
        minimize="macs",
        minutes=1.0,
        folder=folder,
        check=False,
    )
    seconds = read_json(folder / "clock.json")["seconds"]
    assert seconds <= 66
    assert found.missed == [] and found.artifact.path.is_file()


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_in_two_processes(tmp_path):
    """What was found before the kill is still there, and both return the result."""
    root, folder = str(Path(__file__).parents[2]), tmp_path / "study"
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(root=root, folder=str(folder))]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "journal.log").is_file() and '"point ' in (folder / "journal.log").read_text(
            encoding="utf-8"
        ):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = Study(folder, 0).points()
    assert kept
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for joined in both:
        _, said = joined.communicate(timeout=400)
        assert joined.returncode == 0, said
    assert kept == Study(folder, 0).points()[: len(kept)]
    assert (folder / "report.html").is_file() and (folder / "model" / "model.json").is_file()
