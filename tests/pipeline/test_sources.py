"""A run depends on the code behind `module:callable`, in whatever file of the user's it stands."""

import sys

import pytest

from mirabelle.cli import main
from mirabelle.pipeline import measuring, run
from mirabelle.pipeline.sources import code_hash
from tests.pipeline.runs import recipe

FILES = {
    "mine_entry.py": "import mine_helper\nfrom mine_package import part\nimport numpy, json\n"
    "def build():\n    from mine_late import late\n    return mine_helper\n",
    "mine_helper.py": "import mine_deep\nSTRIDE = 1\n",
    "mine_deep.py": "import mine_entry\n",  # in a circle
    "mine_late.py": "late = 1\n",
    "mine_package/__init__.py": "",
    "mine_package/part.py": "from . import sibling\nfrom .below.leaf import x\n",
    "mine_package/sibling.py": "",
    "mine_package/below/__init__.py": "",
    "mine_package/below/leaf.py": "from ..cousin import y\nx = 1\n",
    "mine_package/cousin.py": "y = 1\n",
    "mine_unused.py": "",
    "mine_package/unused.py": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("mine_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_is_imported_is_another_code(project, name):
    before = code_hash("mine_entry:build")
    assert code_hash("mine_entry:build") == before
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert (code_hash("mine_entry:build") == before) == ("unused" in name)
    assert "mine_late" not in sys.modules, "it was imported, not read"


def test_code_that_is_handed_on(project):
    (project / "mine_front.py").write_text("from mine_entry import build\n")
    before = code_hash("mine_front:build")
    (project / "mine_front.py").write_text("from mine_entry import build  # changed\n")
    after = code_hash("mine_front:build")
    (project / "mine_deep.py").write_text("import mine_entry  # changed\n")
    assert len({before, after, code_hash("mine_front:build")}) == 3


def test_installed_code_counts_by_its_version_alone(project):
    site = project / "lib" / "site-packages"
    site.mkdir(parents=True)
    (site / "mine_installed.py").write_text("")
    sys.path.append(str(site))
    try:
        (project / "mine_helper.py").write_text("import mine_installed\n")
        before = code_hash("mine_entry:build")
        (site / "mine_installed.py").write_text("changed = 1\n")
        assert code_hash("mine_entry:build") == before
    finally:
        sys.path.remove(str(site))


def test_callables_without_a_file(project):
    (project / "mine_front.py").write_text("from functools import partial\nbuild = partial(int)\n")
    assert code_hash("mine_front:build") is not None
    assert code_hash("math:sqrt") is None


CUT = [{"prune": {"macs": 0.6, "criterion": "l1"}}]


def test_a_run_is_not_resumed_with_the_steps_of_other_code(project, monkeypatch):
    """The module that the recipe names stays as it is, what it imports changes."""
    monkeypatch.setattr(measuring, "LATENCY_SECONDS", 0.05)
    (project / "mine_width.py").write_text("WIDTH = 8\n")
    (project / "mine_net.py").write_text(
        "from mine_width import WIDTH\nfrom tests.tiny import model\n"
        "def build():\n    return model(0, WIDTH)\n"
    )
    asked, out = recipe(project, CUT, model="mine_net:build"), project / "out"
    run(asked, folder=out)
    (project / "mine_width.py").write_text("WIDTH = 8  # and more\n")
    run(asked, folder=out, resume=True)
    assert len(list((out / "steps").glob("01-prune-*"))) == 2


def test_nan_in_the_test_data_is_no_result(tmp_path, capsys):
    asked = recipe(tmp_path, CUT, data="tests.tiny:nan_in_test")
    assert main(["run", str(asked), "--folder", str(tmp_path / "out")]) == 1
    assert "batch 0 of the test loader is nan at index [3, 0, 2, 1]" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out" / "report.json").exists()
