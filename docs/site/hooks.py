"""What the site's builder does beyond its configuration: pages made from code, tables of options,
and links that lead out of the documents.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "src"), str(ROOT)]

import reference  # noqa: E402

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
IN_APP = re.compile(r"^\{\{ (android|ios) (\w+) \}\}$", re.MULTILINE)
OPTIONS = re.compile(r"^\{\{ options (\w+) \}\}$", re.MULTILINE)
# Documents that lie beside the folder, and what they are called in it.
BESIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    made = {
        "reference/recipe.md": reference.recipe_page(),
        "reference/command-line.md": reference.command_line_page(),
        **{page: inside(name) for name, page in BESIDE.items()},
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def inside(name: str) -> str:
    """A document of the root with its links as from the folder of the documents."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return LINK.sub(lambda m: f"[{m[1]}]({moved(m[2])})", text)


def moved(target: str) -> str:
    if target.startswith(("http", "#")):
        return target
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    folder = PurePosixPath(page.file.src_uri).parent

    def link(m: re.Match) -> str:
        file, mark, anchor = m[2].partition("#")
        place = normpath(str(folder / file))
        if m[2].startswith(("http", "#")) or not place.startswith(".."):
            return m[0]
        name = place.removeprefix("../")
        if name in BESIDE:
            up = "../" * len(folder.parts)
            return f"[{m[1]}]({up}{BESIDE[name]}{mark}{anchor})"
        return f"{m[1]} (`{name}`)"  # a file of the sources, which the site has none of

    markdown = OPTIONS.sub(lambda m: reference.options_of_verb(m[1]), markdown)
    return IN_APP.sub(lambda m: reference.in_app(m[1], m[2]), LINK.sub(link, markdown))


TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.DOTALL)
FIGURE = re.compile(r"[-−+]?\d[\d \u00a0]*(\.\d+)?")
LONG = 6  # rows: a shorter table is seen whole


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Tables stand in regions that a keyboard scrolls. Those of results sort and are searched by
    the script of the report, which stands in the page itself; without it they are as they are.
    """
    results = page.file.src_uri.startswith(("results/", "networks"))
    count = 0

    def placed(table: re.Match) -> str:
        nonlocal count
        count += 1
        long = results and table[1].count("<tr>") > LONG
        body = CELL.sub(lambda m: f"<td{m[1]}{ordered(m[2])}>{m[2]}</td>", table[1])
        opened = "<table data-sortable>" if long else "<table>"
        heading = re.search(r"<th[^>]*>(.*?)</th>", table[1], re.DOTALL)
        name = re.sub(r"<[^>]+>", "", heading[1]).strip() if heading else ""
        label = " ".join(f"table {count}: {name}".rstrip(": ").replace('"', "&quot;").split())
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
            f"{opened}{body if long else table[1]}</table></div>"
        )

    html = TABLE.sub(placed, html)
    if "<table data-sortable>" not in html:
        return html
    script = (ROOT / "src" / "mirabelle" / "report" / "script.js").read_text(encoding="utf-8")
    return f"{html}<script>{script}</script>"


def ordered(cell: str) -> str:
    """The number that a cell begins with, for sorting."""
    found = FIGURE.match(re.sub(r"<[^>]+>", "", cell).strip())
    if not found:
        return ""
    value = re.sub(r"[ \u00a0]", "", found[0]).replace("−", "-")
    return f' data-v="{value}"'
