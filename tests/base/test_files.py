"""Files are whole or not there, and what is read from them is bounded."""

import pytest
import torch

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.base.files import (
    atomic,
    check_file_name,
    copy_file,
    is_temporary,
    read_json,
    sealed,
    temporary_folder,
    unsealed,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("NaN", "no number of JSON"),
        ("[1, -Infinity]", "no number of JSON"),
        ('{"a": 1, "a": 2}', "there twice"),
        ('"\xff', "not JSON"),
        ("", "not JSON"),
        ("1" * 300, "at most 200 are read"),
    ],
)
def test_what_is_no_json(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(InputError, match=words):
        read_json(path, 200 if "200" in words else 2**20)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_json(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        read_json(tmp_path)


def test_a_seal_tells_of_any_change():
    content = sealed({"a": [1, 2.5, (3,)], "b": None})
    assert unsealed(content, "x") == {"a": [1, 2.5, [3]], "b": None}
    for wrong in ({**content, "b": 0}, {"a": 1}, {**content, "c": 1}, {**content, "a": [1, 2.5]}):
        with pytest.raises(InputError, match="its checksum does not fit"):
            unsealed(wrong, "x")


def test_temporary_names(tmp_path):
    with atomic(tmp_path / "model.json") as temporary:
        assert is_temporary(temporary, "model.json") and temporary.suffix == ".json"
        assert not is_temporary(temporary, "model.jso")
        temporary.write_text("1")
    folder = temporary_folder(tmp_path, "01-prune")
    assert is_temporary(folder, "01-prune") and not is_temporary(folder, "01-prun")
    for name in (
        ".model.json.swp",
        "model.json",
        ".model.json.mirabelle-x",
        ".model.json.abcdefgh",
    ):
        assert not is_temporary(tmp_path / name, "model.json")


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".", "..", "a\\b", "a\0b", "x" * 300])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(InputError, match="without a folder"):
        check_file_name(name)


@pytest.mark.parametrize("name", ["model", "a.b", ".hidden", "größer", "a b", "[x]"])
def test_names(name):
    check_file_name(name)


def test_a_copy_is_whole_or_not_there(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"whole")
    assert copy_file(tmp_path / "a.bin", tmp_path / "deep" / "b.bin").read_bytes() == b"whole"
    with pytest.raises(FileNotFoundError):
        copy_file(tmp_path / "none.bin", tmp_path / "c.bin")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "deep"]


def test_a_file_is_no_folder(tmp_path):
    """Wherever something is written: one error, before anything is."""
    (tmp_path / "file").write_bytes(b"mine")
    network, x = torch.nn.Linear(3, 2), torch.zeros(2, 3)
    data = [torch.randn(32, 3) for _ in range(4)]
    quantized = mb.quantize(network, data)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        for write in (
            lambda folder=folder: mb.save(network, folder),
            lambda folder=folder: mb.export(network, folder, inputs=x),
            lambda folder=folder: mb.export(quantized, folder, runtime="openvino", inputs=x),
            lambda folder=folder: mb.compress(network, data, size=0.5, minutes=1, folder=folder),
            lambda folder=folder: mb.fit(
                network, [(x, x[:, :2])], "mse", steps=1, checkpoint=folder / "c.safetensors"
            ),
        ):
            with pytest.raises(InputError, match="cannot be made a folder"):
                write()
    assert (tmp_path / "file").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
