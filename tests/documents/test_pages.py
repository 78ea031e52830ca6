"""The pages of the site: their Python runs, their shell lines parse, their sentences are short, and
the site's navigation and reference name all that there is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mirabelle.base.options import options_of
from mirabelle.cli import COMMANDS, app
from mirabelle.pipeline import recipe
from tests.browser import browser
from tests.documents.test_docs import ROOT, SPAN

DOCS = ROOT / "docs"
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Pages whose blocks run and whose sentences are counted; others are older than these rules.
NEW = sorted(
    [
        *(DOCS / f"{n}.md" for n in ("index", "install", "quickstart", "report", "faq")),
        DOCS / "limitations.md",
        DOCS / "reference" / "exit-codes.md",
        *(p for folder in ("guides", "concepts", "seminar") for p in (DOCS / folder).glob("*.md")),
    ]
)
MOST_WORDS = 25


def named(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """The blocks of a page that are to run, in their order."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [text for mark, language, text in found if language in languages and not mark]


@pytest.mark.parametrize("page", [p for p in NEW if blocks(p, "python")], ids=named)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page share their names, as in a notebook, and start in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()):
        for number, code in enumerate(blocks(page, "python"), 1):
            exec(compile(code, f"{named(page)}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", [p for p in NEW if blocks(p, "sh")], ids=named)
def test_shell_lines_of_a_page_parse(page):
    """Commands of Mirabelle have the options that are given, pip the extras, make the targets."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mirabelle"]:
            assert words[1] in COMMANDS or words[1].startswith("--"), line
            if words[1] in COMMANDS:
                stop = next((i for i, w in enumerate(words) if w in (">", "|", "&&")), None)
                app().parse_args(words[1:stop], exit_on_error=False, print_error=False)
        if words[:2] == ["pip", "install"]:
            for extra in re.findall(r"mirabelle\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= extras(), line


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[project")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


@pytest.mark.parametrize("page", [p for p in NEW if blocks(p, "yaml")], ids=named)
def test_recipes_of_a_page_parse(page):
    for text in blocks(page, "yaml"):
        recipe.parse(yaml.safe_load(text))


def sentences(path: Path) -> list[str]:
    """The prose of a page, without code, tables and headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    lines = [li for li in text.splitlines() if not li.startswith(("#", "|", ">", "!", "    "))]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    text = SPAN.sub("code", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    return [s for p in paragraphs for s in re.split(r"(?<=[.!?:;])\s+", p.strip()) if s]


@pytest.mark.parametrize("page", NEW, ids=named)
def test_sentences_are_short(page):
    long = [s for s in sentences(page) if len(s.split()) > MOST_WORDS]
    assert not long, f"{len(long[0].split())} words: {long[0]}"


BRITISH = re.compile(
    r"\b((?:quant|optim|normal|minim|maxim|initial|equal|standard|summar)is(?:e[drs]?|ing|ation)\w*"
    r"|colour\w*|behaviour\w*|neighbour\w*|labelled|centred?|mend(?:s|ed)?)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=named)
def test_spelling_is_american(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert not BRITISH.findall(SPAN.sub("", text))


def test_spelling_of_the_code_is_american():
    sources = [p for room in ("src", "benchmarks", "examples") for p in (ROOT / room).rglob("*.py")]
    found = {p.name: BRITISH.findall(p.read_text(encoding="utf-8")) for p in sources}
    assert sources and not {name: words for name, words in found.items() if words}


class Loader(yaml.SafeLoader):
    """The site's configuration names a Python function; nothing of it is called."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def test_both_languages_of_the_seminar_have_the_same_cells():
    english, russian = (
        [code for _, language, code in FENCE.findall((DOCS / "seminar" / f"{n}.md").read_text())]
        for n in ("en", "ru")
    )
    assert english == russian and len(english) > 20


def nav(entries) -> list[str]:
    found = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += nav(value) if isinstance(value, list) else [value]
    return found


def test_the_navigation_names_every_page_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = nav(config["nav"])
    made = {"reference/recipe.md", "reference/command-line.md", "changelog.md", "contributing.md"}
    assert len(set(listed)) == len(listed)
    assert set(listed) == made | {named(p) for p in DOCS.rglob("*.md")}


@pytest.fixture(scope="module")
def reference():
    path = DOCS / "site" / "reference.py"
    spec = importlib.util.spec_from_file_location("site_reference", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_reference_names_every_option_and_command(reference):
    for name, verb in reference.VERBS.items():
        text = reference.options_of_verb(name)
        assert all(f"| `{o}` |" in text for o in options_of(verb)), name
    page = reference.recipe_page()
    for step, options in recipe.OPTIONS.items():
        section = page.split(f"## {step}\n")[1].split("\n## ")[0]
        assert all(f"| `{o}` |" in section for o in options), step
    assert 'assets.open("model.tflite")' in reference.in_app("android", "litert")
    page = reference.command_line_page()
    assert all(f"## mirabelle {name}\n" in page for name in COMMANDS)
    rows = [r for r in reference.recipe_page().splitlines() if r.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", r)) for r in rows} == {5}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_strictly(site):
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "equalize-activations" in page and 'id="mirabelle.quantization.api.quantize"' in page


SHOWN = [
    ("index.html", 390, "light"),
    ("results/runtimes.html", 1280, "light"),
    ("seminar/en.html", 390, "dark"),
    ("concepts/integers.html", 1280, "dark"),
]


def test_pages_of_the_site_are_accessible(site):
    """WCAG 2.2 AA by axe, and nothing that has to be scrolled sideways."""
    with browser() as opened:
        for name, width, scheme in SHOWN:
            page = opened.page((site / name).as_uri(), width, scheme)
            assert opened.violations(page) == [], (name, width, scheme)
            assert opened.width(page) <= width, (name, width)
            page.close()


def test_results_are_filtered_and_sorted_and_are_there_without_the_script(site):
    with browser() as opened:
        page = opened.page((site / "results" / "quantization.html").as_uri(), 1280)
        table = page.locator("table[data-sortable]").first
        whole = table.locator("tbody tr").count()
        page.locator(".search input").first.fill("nncf openvino")
        shown = table.locator("tbody tr:visible").all_inner_texts()
        assert 0 < len(shown) < whole and all("NNCF" in t and "openvino" in t for t in shown)
        page.locator(".search input").first.fill("")
        table.locator("thead button", has_text="SQNR").click()
        assert table.locator("thead th:nth-child(4)").get_attribute("aria-sort") == "ascending"
        figures = [float(c) for c in table.locator("tbody td:nth-child(4)").all_inner_texts()]
        assert figures == sorted(figures) and len(figures) == whole
        bare = opened.page((site / "results" / "quantization.html").as_uri(), 1280, script=False)
        assert bare.locator("table[data-sortable]").first.locator("tbody tr").count() == whole
        assert bare.locator(".search").count() == 0
