"""The stages of a run: what each one costs and is worth, as a table and as points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirabelle.report import charts, svg, units
from mirabelle.report.parts import (
    Cell,
    child,
    items,
    legend,
    metric_name,
    pair,
    runtime_name,
    section,
    show_score,
    table,
    titled,
)
from mirabelle.report.sections.headline import figures, is_share
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def trade_off(report: dict) -> str:
    """Accuracy, with its interval as a whisker, against the median latency and against the size of
    the files: a point for each stage, a series for each runtime, the limits as dashed lines.
    """
    stages = items(report, "stages")
    names = list(dict.fromkeys(r for s in stages for r in child(s, "runtimes")))
    panels = []
    for title, unit, of in (
        ("latency", "median latency, ms", lambda f: child(f, "latency").get("p50_ms")),
        ("size", "files, MB", lambda f: _megabytes(f.get("bytes"))),
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


def show_axis(report: dict) -> Callable[[float], str]:
    """How the metric's axis is labeled: in percent where it is a share."""
    if is_share(report):
        return lambda v: f"{100 * v:.4g}{NBSP}%"
    return lambda v: units.digits(v, 4)


def _point(stage: dict, runtime: str, of: Callable[[dict], Any]) -> dict | None:
    """One stage on one runtime, where both of its figures are known."""
    figures = child(child(stage, "runtimes"), runtime)
    score, x = child(figures, "accuracy"), number(of(figures))
    y = number(score.get("value"))
    if x is None or y is None:
        return None
    label = str(stage.get("name") or stage.get("label") or "")
    title = (
        f"{stage.get('label') or label} on {runtime_name(runtime)}: "
        f"{' '.join(show_score(score))}, {units.digits(x)}"
    )
    ends = {k: number(score.get(k)) for k in ("low", "high")}
    return {"label": svg.short(label, 16), "x": x, "y": y, **ends, "title": title}


def _limits(report: dict, kind: str) -> list[dict]:
    """The limits as lines of the plot: the least accuracy, and the most milliseconds or bytes that
    still meet what was asked on the runtime of the result.
    """
    first = figures(report, 0)
    accuracy = number(child(first, "accuracy").get("value"))
    base = {
        "latency": number(child(first, "latency").get("p50_ms")),
        "size": _megabytes(first.get("bytes")),
    }[kind]
    found = []
    for row in items(report, "limits"):
        bound, name = number(row.get("limit")), row.get("name")
        if not bound:
            continue
        if name == "accuracy_drop" and accuracy is not None:
            at = accuracy - bound
            found.append({"axis": "y", "value": at, "title": "limit of accuracy"})
        elif name == {"latency": "speedup", "size": "size_ratio"}[kind] and base is not None:
            title = {"latency": "limit of speed-up", "size": "limit of size"}[kind]
            found.append({"axis": "x", "value": base / bound, "title": title})
    return found


def before_after(report: dict) -> str:
    """One table per runtime: a row per stage, a column per figure; the columns that nothing fills
    are left out.
    """
    stages = items(report, "stages")
    runtimes = list(dict.fromkeys(r for s in stages for r in child(s, "runtimes")))
    best = child(report, "result")
    last = str(stages[-1].get("name")) if stages else ""
    is_last = best.get("stage", last) == last
    tables = "".join(
        element("h3", escape(runtime_name(r)))
        + table(
            HEAD,
            [stage_row(s, child(child(s, "runtimes"), r)) for s in stages],
            mark_last=is_last and r == best.get("runtime"),
            name=f"table of each stage on {runtime_name(r)}",
        )
        for r in runtimes
    )
    if not tables and stages:
        tables = table(HEAD, [stage_row(s, {}) for s in stages])
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


def stage_row(stage: dict, figures: dict) -> list[Cell]:
    """The cells of one stage on one runtime, each (figure, small print); None of them for what was
    not measured.
    """
    latency, speed, memory = (
        child(figures, "latency"),
        child(figures, "speedup"),
        child(figures, "peak_memory"),
    )
    total, before = number(memory.get("total")), number(memory.get("before_loading"))
    runs = (
        f"{units.digits(latency['runs'])} runs" if number(latency.get("runs")) is not None else ""
    )
    return [
        (str(stage.get("label") or stage.get("name") or ""), ""),
        (
            units.times(speed.get("value")),
            units.interval(speed.get("low"), speed.get("high"), units.digits)
            if speed.get("low") != speed.get("high")
            else "",
        ),
        (units.milliseconds(latency.get("p50_ms")), runs),
        show_score(child(figures, "accuracy")),
        (units.size(figures.get("bytes")), ""),
        (units.milliseconds(latency.get("p95_ms")), ""),
        (units.count(stage.get("macs")), ""),
        (units.count(stage.get("parameters")), ""),
        (
            units.size(total),
            f"{units.size(total - before)} for the network"
            if total is not None and before is not None
            else "",
        ),
    ]
