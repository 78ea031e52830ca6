"""What each step cost and bought, as waterfalls."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from mirabelle.report import charts, units
from mirabelle.report.parts import child, items, metric_name, pair, runtime_name, section, titled
from mirabelle.report.sections.headline import is_share
from mirabelle.report.units import NBSP, number


def steps(report: dict) -> str:
    """Milliseconds, bytes and accuracy of the result's runtime, step by step: a floating bar from
    the value before a step to the value after it.
    """
    stages, runtime = items(report, "stages"), child(report, "result").get("runtime")
    if len(stages) < 2 or not runtime:
        return ""
    show = (
        (lambda v: f"{100 * v:.2f}{NBSP}%") if is_share(report) else (lambda v: units.digits(v, 4))
    )
    panels = [
        ("Latency, ms", lambda f: child(f, "latency").get("p50_ms"), units.milliseconds, -1),
        ("File size", lambda f: f.get("bytes"), units.size, -1),
        (f"{metric_name(report)}", lambda f: child(f, "accuracy").get("value"), show, 1),
    ]
    drawn = []
    for title, of, shown, better in panels:
        values = [number(of(child(child(s, "runtimes"), str(runtime)))) for s in stages]
        rows = waterfall_rows(stages, values, shown, better, child(report, "timings"))
        chart = charts.waterfall(rows, f"{title} after each step", from_zero=better < 0)
        drawn.append(titled(title, chart))
    note = (
        f"On {runtime_name(runtime)}. Each bar goes from the value before the step to the value "
        "after it: green is better, orange worse. Accuracy is drawn on the range that it covers."
    )
    return section("What each step cost and bought", note, pair(*(d for d in drawn if d)))


def waterfall_rows(
    stages: list[dict], values: list[float | None], show: Any, better: int, timings: dict
) -> list[dict]:
    """A row for each step between two known values. better: the sign of a change for the better."""
    rows = []
    for (_, before), (stage, after) in pairwise(zip(stages, values, strict=True)):
        if before is None or after is None:
            continue
        change = after - before
        sign = "+" if change > 0 else "−" if change < 0 else "±"
        name = str(stage.get("label") or stage.get("name") or "")
        took = timings.get(str(stage.get("name")))
        cost = f" in {units.seconds(took)}" if number(took) is not None else ""
        value = f"{show(before)} → {show(after)} ({sign}{show(abs(change))})".replace("-", "−")
        color = "before" if not change else "s2" if change * better > 0 else "s1"
        row = {"name": name + cost, "value": value, "start": before, "end": after}
        rows.append({**row, "class": color})
    return rows
