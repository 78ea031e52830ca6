"""A run depends on the code behind `module:callable`, in whatever file of the user's it stands."""

import sys

import pytest

from mirabelle.pipeline.sources import code_hash

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
