"""The stages of a run and its limits, for a terminal of 80 columns."""

from __future__ import annotations

from textwrap import wrap

from rich import box
from rich.table import Table

from mirabelle.base.terminal import drawn, plain
from mirabelle.report.schema import Figures, Limit, Report, Score
from mirabelle.report.sections.headline import is_share
from mirabelle.report.units import change


def summary(report: Report) -> str:
    """The table of stages, what was gained, and each limit."""
    table = Table(
        box=None if plain() else box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True
    )
    for name in ("stage", "runtime"):
        table.add_column(name, overflow="fold")
    for name in ("MACs, M", "MB", f"{_metric(report)}, 95 %", "p50, ms", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in report.stages:
        macs = _figure(None if stage.macs is None else stage.macs / 1e6, ".1f")
        for runtime, seen in stage.runtimes.items():
            table.add_row(stage.label, runtime, macs, *_figures(seen))
    lines = [drawn(table, most=100), *_gained(report), *map(_limit, report.limits)]
    return "\n".join(lines)


def _figures(seen: Figures) -> list[str]:
    return [
        _figure(None if seen.bytes is None else seen.bytes / 1e6, ".2f"),
        accuracy(seen.accuracy) or "unknown",
        _figure(seen.latency.p50_ms, ".3f"),
        _figure(seen.speedup.value, ".2f"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def accuracy(seen: Score) -> str:
    """`94.70 ±0.44`: in percent, with the larger half of the interval; empty where unknown."""
    if seen.value is None:
        return ""
    if not seen.binary or seen.low is None or seen.high is None:
        return f"{seen.value:.4g}"
    half = max(seen.value - seen.low, seen.high - seen.value)
    return f"{100 * seen.value:.2f} ±{100 * half:.2f}"


def _gained(report: Report) -> list[str]:
    """The best file and what it gains, and what else is to be said."""
    result = report.result
    said = []
    if result.speedup is not None and result.size_ratio is not None:
        which = f"best: {result.label} on " if result.label else "on "
        said = [
            f"{which}{result.runtime}: {_times(result.speedup, 'faster', 'slower')}, "
            f"{_times(result.size_ratio, 'smaller', 'larger')},",
            "accuracy unknown"
            if result.accuracy_drop is None
            else change(result.accuracy_drop, is_share(report), _metric(report)),
        ]
        if result.file:
            said.append(f"file: {result.file}")
        if result.why:
            said += wrap(f"why: {result.why}", 78)
    for text in [*([report.data.made_up] if report.data.made_up else []), *report.advice]:
        said += wrap(f"note: {text}", 78)
    return said


def _times(value: float, better: str, worse: str) -> str:
    return f"{value:.2f} times {better}" if value >= 1 else f"{1 / value:.2f} times {worse}"


def _metric(report: Report) -> str:
    return str(report.recipe["metric"]).rpartition(":")[2]


def points(drop: float) -> str:
    """`0.12 points lost`, `0.63 points gained`."""
    return f"{abs(100 * drop):.2f} points {'gained' if drop < 0 else 'lost'}"


def _limit(limit: Limit) -> str:
    value = "not measured" if limit.value is None else f"{limit.value:.4g}"
    state = "met" if limit.met else "missed"
    return f"limit {limit.name} {limit.limit:g}: {state} ({value})"
