"""Progress bars with time left, in one place. Silent where nobody looks: no terminal, or
`quiet()`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mirabelle.base.interruption import check

# What is said holds paths and names of layers, in which brackets and colons mean themselves.
console = Console(file=sys.stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
_silent = False


@contextmanager
def quiet() -> Iterator[None]:
    """No bars inside this block."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


class Bar:
    """One bar: `advance()` moves it, `note(loss=...)` writes figures behind it."""

    def __init__(self, progress: Progress, task: Any):
        self._progress, self._task = progress, task

    def advance(self, steps: float = 1) -> None:
        check()
        self._progress.advance(self._task, steps)

    def note(self, **figures: float | str) -> None:
        text = " ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()
        )
        self._progress.update(self._task, note=text)


def say(text: str) -> None:
    """A line for who watches, above the bars."""
    if not _silent and console.is_terminal:
        console.print(text, markup=False, highlight=False)


@contextmanager
def bar(description: str, total: float | None, show: bool = True) -> Iterator[Bar]:
    """A bar over `total` steps (None: unknown). It vanishes when done; results are said
    elsewhere.
    """
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    disable = _silent or not show or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))


def track(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """`items`, one by one, with a bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total) as b:
        for item in items:
            yield item
            b.advance()  # where an interruption is looked for, too
