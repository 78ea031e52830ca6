"""The stages of a run and its limits, for a terminal of 80 columns."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from rich import box
from rich.table import Table

from mirabelle.base.terminal import drawn, plain
from mirabelle.report.schema import Report
from mirabelle.report.sections.headline import is_share
from mirabelle.report.units import change


def summary(report: dict[str, Any]) -> str:
    """The table of stages, what was gained, and each limit."""
    metric = _metric(report)
    table = Table(
        box=None if plain() else box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True
    )
    for name in ("stage", "runtime"):
        table.add_column(name, overflow="fold")
    for name in ("MACs, M", "MB", f"{metric}, 95 %", "p50, ms", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in report["stages"]:
        for runtime, seen in stage["runtimes"].items():
            table.add_row(stage["label"], runtime, f"{stage['macs'] / 1e6:.1f}", *_figures(seen))
    lines = [drawn(table, most=100), *_gained(report), *map(_limit, report["limits"])]
    return "\n".join(lines)


def _figures(seen: dict[str, Any]) -> list[str]:
    latency, faster = seen["latency"], seen["speedup"]
    return [
        "-" if seen["bytes"] is None else f"{seen['bytes'] / 1e6:.2f}",
        accuracy(seen["accuracy"]) if seen["accuracy"] else "unknown",
        f"{latency['p50_ms']:.3f}" if latency else "-",
        f"{faster['value']:.2f}" if faster else "-",
    ]


def accuracy(seen: dict[str, Any]) -> str:
    """`94.70 ±0.44`: in percent, with the larger half of the interval."""
    if not seen["binary"]:
        return f"{seen['value']:.4g}"
    half = max(seen["value"] - seen["low"], seen["high"] - seen["value"])
    return f"{100 * seen['value']:.2f} ±{100 * half:.2f}"


def _gained(report: dict[str, Any]) -> list[str]:
    """The best file and what it gains, and what else is to be said."""
    result = report["result"]
    said = []
    if result["speedup"] is not None:
        which = f"best: {result['label']} on " if result.get("label") else "on "
        said = [
            f"{which}{result['runtime']}: {_times(result['speedup'], 'faster', 'slower')}, "
            f"{_times(result['size_ratio'], 'smaller', 'larger')},",
            "accuracy unknown"
            if result["accuracy_drop"] is None
            else change(result["accuracy_drop"], is_share(Report.of(report)), _metric(report)),
        ]
        if result.get("file"):
            said.append(f"file: {result['file']}")
        if result.get("why"):
            said += wrap(f"why: {result['why']}", 78)
    made_up = (report.get("data") or {}).get("made_up")
    for text in [*([made_up] if made_up else []), *(report.get("advice") or [])]:
        said += wrap(f"note: {text}", 78)
    return said


def _times(value: float, better: str, worse: str) -> str:
    return f"{value:.2f} times {better}" if value >= 1 else f"{1 / value:.2f} times {worse}"


def _metric(report: dict[str, Any]) -> str:
    return report["recipe"]["metric"].rpartition(":")[2]


def points(drop: float) -> str:
    """`0.12 points lost`, `0.63 points gained`."""
    return f"{abs(100 * drop):.2f} points {'gained' if drop < 0 else 'lost'}"


def _limit(limit: dict[str, Any]) -> str:
    value = "not measured" if limit["value"] is None else f"{limit['value']:.4g}"
    state = "met" if limit["met"] else "missed"
    return f"limit {limit['name']} {limit['limit']:g}: {state} ({value})"
