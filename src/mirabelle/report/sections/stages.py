"""The stages of a run: what each one costs and is worth, as a table and as points."""

from __future__ import annotations

from mirabelle.report import charts, svg, units
from mirabelle.report.parts import (
    METRICS,
    child,
    items,
    pair,
    runtime_name,
    section,
    show_score,
    table,
    titled,
)
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def trade_off(stages: list[dict]) -> str:
    """Accuracy (with its interval as a whisker) against the median latency in ms: a point per
    stage, a panel per runtime, all to one scale.
    """
    series = []
    metric, shown = "accuracy", units.percent
    for runtime in dict.fromkeys(r for s in stages for r in child(s, "runtimes")):
        points = []
        for stage in stages:
            figures = child(child(stage, "runtimes"), runtime)
            score, x = child(figures, "accuracy"), number(child(figures, "latency").get("p50_ms"))
            if x is None or number(score.get("value")) is None:
                continue
            metric = METRICS.get(str(score.get("metric")), str(score.get("metric") or "accuracy"))
            shown = (
                (lambda v: units.digits(v, 4))
                if score.get("binary") is False
                else (lambda v: f"{100 * v:.4g}{NBSP}%")
            )
            label = str(stage.get("name") or stage.get("label") or "")
            title = (
                f"{stage.get('label') or label} on {runtime_name(runtime)}: "
                f"{' '.join(show_score(score))}, {units.milliseconds(x)}"
            )
            ends = {k: number(score.get(k)) for k in ("low", "high")}
            points.append(
                {
                    "label": svg.short(label, 16),
                    "x": x,
                    "y": number(score["value"]),
                    **ends,
                    "title": title,
                }
            )
        if points:
            series.append({"name": runtime_name(runtime), "points": points})
    panels = [
        titled(
            s["name"],
            charts.scatter(
                s["points"],
                i,
                [p for every in series for p in every["points"]],
                "median latency, ms",
                metric,
                shown,
            ),
        )
        for i, s in enumerate(series)
    ]
    note = (
        "Up is more accurate, left is faster. The whiskers are 95 % intervals; the dotted "
        "line follows the steps of the run."
    )
    return section("Accuracy against latency", note, pair(*panels))


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
    "accuracy",
    "file size",
    "latency p50",
    "latency p95",
    "speed-up",
    "MACs",
    "parameters",
    "peak memory",
)


def stage_row(stage: dict, figures: dict) -> list[tuple[str, str]]:
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
        show_score(child(figures, "accuracy")),
        (units.size(figures.get("bytes")), ""),
        (units.milliseconds(latency.get("p50_ms")), runs),
        (units.milliseconds(latency.get("p95_ms")), ""),
        (
            units.times(speed.get("value")),
            units.interval(speed.get("low"), speed.get("high"), units.digits)
            if speed.get("low") != speed.get("high")
            else "",
        ),
        (units.count(stage.get("macs")), ""),
        (units.count(stage.get("parameters")), ""),
        (
            units.size(total),
            f"{units.size(total - before)} for the network"
            if total is not None and before is not None
            else "",
        ),
    ]
