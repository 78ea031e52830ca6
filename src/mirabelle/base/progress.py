"""Progress bars with time left, in one place; without a terminal a line now and then, so that a
log shows that work goes on. Silent in `quiet()`.
"""

from __future__ import annotations

import sys
import time
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
EVERY = 30.0  # seconds between two lines where there is no terminal


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
    """One bar: `advance()` moves it, `note(loss=...)` writes figures after it."""

    def __init__(self, progress: Progress, task: Any, lines: bool = False):
        self._progress, self._task, self._lines = progress, task, lines
        self._begun = self._said = time.monotonic()
        self._note = ""

    def advance(self, steps: float = 1) -> None:
        check()
        self._progress.advance(self._task, steps)
        if self._lines and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            console.print(self._line())

    def _line(self) -> str:
        """`training: 120 of 1000, about 4 min left; loss 0.31`."""
        task = next(t for t in self._progress.tasks if t.id == self._task)
        done, text = task.completed, f"{task.description}: {task.completed:g}"
        if task.total:
            left = (self._said - self._begun) * (task.total / max(done, 1e-9) - 1)
            text += f" of {task.total:g}, about {spoken(left)} left"
        return f"{text}; {self._note}" if self._note else text

    def note(self, **figures: float | str) -> None:
        text = " ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()
        )
        self._note = text
        self._progress.update(self._task, note=text)


def spoken(seconds: float) -> str:
    """`40 s`, `12 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def watched() -> bool:
    """Whether somebody looks on: at a terminal, and not in `quiet()`."""
    return not _silent and console.is_terminal


def say(text: str) -> None:
    """A line for who watches, above the bars."""
    if watched():
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
    wanted = show and not _silent
    disable = not wanted or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(description, total=total, note="")
        yield Bar(progress, task, lines=wanted and not console.is_terminal)


def track(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """`items`, one by one, with a bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total) as b:
        for item in items:
            yield item
            b.advance()  # where an interruption is looked for, too
