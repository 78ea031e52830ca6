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
