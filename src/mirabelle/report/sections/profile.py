"""Where the time goes, layer by layer."""

from __future__ import annotations

from mirabelle.report import charts, units
from mirabelle.report.parts import MANY, fold, items, legend, pair, runtime_name, section, titled
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


def layer_times(before: list[dict], after: list[dict]) -> list[dict]:
    """Rows for `charts.bars`, in the order of execution: milliseconds of each layer before and
    after, int8 in a colour of its own.
    """
    old, new = keyed(before), keyed(after)
    rows = []
    for key in merged(list(old), list(new)):
        bars, figures, kind = [], [], ""
        for side, layers in (("before", old), ("after", new)):
            layer = layers.get(key, {})
            ms = number(layer.get("milliseconds"))
            colour = "before" if side == "before" else "s2" if layer.get("int8") else "s1"
            kind = ("int8" if layer.get("int8") else "float") if layer else kind
            bars.append(
                {
                    "value": ms,
                    "class": colour,
                    "title": f"{key[0]} {side}: {units.milliseconds(ms)}, "
                    f"{layer.get('operator') or 'absent'}",
                }
            )
            figures.append(units.digits(ms) if ms is not None else units.DASH)
        rows.append(
            {"name": key[0], "value": f"{' → '.join(figures)}{NBSP}ms {kind}".strip(), "bars": bars}
        )
    return rows


def profile(runtimes: dict) -> str:
    """Where the time goes, per runtime and layer: a pair of bars in milliseconds, before and after,
    in the order of execution.
    """
    blocks = []
    for runtime in runtimes:
        before, after = items(runtimes[runtime], "before"), items(runtimes[runtime], "after")
        rows = layer_times(before, after)
        if not rows:
            continue
        was, now = (
            sum(number(p.get("milliseconds")) or 0.0 for p in side) for side in (before, after)
        )
        integer = sum(number(p.get("milliseconds")) or 0.0 for p in after if p.get("int8"))
        total = (
            f"{units.milliseconds(was) if before else units.DASH} → "
            f"{units.milliseconds(now) if after else units.DASH} in all layers"
        )
        total += f", {100 * integer / now:.0f}{NBSP}% of it in int8" if integer else ""
        chart = charts.bars(rows, f"Milliseconds of each layer on {runtime_name(runtime)}")
        body = fold("Every layer", f"{len(rows)} rows", chart, False) if len(rows) > MANY else chart
        blocks.append(
            titled(runtime_name(runtime), element("p", escape(total), class_="note") + body)
        )
    names = legend(
        [("before", "before", None), ("after, int8", "s2", None), ("after, float", "s1", None)]
    )
    note = (
        "Layers in the order of execution, timed by the runtime's own profiler, which slows "
        "them a little."
    )
    return section("Where the time goes", note, names + pair(*blocks) if blocks else "")
