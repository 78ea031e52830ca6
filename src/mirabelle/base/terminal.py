"""What the terminal can show."""

from __future__ import annotations

import shutil
import sys
from io import StringIO
from typing import Any


def width(most: int) -> int:
    """The columns of the terminal, at least 80 and at most `most`; `most` where there is none."""
    return min(most, max(80, shutil.get_terminal_size((most, 24)).columns))


def drawn(*parts: Any, most: int) -> str:
    """rich's drawing of tables and texts, as wide as the terminal and at most `most` columns.

    Names and paths are shown as they are: nothing in them is markup.
    """
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=width(most), markup=False, emoji=False, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def plain() -> bool:
    """Whether what is printed goes into a file or a pipe."""
    return not sys.stdout.isatty()
