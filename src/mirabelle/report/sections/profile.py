"""Where the time goes, layer by layer."""

from __future__ import annotations

from mirabelle.report import charts, units
from mirabelle.report.parts import (
    MANY,
    child,
    fold,
    items,
    legend,
    pair,
    runtime_name,
    section,
    texts,
    titled,
)
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def keyed(layers: list[dict]) -> dict[tuple[str, int], dict]:
    """Layers by (name, how often the name came before)."""
    result: dict[tuple[str, int], dict] = {}
    for layer in layers:
        name, n = str(layer.get("name") or layer.get("operator") or ""), 0
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


def paired(part: dict) -> list[dict]:
    """The layers of a runtime's profile before and after, as `compare_layers` gives them. Where a
    report has nodes alone, nodes of the same name are taken for a layer.
    """
    if rows := items(part, "layers"):
        return rows
    old, new = keyed(items(part, "before")), keyed(items(part, "after"))
    found = []
    for key in merged(list(old), list(new)):
        one, other = old.get(key, {}), new.get(key, {})
        found.append(
            {
                "layer": key[0],
                "before_ms": number(one.get("milliseconds")),
                "after_ms": number(other.get("milliseconds")),
                "int8": other.get("int8"),
                "operators": [other["operator"]] if other.get("operator") else [],
            }
        )
    return found


def reconciled(report: dict, runtime: str) -> list[dict]:
    """The layers of one runtime, in milliseconds that add up to the median latency of the call: a
    profiler slows each node a little, so its times are taken as shares. `before_share` and
    `after_share` say of what; None where a file has no such layer.
    """
    rows = [dict(r) for r in paired(child(child(report, "profile"), runtime))]
    stages = items(report, "stages")
    for side, stage in (("before", 0), ("after", -1)):
        times = [number(r.get(f"{side}_ms")) for r in rows]
        total = sum(t for t in times if t)
        figures = child(child(stages[stage], "runtimes"), runtime) if stages else {}
        call = number(child(figures, "latency").get("p50_ms")) or total
        for row, time in zip(rows, times, strict=True):
            share = time / total if time and total else None
            row[f"{side}_share"] = share
            row[f"{side}_ms"] = None if share is None else share * call
    return rows


def layer_times(rows: list[dict]) -> list[dict]:
    """Rows for `charts.bars`: milliseconds of each layer before and after, int8 in a color of its
    own.
    """
    found = []
    for row in rows:
        name, bars = str(row.get("layer") or ""), []
        after = "s2" if row.get("int8") else "s1"
        for side, color in (("before", "before"), ("after", after)):
            ms, share = number(row.get(f"{side}_ms")), number(row.get(f"{side}_share"))
            of = "" if share is None else f", {100 * share:.0f}{NBSP}% of the call"
            bars.append(
                {
                    "value": ms,
                    "class": color,
                    "title": f"{name} {side}: {units.milliseconds(ms)}{of}",
                }
            )
        figures = " → ".join(units.digits(b["value"]) for b in bars)
        kind = "" if row.get("int8") is None else "int8" if row["int8"] else "float"
        found.append({"name": name, "value": f"{figures}{NBSP}ms {kind}".strip(), "bars": bars})
    return found


def profile(report: dict) -> str:
    """Where the time goes, per runtime and layer: a pair of bars in milliseconds, before and after,
    in the order of execution.
    """
    blocks = []
    for runtime in child(report, "profile"):
        rows = reconciled(report, runtime)
        if not rows:
            continue
        was, now = (sum(number(r.get(f"{s}_ms")) or 0.0 for r in rows) for s in ("before", "after"))
        integer = sum(number(r.get("after_share")) or 0.0 for r in rows if r.get("int8"))
        total = f"{units.milliseconds(was or None)} → {units.milliseconds(now or None)} a call"
        total += f", {100 * integer:.0f}{NBSP}% of it in int8" if integer else ""
        said = texts(child(child(report, "profile"), runtime).get("advice"))
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
