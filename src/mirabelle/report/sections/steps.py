"""What each step cost and bought, as waterfalls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mirabelle.report import charts, units
from mirabelle.report.parts import metric_name, pair, runtime_name, section, titled
from mirabelle.report.schema import Report, Stage
from mirabelle.report.sections.headline import is_share
from mirabelle.report.units import NBSP, number


def steps(report: Report) -> str:
    """Milliseconds, bytes and accuracy of the result's runtime, step by step: a floating bar from
    the value before a step to the value after it.
    """
    stages, runtime = report.stages, report.result.runtime
    if len(stages) < 2 or not runtime:
        return ""
    drawn = []
    for title, values, shown, better in axes(report):
        rows = waterfall_rows(stages, values, shown, better, report.timings)
        chart = charts.waterfall(rows, f"{title} after each step", from_zero=better < 0)
        drawn.append(titled(title, chart))
    note = (
        f"On {runtime_name(runtime)}. Each bar goes from the value before the step to the value "
        "after it: green is better, orange worse. Accuracy is drawn on the range that it covers."
    )
    return section("What each step cost and bought", note, pair(*(d for d in drawn if d)))


Axis = tuple[str, list[float | None], Callable[[Any], str], int]


def axes(report: Report) -> list[Axis]:
    """What is drawn of the result's runtime: (title, the value at each stage, how it is shown, the
    sign of a change for the better).
    """
    runtime = str(report.result.runtime)
    found = [s.on(runtime) for s in report.stages]

    def share(value: Any) -> str:
        return f"{100 * value:.2f}{NBSP}%" if is_share(report) else units.digits(value, 4)

    times = [f.latency.p50_ms for f in found]
    sizes = [f.bytes for f in found]
    scores = [number(f.accuracy.value) for f in found]
    return [
        ("Latency, ms", times, units.milliseconds, -1),
        ("File size", sizes, units.size, -1),
        (metric_name(report), scores, share, 1),
    ]


def waterfall_rows(
    stages: list[Stage],
    values: list[float | None],
    show: Any,
    better: int,
    timings: dict[str, float | None],
) -> list[dict]:
    """A row for each step between two known values. better: the sign of a change for the better."""
    rows = []
    for (_, before), (stage, after) in pairwise(zip(stages, values, strict=True)):
        if before is None or after is None:
            continue
        change = after - before
        sign = "+" if change > 0 else "−" if change < 0 else "±"
        name = str(stage.label or stage.name or "")
        took = timings.get(str(stage.name))
        cost = f" in {units.seconds(took)}" if number(took) is not None else ""
        value = f"{show(before)} → {show(after)} ({sign}{show(abs(change))})".replace("-", "−")
        color = "before" if not change else "s2" if change * better > 0 else "s1"
        row = {"name": name + cost, "value": value, "start": before, "end": after}
        rows.append({**row, "class": color})
    return rows
