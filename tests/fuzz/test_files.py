"""Damaged files: an error of ours, or what the whole file gives; never another exception, a hang
or, under a checksum, another result.
"""

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, MirabelleError, RecipeError
from mirabelle.base.files import SEAL, read_json, read_tensors, sealed
from mirabelle.cli import main
from mirabelle.onnx_files.read import network
from mirabelle.pipeline.recipe import load_recipe
from mirabelle.runtimes import load as open_file
from tests.fuzz.mutations import BYTES, as_json, fields
from tests.fuzz.outcomes import check_message
from tests.tiny import data, model

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FORMS = ["original", "pruned", "sparse", "quantized"]


class Saved(dict):
    """hypothesis writes out what a failing test was given: not whole files."""

    def __repr__(self):
        return f"the saved networks {', '.join(self)}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, its files and the output of the network in it, for each form."""
    small = mb.prune(model(), EXAMPLE, macs=0.5, align=2, criterion="l1").eval()
    networks = {
        "original": model().eval(),
        "pruned": small,
        "sparse": mb.sparsify(model(), sparsity=0.9).eval(),
        "quantized": mb.quantize(small, data()[1], samples=32).eval(),
    }
    found = Saved()
    for name, net in networks.items():
        folder = mb.save(net, tmp_path_factory.mktemp("saved") / name)
        with torch.no_grad():
            files = {p.name: p.read_bytes() for p in folder.iterdir()}
            found[name] = (folder, files, net(EXAMPLE))
    return found


def loads_equal_or_is_refused(saved, form, file, content):
    folder, files, expected = saved[form]
    try:
        (folder / file).write_bytes(content)
        try:
            found = mb.load(folder, model(3))
        except MirabelleError as error:
            return check_message(error, file, folder.name)
        with torch.no_grad():
            assert torch.equal(found(EXAMPLE), expected), "it loads as another network"
    finally:
        (folder / file).write_bytes(files[file])


@given(form=st.sampled_from(FORMS), file=st.sampled_from(["json", "safetensors"]), change=BYTES)
def test_saved_networks(saved, form, file, change):
    name = f"model.{file}"
    loads_equal_or_is_refused(saved, form, name, change(saved[form][1][name]))


@given(form=st.sampled_from(FORMS), draw=st.data())
def test_fields_of_model_json(saved, form, draw):
    content = json.loads(saved[form][1]["model.json"])
    changed = as_json(draw.draw(fields(content)))
    loads_equal_or_is_refused(saved, form, "model.json", changed)


@given(form=st.sampled_from(FORMS), draw=st.data())
def test_fields_of_model_json_by_someone_who_computes_checksums(saved, form, draw):
    """It may be another network then; it is no other exception."""
    folder, files, _ = saved[form]
    content = json.loads(files["model.json"])
    del content[SEAL]
    try:
        (folder / "model.json").write_bytes(as_json(sealed(draw.draw(fields(content)))))
        mb.load(folder, model(3))
    except MirabelleError as error:
        check_message(error, "model.json", "model.safetensors", folder.name)
    finally:
        (folder / "model.json").write_bytes(files["model.json"])


@given(change=BYTES, draw=st.data(), whole=st.booleans())
def test_safetensors(saved, tmp_path_factory, change, draw, whole):
    content = saved["original"][1]["model.safetensors"]
    if whole:
        content = change(content)
    else:  # the header is JSON behind its length
        size = struct.unpack("<Q", content[:8])[0]
        header = as_json(draw.draw(fields(json.loads(content[8 : 8 + size]))))
        content = struct.pack("<Q", len(header)) + header + content[8 + size :]
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    path.write_bytes(content)
    try:
        read_tensors(path)
    except MirabelleError as error:
        check_message(error, path.name)


@given(change=BYTES)
def test_json(saved, tmp_path_factory, change):
    path = tmp_path_factory.getbasetemp() / "x.json"
    path.write_bytes(change(saved["quantized"][1]["model.json"]))
    try:
        read_json(path)
    except InputError as error:
        check_message(error, path.name)


RECIPE = {
    "version": 1,
    "model": "tests.tiny:model",
    "data": "tests.tiny:data",
    "metric": "top1",
    "seed": 3,
    "limits": {"accuracy_drop": 0.01, "on_fail": {"accuracy_drop": "warn"}},
    "steps": [
        {"prune": {"macs": 0.5, "criterion": "taylor", "keep": ["0"]}},
        {"distill": {"epochs": 2, "lr": 1e-3, "losses": {"kd": 1.0}, "teacher": "original"}},
        {"quantize": {"bits": 8, "threshold": "mse", "repair": ["bias"]}},
        {"export": {"runtimes": ["onnxruntime"], "threads": 2}},
        {"verify": {"samples": 20}},
    ],
}


@given(change=BYTES, draw=st.data(), whole=st.booleans())
def test_recipes(tmp_path_factory, change, draw, whole):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    if whole:
        path.write_bytes(change(yaml.safe_dump(RECIPE, sort_keys=False).encode()))
    else:
        path.write_text(yaml.safe_dump(draw.draw(fields(RECIPE)), sort_keys=False))
    try:
        load_recipe(path)
    except RecipeError as error:
        check_message(error, path.name, *RECIPE, "step")
        assert len(str(error)) < 2000


REPORT = Path(__file__).parents[1] / "report" / "data" / "report_example.json"


@given(draw=st.data())
def test_reports(tmp_path_factory, draw):
    path = tmp_path_factory.getbasetemp() / "report.json"
    path.write_bytes(as_json(draw.draw(fields(read_json(REPORT)))))
    assert main(["report", str(path), "--quiet"]) in (0, 1)


@pytest.fixture(scope="module")
def onnx_files(saved, tmp_path_factory):
    """A float file and one in Q/DQ form, with external data beside it."""
    folder = tmp_path_factory.mktemp("onnx")
    inside = mb.export(model(), folder / "float", inputs=EXAMPLE[:1]).path
    q = mb.load(saved["quantized"][0], model())
    outside = mb.export(q, folder / "q", inputs=EXAMPLE[:1]).path
    onnx.save(
        onnx.load(outside), outside, save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    return {"float": inside, "q": outside}


@given(name=st.sampled_from(["float", "q"]), change=BYTES, read=st.sampled_from(["net", "file"]))
def test_onnx(onnx_files, tmp_path_factory, name, change, read):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    source = onnx_files[name]
    if name == "q":
        (folder / "w.bin").write_bytes((source.parent / "w.bin").read_bytes())
    path = folder / "model.onnx"
    path.write_bytes(change(source.read_bytes()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if read == "net":
                with torch.no_grad():
                    network(path, Batch((EXAMPLE,), {}, None))(EXAMPLE)
            else:
                open_file(path, "onnxruntime")(np.zeros((1, 1, 8, 8), "float32"))
    except MirabelleError as error:
        check_message(error, path.name, "w.bin")
