"""What `mb.compress` found: every trial, the front, and the plan of the best network."""

from __future__ import annotations

from typing import Any

from mirabelle.report import charts, svg, units
from mirabelle.report.parts import Cell, legend, metric_name, runtime_name, section, table, titled
from mirabelle.report.schema import Report, Search, Tested, Trial
from mirabelle.report.sections.headline import is_share
from mirabelle.report.sections.stages import show_axis
from mirabelle.report.units import number

# The columns of a plan that have a name of their own; others are called as in the JSON.
HEADS = {
    "layer": "layer",
    "action": "what was done",
    "predicted_ms": "ms, predicted",
    "measured_ms": "ms, measured",
    "predicted_loss": "loss, predicted",
    "measured_loss": "loss, measured",
    "predicted_bytes": "bytes, predicted",
    "measured_bytes": "bytes, measured",
    "before": "channels before",
    "after": "channels after",
    "form": "computed in",
    "cost_before": "cost before",
    "cost_after": "cost after, predicted",
    "loss_of_channels": "loss by channels, predicted",
    "loss_of_integers": "loss by integers, predicted",
    "loss_of_blocks": "loss by skipping, predicted",
}
QUANTITIES = {
    "loss": "squared error of the outputs",
    "latency": "milliseconds",
    "size": "bytes",
    "macs": "MACs",
}


def front(report: Report) -> str:
    """Accuracy against milliseconds with every trial a point, the points of the front in a table,
    and the plan of the best one. Where a point has a `drop`, its interval is that of the drop. The
    one with `best`, or else the fastest of the front that has a plan, is the best.
    `report.search` may hold the best one's plan, and what was predicted and measured of it.
    """
    points = report.front
    known = [p for p in points if _at(p) is not None]
    if not known:
        return ""
    on = sorted((p for p in known if p.on_front), key=lambda p: number(p.milliseconds) or 0.0)
    off = [p for p in known if not p.on_front]
    series = [[_drawn(p, i == 0, report) for p in some] for i, some in enumerate((on, off))]
    chart = charts.scatter(
        series, "latency, ms", metric_name(report), show_axis(report), trails=False
    )
    names = legend([(f"on the front, {len(on)}", "s0", 0), (f"other trials, {len(off)}", "s1", 1)])
    note = (
        f"Every point is a network that was made and measured: {len(points)} in all. None is "
        "both faster and more accurate than one of the front."
    )
    searched = report.search.plan
    best = _best(known, on, bool(searched))
    return section(
        "The front",
        note,
        names + chart,
        table(
            ("network", "accuracy", "latency", "file size", "drop", "drop on the test data"),
            [_row(p, report) for p in on],
        ),
        _foretold(report.search),
        _plan(best, best.plan or searched) if best else "",
    )


def _at(point: Trial) -> tuple[float, float] | None:
    x, y = number(point.milliseconds), number(point.accuracy)
    return None if x is None or y is None else (x, y)


def _ends(point: Trial) -> tuple[float | None, float | None]:
    ends = point.interval
    low, high = map(number, ends) if len(ends) == 2 else (None, None)
    drop, accuracy = point.drop, number(point.accuracy)
    if low is None or high is None or drop is None or accuracy is None:
        return low, high
    return accuracy + drop - high, accuracy + drop - low  # the original's less the drop's ends


def _drawn(point: Trial, named: bool, report: Report) -> dict:
    """A point of the plot, which says of itself what it is."""
    x, y = _at(point) or (0.0, 0.0)
    low, high = _ends(point) if named else (None, None)  # of all trials they would hide the front
    name = str(point.name or "")
    figures = [show_axis(report)(y), units.milliseconds(x)]
    figures += [units.size(point.bytes)] if point.bytes is not None else []
    figures += [f"{k} {v}" for k, v in point.knobs.items()]
    figures += [point.why] if point.why else []
    label = svg.short(name, 20) if named else ""
    title = f"{name}: {', '.join(figures)}"
    return {"label": label, "x": x, "y": y, "low": low, "high": high, "title": title}


def _row(point: Trial, report: Report) -> list[Cell]:
    show, (low, high) = show_axis(report), _ends(point)
    return [
        (str(point.name or ""), ""),
        (show(number(point.accuracy) or 0.0), units.interval(low, high, show)),
        (units.milliseconds(point.milliseconds), ""),
        (units.size(point.bytes), ""),
        _drop(point, report),
        _drop(point.test, report),
    ]


def _drop(found: Trial | Tested, report: Report) -> Cell:
    """A drop of the metric with its interval, in points where it is a share."""
    n, ends = found.drop, units.numbers(found.interval)
    if n is None:
        return "", ""
    show = units.points if is_share(report) else units.digits
    return show(n), units.interval(ends[0], ends[1], show) if len(ends) == 2 else ""


def _best(known: list[Trial], on: list[Trial], searched: bool) -> Trial | None:
    """The point whose plan is shown."""
    planned = [p for p in on if p.plan]
    marked = [p for p in known if p.best and (searched or p.plan)]
    return next(iter([*marked, *planned]), None)


def _foretold(search: Search) -> str:
    """What was predicted of the best network beside what was measured, as shares of the original's;
    nothing where the search does not say.
    """
    predicted, measured = (
        {"loss": found.loss, **found.costs} for found in (search.predicted, search.measured)
    )
    keys = [k for k, v in predicted.items() if v is not None and k in measured]
    rows: list[list[Cell]] = [
        [
            (QUANTITIES.get(k) or k, ""),
            (units.digits(predicted[k]), ""),
            (units.digits(measured[k]), ""),
        ]
        for k in keys
    ]
    head = ("share of the original's", "predicted", "measured")
    return titled("Predicted and measured", table(head, rows)) if rows else ""


def _plan(point: Trial, plan: list[dict]) -> str:
    """The plan layer by layer, predicted beside measured. Keys that have no name here are columns,
    too.
    """
    keys = list(dict.fromkeys(k for row in plan for k in row))
    keys = [k for k in HEADS if k in keys] + [k for k in keys if k not in HEADS]
    if "layer" not in keys:
        return ""
    rows: list[list[Cell]] = [[_cell(key, row.get(key)) for key in keys] for row in plan]
    head = tuple(HEADS.get(k, k.replace("_", " ")) for k in keys)
    words = [HEADS["action"]]
    return titled(
        f"The plan of {point.name or 'the best'}",
        table(head, rows, words=words, sortable=True, name="plan of each layer"),
    )


def _cell(key: str, value: Any) -> Cell:
    n = number(value)
    if n is None:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
        return (runtime_name(shown) if key == "runtime" else shown), ""
    return (units.size(n) if key.endswith("bytes") else units.digits(n)), "", n
