"""The stages of a run: what each one costs and is worth, as a table and as points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirabelle.report import charts, svg, units
from mirabelle.report.parts import (
    Cell,
    legend,
    metric_name,
    pair,
    runtime_name,
    section,
    show_score,
    table,
    titled,
)
from mirabelle.report.schema import NO_FIGURES, Figures, Report, Stage
from mirabelle.report.sections.headline import figures, is_share
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def trade_off(report: Report) -> str:
    """Accuracy, with its interval as a whisker, against the median latency and against the size of
    the files: a point for each stage, a series for each runtime, the limits as dashed lines.
    """
    stages = report.stages
    names = list(dict.fromkeys(r for s in stages for r in s.runtimes))
    panels = []
    for title, unit, of in (
        ("latency", "median latency, ms", lambda f: f.latency.p50_ms),
        ("size", "files, MB", lambda f: _megabytes(f.bytes)),
    ):
        series = [[p for s in stages if (p := _point(s, r, of))] for r in names]
        known = [(r, points) for r, points in zip(names, series, strict=True) if points]
        if not known:
            continue
        legends = [(runtime_name(r), f"s{i % 6}", i) for i, (r, _) in enumerate(known)]
        drawn = charts.scatter(
            [points for _, points in known],
            unit,
            metric_name(report),
            show_axis(report),
            limits=_limits(report, title),
        )
        panels.append(titled(f"Accuracy against {title}", legend(legends) + drawn))
    note = (
        "Up is more accurate, left is better. The whiskers are 95 % intervals; the dotted lines "
        "follow the steps of the run, the dashed ones are its limits."
    )
    return section("Accuracy against latency and size", note, pair(*panels))


def _megabytes(size: Any) -> float | None:
    n = number(size)
    return None if n is None else n / 1e6


def show_axis(report: Report) -> Callable[[float], str]:
    """How the metric's axis is labeled: in percent where it is a share."""
    if is_share(report):
        return lambda v: f"{100 * v:.4g}{NBSP}%"
    return lambda v: units.digits(v, 4)


def _point(stage: Stage, runtime: str, of: Callable[[Figures], Any]) -> dict | None:
    """One stage on one runtime, where both of its figures are known."""
    figures = stage.on(runtime)
    score, x = figures.accuracy, number(of(figures))
    y = number(score.value)
    if x is None or y is None:
        return None
    label = str(stage.name or stage.label or "")
    title = (
        f"{stage.label or label} on {runtime_name(runtime)}: "
        f"{' '.join(show_score(score))}, {units.digits(x)}"
    )
    ends = {"low": score.low, "high": score.high}
    return {"label": svg.short(label, 16), "x": x, "y": y, **ends, "title": title}


def _limits(report: Report, kind: str) -> list[dict]:
    """The limits as lines of the plot: the least accuracy, and the most milliseconds or bytes that
    still meet what was asked on the runtime of the result.
    """
    first = figures(report, 0)
    accuracy = number(first.accuracy.value)
    base = {"latency": first.latency.p50_ms, "size": _megabytes(first.bytes)}[kind]
    found = []
    for row in report.limits:
        bound, name = row.limit, row.name
        if not bound:
            continue
        if name == "accuracy_drop" and accuracy is not None:
            at = accuracy - bound
            found.append({"axis": "y", "value": at, "title": "limit of accuracy"})
        elif name == {"latency": "speedup", "size": "size_ratio"}[kind] and base is not None:
            title = {"latency": "limit of speed-up", "size": "limit of size"}[kind]
            found.append({"axis": "x", "value": base / bound, "title": title})
    return found


def before_after(report: Report) -> str:
    """One table per runtime: a row per stage, a column per figure; the columns that nothing fills
    are left out.
    """
    stages = report.stages
    runtimes = list(dict.fromkeys(r for s in stages for r in s.runtimes))
    best = report.result
    last = str(stages[-1].name) if stages else ""
    is_last = best.stage in (None, last)
    tables = "".join(
        element("h3", escape(runtime_name(r)))
        + table(
            HEAD,
            [stage_row(s, s.on(r)) for s in stages],
            mark_last=is_last and r == best.runtime,
            name=f"table of each stage on {runtime_name(r)}",
        )
        for r in runtimes
    )
    if not tables and stages:
        tables = table(HEAD, [stage_row(s, NO_FIGURES) for s in stages])
    return section("Before and after", NOTE, tables)


NOTE = (
    "In brackets: 95 % intervals. n is the number of samples measured. Speed-ups are against "
    "the original on the same runtime. "
    "MACs are the multiply-adds of one forward pass. p50 is the median, p95 what 95 of 100 runs "
    "stay under."
)
HEAD = (
    "stage",
    "speed-up",
    "latency p50",
    "accuracy",
    "file size",
    "latency p95",
    "MACs",
    "parameters",
    "peak memory",
)


def stage_row(stage: Stage, figures: Figures) -> list[Cell]:
    """The cells of one stage on one runtime, each (figure, small print); None of them for what was
    not measured.
    """
    latency, speed, memory = (figures.latency, figures.speedup, figures.peak_memory)
    total, before = memory.total, memory.before_loading
    runs = f"{units.digits(latency.runs)} runs" if latency.runs is not None else ""
    return [
        (str(stage.label or stage.name or ""), ""),
        (
            units.times(speed.value),
            units.interval(speed.low, speed.high, units.digits) if speed.low != speed.high else "",
        ),
        (units.milliseconds(latency.p50_ms), runs),
        show_score(figures.accuracy),
        (units.size(figures.bytes), ""),
        (units.milliseconds(latency.p95_ms), ""),
        (units.count(stage.macs), ""),
        (units.count(stage.parameters), ""),
        (
            units.size(total),
            f"{units.size(total - before)} for the network"
            if total is not None and before is not None
            else "",
        ),
    ]
