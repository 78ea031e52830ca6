"""Without a terminal progress is a line now and then."""

import io

from rich.console import Console

from mirabelle.base import progress


def said(monkeypatch, every: float, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "EVERY", every)
    with progress.bar("training", 4) as bar:
        for _ in range(4):
            bar.note(loss=0.5)
            bar.advance()
    return out.getvalue()


def test_a_pipe_gets_lines_with_the_time_left(monkeypatch):
    lines = said(monkeypatch, 0.0).splitlines()
    assert len(lines) == 4 and lines[0].startswith("training: 1 of 4, about 0 s left; loss 0.5")


def test_short_work_says_nothing_and_quiet_neither(monkeypatch):
    assert said(monkeypatch, 30.0) == ""
    with progress.quiet():
        assert said(monkeypatch, 0.0) == ""
