"""The documents: the README's Python runs as it stands, every recipe parses, every option is
described with its default, every link leads somewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mirabelle
from mirabelle.distillation import FEATURE_LOSSES, LOSSES
from mirabelle.pipeline import recipe, schema
from mirabelle.pipeline.declarations import STEPS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# What the site's builder makes; it checks links to these itself.
MADE = {"changelog.md", "contributing.md", "recipe.md", "command-line.md"}
RECIPES = ROOT / "docs" / "recipes.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)*(\.(py|md|yaml|png)|/)")
# What a run or an example writes, which is in no clone.
WRITTEN = ("runs/", "steps/", "work/", "model/", "onnxruntime/", "openvino/", "build/")
# Of the reader's repository, and what a table of networks calls its groups.
THEIRS = (".github/workflows/", "ci/", "folder/", "detection/", "part/")


def blocks(path: Path, language: str) -> list[str]:
    return [
        text for name, text in FENCE.findall(path.read_text(encoding="utf-8")) if name == language
    ]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def tables(section: str) -> dict[str, str]:
    """First column -> second column, of the rows whose two first cells are code."""
    text = RECIPES.read_text(encoding="utf-8")
    found = re.search(rf"^###? {section}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/recipes.md has no section {section!r}"
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", found[1], re.MULTILINE))


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "README.md", "python"))))
def test_python_of_the_readme_runs_as_it_stands(number, tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    code = blocks(ROOT / "README.md", "python")[number]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for said in ("Conv", "against the integer reference", "speed-up", "peak memory"):
        assert said in done.stdout


def test_the_readme_has_python():
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_recipes_in_documents_parse(document):
    found = [recipe.parse(yaml.safe_load(text)) for text in blocks(document, "yaml")]
    assert found or document.name not in ("README.md", "recipes.md")


@pytest.mark.parametrize("step", recipe.OPTIONS)
def test_every_option_is_described_with_its_default(step):
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.OPTIONS[step].items()}
    described = (
        tables(step)
        if step != "fit"
        else {k: v for k, v in tables("distill").items() if k in recipe.OPTIONS["fit"]}
    )
    assert {k: yaml.safe_load(v) for k, v in described.items()} == defaults


def test_every_option_of_fit_is_named_under_fit():
    section = RECIPES.read_text(encoding="utf-8").split("### fit\n")[1].split("\n### ")[0]
    assert set(recipe.OPTIONS["fit"]) <= set(SPAN.findall(section))


def test_the_first_line_of_the_example_names_the_schema():
    path = ROOT / "examples" / "fashion.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == schema.SHIPPED.resolve()


def test_every_limit_is_described_with_its_default():
    assert {k: yaml.safe_load(v) for k, v in tables("Limits").items()} == vars(recipe.Limits())


NAMED = [
    (s, o.name) for s, known in STEPS.items() for o in known.values() if o.names and s != "fit"
]
# What the documents explain with the option beside it, or in a file of their own.
ELSEWHERE = {("quantize", "weight_threshold"), ("quantize", "runtime"), ("prune", "runtime")}


@pytest.mark.parametrize(("step", "option"), sorted({*NAMED} - ELSEWHERE))
def test_every_name_that_an_option_takes_is_in_its_row(step, option):
    section = RECIPES.read_text(encoding="utf-8").split(f"### {step}\n")[1].split("\n### ")[0]
    (row,) = re.findall(rf"^\| `{option}` \|.*$", section, re.MULTILINE)
    names = {n for table in STEPS[step][option].names for n in table.names}
    assert names <= set(SPAN.findall(row))


def test_every_loss_of_distillation_is_described():
    section = (
        RECIPES.read_text(encoding="utf-8")
        .split("#### Losses of distillation\n")[1]
        .split("\n### ")[0]
    )
    assert {*LOSSES, *FEATURE_LOSSES, "labels"} <= set(SPAN.findall(section))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        if Path(file).name in MADE:
            continue
        path = document.parent / file if file else document
        assert path.is_file(), f"{document.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), (
                f"{document.name} links to {target}; {path.name} has no such heading"
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_files_named_exist(document):
    """Files in code spans are named from the root, or from the package."""
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    for name in SPAN.findall(prose):
        if FILE.fullmatch(name) and not name.startswith((*WRITTEN, *THEIRS)):
            assert any((base / name).exists() for base in (ROOT, ROOT / "src" / "mirabelle")), (
                f"{document.name} names {name}, which is not there"
            )


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOTTED = re.compile(r"\b(?:mb|mirabelle)((?:\.[A-Za-z_]\w*)+)")
FILES = ("html", "json", "svg", "yaml", "yml", "md")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_name_that_a_page_mentions_is_there(page):
    """`mb.pruning.CRITERIA`, as a reader would type it; what a page imports, too."""
    text = page.read_text(encoding="utf-8")
    names = {m for m in DOTTED.findall(text) if m.rpartition(".")[2] not in FILES}
    for name in sorted(names):
        found = mirabelle
        for part in name.strip(".").split("."):
            if not hasattr(found, part):  # a module that nobody has imported yet
                with contextlib.suppress(ImportError):
                    importlib.import_module(f"{found.__name__}.{part}")
            assert hasattr(found, part), f"{page.name} names mirabelle{name}"
            found = getattr(found, part)
    for module, imported in re.findall(r"^from (mirabelle[\w.]*) import ([\w, ]+)$", text, re.M):
        for name in imported.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), (page.name, name)


def test_tables_are_found_in_their_rooms():
    """What CONTRIBUTING.md says of a table's place, and that its room hands it on."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `([A-Z_]+)` in `(\w+)/([\w/]+)\.py` \|", text)
    assert len(rows) >= 12
    for name, room, path in rows:
        home = f"mirabelle.{room}.{path.replace('/', '.')}".removesuffix(".__init__")
        table = getattr(importlib.import_module(home), name)
        if name != "RULES":  # of one runtime
            assert getattr(getattr(mirabelle, room), name) is table


def test_the_layers_that_are_drawn_are_the_contract():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = text.split("Imports go downwards only:")[1].split("```")[1]
    names = [re.split(r"\s{2,}", line)[0] for line in drawn.strip().splitlines()]
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1]
    rows = re.findall(r'"(mirabelle[^"]*)"', contract.split("]")[0])
    assert names == [row.replace("mirabelle.", "") for row in rows]
