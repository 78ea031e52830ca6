"""Runs the cells of the tutorials and writes what they print behind them:
`python docs/site/execute.py [docs/tutorials/prune.md ...]`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CELL = re.compile(
    r"(?P<mark><!-- not run: [^>]+ -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


def executed(text: str) -> str:
    """A page with what its cells print. They share their names, and start in an empty folder."""
    names: dict = {"__name__": "page"}

    def run(cell: re.Match) -> str:
        if cell["mark"]:
            return cell[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell["code"], "cell", "exec"), names)
        shown = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
        block = f"```python\n{cell['code']}```\n"
        return block + (f"\n```text\n{shown}\n```\n" if shown else "")

    return CELL.sub(run, text)


def main(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            found = executed(text)
        page.write_text(found, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    given = [Path(p).resolve() for p in sys.argv[1:]]
    main(given or sorted((ROOT / "docs" / "tutorials").glob("*.md")))
