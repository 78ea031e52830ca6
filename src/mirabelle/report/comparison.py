"""Runs side by side: what each reached, its limits, what each step did, and every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mirabelle.report import charts, units
from mirabelle.report.parts import Cell, metric_name, runtime_name, section, show_score, table
from mirabelle.report.schema import Latency, LayerSize, LayerTime, Limit, Report, Stage
from mirabelle.report.sections.headline import NAMES, figures, is_share, limit_format, sentence
from mirabelle.report.sections.profile import merged, reconciled
from mirabelle.report.sections.steps import axes, waterfall_rows
from mirabelle.report.svg import element, escape
from mirabelle.report.units import number

Run = tuple[str, Report]
NOTHING: Cell = ("", "")


def sections(runs: Sequence[Run]) -> list[str]:
    """The parts of the page, in its order.

    runs: (name, report) of two or more, as `report.json` has them. The first is what the others
    are compared with.
    """
    parts = [_figures(runs), _limits(runs), _steps(runs), _layers(runs)]
    return [p for p in parts if p]


def opening(runs: Sequence[Run]) -> str:
    """Each run in its own sentence, and what stands in the way of comparing them."""
    said = "".join(
        element("dt", escape(name)) + element("dd", escape(text))
        for name, report in runs
        if (text := sentence(report))
    )
    warnings = "".join(element("p", escape(t), class_="departure") for t in _doubts(runs))
    return (element("dl", said, class_="runs") if said else "") + warnings


def _doubts(runs: Sequence[Run]) -> list[str]:
    """Why figures of these runs may not be compared as they are."""
    found = []
    machines = {str(m) for _, r in runs if (m := r.machine.cpu)}
    if len(machines) > 1:
        found.append(
            "The runs were measured on different machines. Compare ratios, and no milliseconds: "
            + "; ".join(sorted(machines))
        )
    metrics = {metric_name(r) for _, r in runs if r.stages}
    if len(metrics) > 1:
        found.append(f"The runs have different metrics: {', '.join(sorted(metrics))}.")
    counts = {n for _, r in runs if (n := figures(r, -1).accuracy.n) is not None}
    if len(counts) > 1:
        found.append("The runs were tested on different numbers of samples.")
    return found


def _figures(runs: Sequence[Run]) -> str:
    rows: list[tuple[str, Callable[[Report], Cell]]] = [
        ("network", lambda r: (str(r.network.name or ""), "")),
        ("runtime", lambda r: (runtime_name(r.result.runtime or ""), "")),
        ("speed-up", _speedup),
        ("median latency", lambda r: _latency(figures(r, -1).latency)),
        ("smaller by", lambda r: (units.times(r.result.size_ratio), "")),
        ("file size", lambda r: (units.size(figures(r, -1).bytes), "")),
        ("accuracy", lambda r: show_score(figures(r, -1).accuracy)),
        ("accuracy lost", _drop),
        ("MACs", lambda r: (units.count(_last(r).macs), "")),
        ("parameters", lambda r: (units.count(_last(r).parameters), "")),
        ("steps", _path),
        ("time taken", _time),
        ("machine", lambda r: (str(r.machine.cpu or ""), "")),
    ]
    drawn = [[(name, ""), *(cell(r) for _, r in runs)] for name, cell in rows]
    shown = [r for r in drawn if any(text not in ("", units.DASH) for text, *_ in r[1:])]
    head = ("figure", *(name for name, _ in runs))
    note = "Of the recommended file of each run. Accuracy and loss have their 95 % intervals."
    return section("What each run reached", note, table(head, shown))


def _last(report: Report) -> Stage:
    """The stage of the recommended file."""
    stages, name = report.stages, report.result.stage
    return next((s for s in stages if s.name == name), stages[-1] if stages else Stage.nothing())


def _speedup(report: Report) -> Cell:
    found = figures(report, -1).speedup
    ends = units.interval(found.low, found.high, units.digits)
    return units.times(report.result.speedup), ends


def _latency(found: Latency) -> Cell:
    threads = found.threads
    small = f"{threads:g} thread{'s' if threads != 1 else ''}" if threads else ""
    return units.milliseconds(found.p50_ms), small


def _drop(report: Report) -> Cell:
    result, show = report.result, units.points if is_share(report) else units.digits
    ends = units.numbers(result.accuracy_drop_interval)
    unit = " points" if is_share(report) else ""
    drop = result.accuracy_drop
    if drop is None:
        return NOTHING
    return f"{show(drop)}{unit}", units.interval(ends[0], ends[1], show) if len(ends) == 2 else ""


def _path(report: Report) -> Cell:
    names = report.steps or [str(s.label or "") for s in report.stages[1:]]
    return " → ".join(n for n in names if n), ""


def _time(report: Report) -> Cell:
    known = [n for v in report.timings.values() if (n := number(v)) is not None]
    return (units.seconds(sum(known)), "") if known else NOTHING


def _limits(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(v.name) for _, r in runs for v in r.limits))
    rows = [
        [(NAMES.get(n, n.replace("_", " ")), ""), *(_limit(n, r) for _, r in runs)] for n in names
    ]
    head = ("limit", *(name for name, _ in runs))
    return section("Limits", "", table(head, rows)) if rows else ""


def _limit(name: str, report: Report) -> Cell:
    row = next((v for v in report.limits if v.name == name), Limit.nothing())
    bound, value = row.limit, number(row.value)
    if bound is None:
        return "not asked", ""
    show = limit_format(name, is_share(report))
    if value is None or row.met is None:
        return "not measured", f"asked {show(bound)}"
    return f"{'✓ met' if row.met else '✗ missed'}: {show(value)}", f"asked {show(bound)}"


def _steps(runs: Sequence[Run]) -> str:
    """A row of waterfalls for each figure, all of a row on one axis."""
    blocks = []
    for axis in range(3):
        drawn = []
        for name, report in runs:
            title, values, shown, better = axes(report)[axis]
            rows = waterfall_rows(report.stages, values, shown, better, report.timings)
            drawn.append((name, title, better, rows))
        ends = [v for *_, rows in drawn for r in rows for v in (r["start"], r["end"])]
        if not ends:
            continue
        cells = [
            element("div", element("h4", escape(name)), chart)
            for name, title, better, rows in drawn
            if (chart := charts.waterfall(rows, f"{title} of {name}", better < 0, ends))
        ]
        blocks.append(element("h3", escape(drawn[0][1])) + element("div", *cells, class_="pair"))
    note = (
        "All bars of a figure are on one axis: green is better than before the step, orange worse."
    )
    return section("What each step cost and bought", note, *blocks)


def _layers(runs: Sequence[Run]) -> str:
    """Channels and milliseconds of every module, run beside run."""
    known: list[tuple[dict[str, LayerSize], dict[str, LayerTime]]] = []
    names: list[str] = []
    for _, report in runs:
        runtime = str(report.result.runtime)
        sizes = {str(c.layer): c for c in report.channels}
        times = {str(t.layer): t for t in reconciled(report, runtime)}
        known.append((sizes, times))
        for found in (sizes, times):
            names = merged(names, list(found))
    names = sorted((n for n in names if n not in ("", "None")), key=lambda n: n.startswith("("))
    rows = [
        [(n, ""), *(c for sizes, times in known for c in _layer(sizes.get(n), times.get(n)))]
        for n in names
    ]
    head = ["layer"]
    for name, _ in runs:
        head += [f"channels, {name}", f"ms, {name}"]
    note = (
        "Layers of one module path stand in one row. Milliseconds are shares of the latency of a "
        "call of the last network; below them, the layer in the original network."
    )
    return section("Every layer", note, table(tuple(head), rows, sortable=True)) if rows else ""


def _layer(size: LayerSize | None, time: LayerTime | None) -> list[Cell]:
    before, after = (None, None) if size is None else (size.before, size.after)
    one, other = (None, None) if time is None else (time.before_ms, time.after_ms)
    kept: Any = (units.digits(after), f"of {units.digits(before)}", after)
    ran: Any = (units.digits(other), f"from {units.digits(one)}" if one else "", other)
    return [kept if after is not None else NOTHING, ran if other is not None else NOTHING]
