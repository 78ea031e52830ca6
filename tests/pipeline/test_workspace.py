"""A run's folder: nothing in it that a run did not make is changed or removed."""

import os
import shutil

import pytest

from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic, temporary_folder
from mirabelle.pipeline.workspace import MARKER, OLD, Workspace


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    "name", [".model.py.swp", "steps/.git/HEAD", "model/model.safetensors", "notes.txt"]
)
def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("the user's")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"is no run's folder.*choose a new or an empty one"):
        Workspace(tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        Workspace(tmp_path / "out", resume=False)


def test_new_and_empty_folders_and_those_of_earlier_runs(tmp_path):
    for folder in (tmp_path / "a" / "b", tmp_path / "a" / "b", tmp_path / "c"):
        Workspace(folder, resume=False)
        assert (folder / MARKER).is_file()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f".{MARKER}.mirabelle-0a1b2c3d").write_text("")  # killed while it was marked
    Workspace(tmp_path / "d", resume=True)


def test_only_what_a_run_calls_so_is_swept(tmp_path):
    workspace = Workspace(tmp_path, resume=True)
    kept = [
        ".model.py.swp",
        ".report.html.swp",
        ".report.json.abcdefgh.json",
        "steps/.git/HEAD",
        "steps/.01-prune-notes/a",
        "steps/.old-photographs/a",
        "model/.model.py.swp",
        "mine/.model.json.mirabelle-abcdefgh.json",
    ]
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("the user's")
    before = tree(tmp_path)
    for name in ("01-prune", OLD):
        (temporary_folder(tmp_path / "steps", name) / "half").write_text("")
    for path in (tmp_path / "report.html", tmp_path / "model" / "model.json"):
        with pytest.raises(KeyError), atomic(path) as temporary:
            temporary.write_text("half")
            other = "a" if temporary.stem[-1] == "b" else "b"
            shutil.copyfile(temporary, temporary.with_stem(temporary.stem[:-1] + other))
            raise KeyError
    assert len(tree(tmp_path)) == len(before) + 6
    workspace.sweep()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("exists", [True, False])
def test_the_lock_is_not_opened_through_a_link(tmp_path, exists):
    target = tmp_path / "precious"
    if exists:
        target.write_text("the user's")
    workspace = Workspace(tmp_path / "out", resume=True)
    (workspace.folder / ".lock").symlink_to(target)
    with pytest.raises(InputError, match=r"\.lock cannot be opened"), workspace.lock():
        pass
    assert target.read_text() == "the user's" if exists else not target.exists()


def test_the_lock_is_not_emptied(tmp_path):
    target = tmp_path / "precious"
    target.write_text("the user's")
    workspace = Workspace(tmp_path / "out", resume=True)
    os.link(target, workspace.folder / ".lock")
    with workspace.lock(), pytest.raises(InputError, match="another run"), workspace.lock():
        pass
    assert target.read_text() == "the user's"


@pytest.mark.parametrize("name", ["steps", "model", "onnxruntime"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    Workspace(tmp_path / "out", resume=False)
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        Workspace(tmp_path / "out", resume=True)
