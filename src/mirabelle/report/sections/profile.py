"""Where the time goes, layer by layer."""

from __future__ import annotations

from dataclasses import replace

from mirabelle.report import charts, units
from mirabelle.report.parts import MANY, fold, legend, pair, runtime_name, section, texts, titled
from mirabelle.report.schema import LayerTime, Node, Profile, Report, Stage
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP

NO_NODE, NO_STAGE = Node.nothing(), Stage.nothing()


def keyed(layers: list[Node]) -> dict[tuple[str, int], Node]:
    """Layers by (name, how often the name came before)."""
    result: dict[tuple[str, int], Node] = {}
    for layer in layers:
        name, n = str(layer.name or layer.operator or ""), 0
        while (name, n) in result:
            n += 1
        result[name, n] = layer
    return result


def merged(first: list, second: list) -> list:
    """Every key of both orders once: the first's order, and what only the second has behind the key
    it follows there.
    """
    result = list(first)
    position = 0
    for key in second:
        if key in result:
            position = result.index(key) + 1
        else:
            result.insert(position, key)
            position += 1
    return result


def paired(part: Profile) -> list[LayerTime]:
    """The layers of a runtime's profile before and after, as `compare_layers` gives them. Where a
    report has nodes alone, nodes of the same name are taken for a layer.
    """
    if part.layers:
        return part.layers
    old, new = keyed(part.before), keyed(part.after)
    found = []
    for key in merged(list(old), list(new)):
        one, other = old.get(key, NO_NODE), new.get(key, NO_NODE)
        found.append(
            replace(
                LayerTime.nothing(),
                layer=key[0],
                before_ms=one.milliseconds,
                after_ms=other.milliseconds,
                int8=other.int8,
                operators=[other.operator] if other.operator else [],
            )
        )
    return found


def reconciled(report: Report, runtime: str) -> list[LayerTime]:
    """The layers of one runtime, in milliseconds that add up to the median latency of the call: a
    profiler slows each node a little, so its times are taken as shares. `before_share` and
    `after_share` say of what; None where a file has no such layer.
    """
    rows = paired(report.profile.get(runtime) or Profile.nothing())
    first, last = (report.stages[0], report.stages[-1]) if report.stages else (NO_STAGE, NO_STAGE)
    before = _shares([r.before_ms for r in rows], first.on(runtime).latency.p50_ms)
    after = _shares([r.after_ms for r in rows], last.on(runtime).latency.p50_ms)
    return [
        replace(row, before_ms=a, before_share=one, after_ms=b, after_share=other)
        for row, (a, one), (b, other) in zip(rows, before, after, strict=True)
    ]


def _shares(
    times: list[float | None], call: float | None
) -> list[tuple[float | None, float | None]]:
    """Milliseconds of a call, or of the sum of all where none was timed, and shares of it."""
    total = sum(t for t in times if t)
    shares = [time / total if time and total else None for time in times]
    return [(None if s is None else s * (call or total), s) for s in shares]


def layer_times(rows: list[LayerTime]) -> list[dict]:
    """Rows for `charts.bars`: milliseconds of each layer before and after, int8 in a color of its
    own.
    """
    found = []
    for row in rows:
        name, bars = str(row.layer or ""), []
        after = "s2" if row.int8 else "s1"
        for side, color, ms, share in (
            ("before", "before", row.before_ms, row.before_share),
            ("after", after, row.after_ms, row.after_share),
        ):
            of = "" if share is None else f", {100 * share:.0f}{NBSP}% of the call"
            bars.append(
                {
                    "value": ms,
                    "class": color,
                    "title": f"{name} {side}: {units.milliseconds(ms)}{of}",
                }
            )
        figures = " → ".join(units.digits(b["value"]) for b in bars)
        kind = "" if row.int8 is None else "int8" if row.int8 else "float"
        found.append({"name": name, "value": f"{figures}{NBSP}ms {kind}".strip(), "bars": bars})
    return found


def profile(report: Report) -> str:
    """Where the time goes, per runtime and layer: a pair of bars in milliseconds, before and after,
    in the order of execution.
    """
    blocks = []
    for runtime in report.profile:
        rows = reconciled(report, runtime)
        if not rows:
            continue
        was, now = sum(r.before_ms or 0.0 for r in rows), sum(r.after_ms or 0.0 for r in rows)
        integer = sum(r.after_share or 0.0 for r in rows if r.int8)
        total = f"{units.milliseconds(was or None)} → {units.milliseconds(now or None)} a call"
        total += f", {100 * integer:.0f}{NBSP}% of it in int8" if integer else ""
        said = texts(report.profile[runtime].advice)
        chart = charts.bars(layer_times(rows), f"Milliseconds of each layer on {runtime}")
        many = len(rows) > MANY
        body = fold("Every layer", f"{len(rows)} rows", chart, False) if many else chart
        notes = "".join(element("p", escape(t), class_="note") for t in (total, *said))
        blocks.append(titled(runtime_name(runtime), notes + body))
    names = legend(
        [("before", "before", None), ("after, int8", "s2", None), ("after, float", "s1", None)]
    )
    note = (
        "Shares of the runtime's own profiler, which slows every node a little, of the median "
        "latency of a call. In brackets: what is no layer of weights."
    )
    return section("Where the time goes", note, names + pair(*blocks) if blocks else "")
