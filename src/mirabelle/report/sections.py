"""The sections that are charts. Each takes its own part of the report and returns markup, or
nothing where there is nothing to draw.
"""

from __future__ import annotations

from typing import Any

from mirabelle.report import svg, units
from mirabelle.report.parts import (
    METRICS,
    child,
    fold,
    items,
    legend,
    runtime_name,
    section,
    show_score,
    table,
    texts,
)
from mirabelle.report.picture import figure, most_clipped
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number

CLIPPING = (
    "Grey: the tensor's values. Columns: the steps that they are rounded to, as high as what "
    "falls to each; orange: what saturates at an end. "
    "With the threshold (dashed) inside, steps are finer where the values are. The tensor that "
    "gained most."
)
MANY = 40  # a longer list of layers starts folded


def pair(*blocks: str) -> str:
    """Blocks side by side where the page is wide enough, one above the other elsewhere."""
    return element("div", *blocks, class_="pair") if any(blocks) else ""


def titled(title: str, body: str) -> str:
    return element("div", element("h3", escape(title)), body) if body else ""


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
    charts = [
        titled(
            s["name"],
            svg.scatter(
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
    return section("Accuracy against latency", note, pair(*charts))


def channels(layers: list[dict]) -> str:
    """How many output channels each layer had before and has after: paired bars, all to one
    scale.
    """
    rows, before, after = [], 0.0, 0.0
    for layer in layers:
        b, a = number(layer.get("before")), number(layer.get("after"))
        before, after = before + (b or 0), after + (a or 0)
        share = f" ({100 * a / b:.0f}{NBSP}%)" if a is not None and b else ""
        name = layer.get("layer") or ""
        bars = [
            {"value": b, "class": "before", "title": f"{name}: {units.digits(b)} before"},
            {"value": a, "class": "s0", "title": f"{name}: {units.digits(a)} after"},
        ]
        rows.append(
            {"name": name, "value": f"{units.digits(b)} → {units.digits(a)}{share}", "bars": bars}
        )
    if not rows:
        return ""
    total = f"{before:.0f} → {after:.0f} channels in {len(rows)} layers"
    names = legend([("before", "before", None), ("after", "s0", None)])
    return section(
        "Channels kept",
        total,
        names,
        halves(rows, "Channels of each layer before and after", "every layer"),
    )


def sparsity(layers: list[dict], forms: dict) -> str:
    """What is left of each sparse layer's weights, and, where each layer's form was chosen, which
    and how long it takes in each.
    """
    rows, size, left = [], 0.0, 0.0
    for layer in layers:
        total, zeros = number(layer.get("size")), number(layer.get("zeros"))
        if not total or zeros is None:
            continue
        size, left = size + total, left + total - zeros
        name = layer.get("layer") or ""
        bars = [
            {"value": total, "class": "before", "title": f"{name}: {units.digits(total)} weights"},
            {
                "value": total - zeros,
                "class": "s0",
                "title": f"{name}: {units.digits(total - zeros)} that are not zero",
            },
        ]
        rows.append(
            {"name": name, "value": f"{100 * zeros / total:.1f}{NBSP}% zeros", "bars": bars}
        )
    if not rows:
        return ""
    total = (
        f"{100 * (1 - left / size):.1f}{NBSP}% of the weights in {len(rows)} sparse layers "
        "are zero."
    )
    names = legend([("all weights", "before", None), ("not zero", "s0", None)])
    return section(
        "Sparse layers",
        total,
        names,
        halves(rows, "Weights of each sparse layer, all and not zero", "every layer"),
        _forms(forms),
    )


def _forms(forms: dict) -> str:
    rows = []
    for layer in items(forms, "layers"):
        times = child(layer, "milliseconds")
        cells = [(units.milliseconds(times.get(f)), "") for f in ("dense", "1x1", "4x1")]
        zeros = number(layer.get("zeros"))
        rows.append(
            [
                (str(layer.get("name") or ""), str(layer.get("kind") or "")),
                ("" if zeros is None else f"{100 * zeros:.1f}{NBSP}%", ""),
                *cells,
                (str(layer.get("form") or ""), ""),
            ]
        )
    note = (
        ""
        if forms.get("sparse")
        else "No sparse form of the network was faster than the fastest dense runtime, so that "
        "one runs."
    )
    body = table(
        (
            "layer",
            "zeros",
            "dense",
            "sparse, single weights",
            "sparse, blocks of 4 outputs",
            "runs as",
        ),
        rows,
    )
    return (
        titled("The form of each layer", element("p", escape(note), class_="note") + body)
        if rows
        else ""
    )


def break_even(found: dict) -> str:
    """How many times as fast sparse is as dense at each share of zeros, a panel for each kind of
    layer.
    """
    at = [v for v in (number(s) for s in found.get("sparsities") or []) if v is not None]
    panels = []
    for kind, forms in child(found, "speedups").items():
        series = [
            {
                "name": "zeros "
                f"{'of single weights' if form == '1x1' else 'in blocks of 4 outputs'}",
                "values": [number(v) for v in values],
            }
            for form, values in (forms.items() if isinstance(forms, dict) else [])
            if isinstance(values, list)
        ]
        if not at or not any(v is not None for s in series for v in s["values"]):
            continue
        series.append({"name": "as fast as dense", "values": [1.0] * len(at)})
        cross = [
            f"{form}: {'never' if v is None else f'{100 * v:.0f}{NBSP}%'}"
            for form, v in child(child(found, "break_even"), kind).items()
        ]
        names = legend([(s["name"], f"s{i}", 0) for i, s in enumerate(series)])
        drawn = svg.lines(
            series,
            "share of zeros",
            "times as fast",
            at=at,
            x_format=lambda v: f"{100 * v:.3g}{NBSP}%",
        )
        panels.append(titled(f"{kind} (break-even {', '.join(cross)})", names + drawn))
    limits = child(found, "limits")
    most = [number(limits.get(k)) for k in ("gmacs", "gigabytes")]
    machine = (
        ""
        if None in most
        else f" The machine does {most[0]:.3g} G multiply-accumulates and reads {most[1]:.3g} "
        "GB a second at best."
    )
    note = (
        "Layers: the sparse kernel over the dense one of the same runtime. The whole network: "
        "over the fastest dense runtime; a gap is where dense runs." + machine
    )
    return section("Sparse against dense", note, pair(*panels)) if panels else ""


def halves(rows: list[dict], label: str, title: str) -> str:
    """Bars in two columns, to one scale; folded where the list is long."""
    most = max(
        (b["value"] for r in rows for b in r["bars"] if b["value"] is not None), default=None
    )
    middle = (len(rows) + 1) // 2 if len(rows) > 5 else len(rows)
    body = pair(
        svg.bars(rows[:middle], label, most),
        svg.bars(rows[middle:], f"{label}, continued", most) if rows[middle:] else "",
    )
    return fold(title, f"{len(rows)} rows", body, False) if len(rows) > MANY else body


def thresholds(tensor: dict) -> list[float]:
    """Where a tensor is clipped, in its own units: [t] where its integers begin at 0, else [-t, t].
    Of many channels, the largest.
    """
    if ends := [e for e in units.numbers(tensor.get("range")) if e]:
        return ends
    t = max((abs(v) for v in units.numbers(tensor.get("threshold"))), default=0.0)
    if not t:
        return []
    lowest = min(units.numbers(tensor.get("levels")), default=-1.0)
    return [t] if lowest >= 0 else [-t, t]


def kind_of(tensor: dict) -> str:
    return str(tensor.get("kind") or "tensor")


def tensor_figure(tensor: dict) -> str:
    """One tensor: its histogram (log counts) with the thresholds, and threshold, largest value,
    scale, zero point and SQNR below.
    """
    name, bins = str(tensor.get("name") or ""), child(tensor, "histogram")
    low, high = number(bins.get("low")), number(bins.get("high"))
    counts: list = found if isinstance(found := bins.get("counts"), list) else []
    label = (
        f"{name}, {kind_of(tensor)}: threshold {units.span(tensor.get('threshold'))}, "
        f"largest {units.span(tensor.get('maximum'))}"
    )
    chart = (
        svg.histogram(counts, low, high, thresholds(tensor), label)
        if low is not None and high is not None
        else ""
    )
    lines = [
        f"threshold {units.span(tensor.get('threshold'))} of {units.span(tensor.get('maximum'))}",
        f"scale {units.span(tensor.get('scale'))}, zero {units.span(tensor.get('zero_point'))}",
        f"SQNR {units.decibels(tensor.get('sqnr_db'))}",
    ]
    return element(
        "figure",
        chart,
        element(
            "figcaption", element("b", escape(name)), "<br/>".join(escape(line) for line in lines)
        ),
    )


def quantization(part: dict) -> str:
    """Every quantised tensor's histogram with its threshold, in one fold per kind, and the SQNR in
    dB of each layer's tensors.
    """
    tensors = items(part, "tensors")
    if not tensors:
        return ""
    facts = [
        f"{units.digits(part['bits'])} bits" if number(part.get("bits")) is not None else None,
        f"thresholds by {part['threshold']}" if part.get("threshold") else None,
        f"for {part['target']}" if part.get("target") else None,
        f"calibrated on {units.digits(part['samples'])} samples"
        if number(part.get("samples")) is not None
        else None,
    ]
    facts += [f"repaired by {', '.join(names)}" for names in [texts(part.get("repair"))] if names]
    facts += [
        f"left in float by name: {', '.join(names)}"
        for names in [texts(part.get("keep"))]
        if names and not child(part, "fallback") and not child(part, "timing")
    ]
    kinds = list(dict.fromkeys(kind_of(t) for t in tensors))
    folds = ""
    for i, kind in enumerate(kinds):
        mine = [t for t in tensors if kind_of(t) == kind]
        figures = element("div", *(tensor_figure(t) for t in mine), class_="tensors")
        folds += fold(
            f"{kind.capitalize()}s", f"{len(mine)} tensors", figures, i == 0 and len(mine) <= MANY
        )
    shown = most_clipped(tensors)
    clipping = (
        titled(
            f"What clipping does: {shown.get('name')}",
            element("p", escape(CLIPPING), class_="note") + figure(shown),
        )
        if shown
        else ""
    )
    hint = element(
        "p",
        "Log counts of the values. Dashed: the clipping threshold; what lies beyond it, tinted, "
        "saturates.",
        class_="note",
    )
    note = ", ".join(f for f in facts if f)
    return section(
        "Quantisation",
        note[:1].upper() + note[1:] + "." if note else "",
        placed(child(part, "timing")),
        fell_back(child(part, "fallback")),
        clipping,
        hint,
        folds,
        tensor_errors(tensors, kinds),
    )


def calls(part: dict, result: str) -> str:
    """What one call takes in float, with all layers quantised, and as it is, under the key
    `result`; nothing where it was not measured.
    """
    times = child(part, "milliseconds")
    steps = [
        f"{n} {units.milliseconds(times.get(k))}"
        for n, k in (("float", "float"), ("all quantised", "all_quantized"), ("as it is", result))
    ]
    return f" One call on {runtime_name(part.get('runtime'))}: {', '.join(steps)}." if times else ""


def placed(part: dict) -> str:
    """What placement by time left in float."""
    layers = texts(part.get("layers"))
    said = (
        f"Placed by time: {', '.join(layers) if layers else 'no layer'} "
        f"{'stays' if len(layers) < 2 else 'stay'} in float."
        if part
        else ""
    )
    return element("p", escape(said + calls(part, "placed"))) if part else ""


def fell_back(part: dict) -> str:
    """What a limit on the accuracy brought about: which layers are not quantised, what that costs
    in milliseconds, and how sensitive each layer is.
    """
    layers = texts(part.get("layers"))
    if not part:
        return ""
    ends = part.get("interval")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    drop = (
        f"{percent_points(part.get('drop'))} [{percent_points(low)}, "
        f"{percent_points(high)}], n = {units.digits(part.get('n'))}"
    )
    to = "in float" if part.get("precision") == "float" else f"in {part.get('precision')} bits"
    metric = METRICS.get(str(part.get("metric")), str(part.get("metric")))
    said = (
        f"The {metric} may fall by {percent_points(part.get('limit'))}; with every layer "
        f"quantised it falls by {percent_points(part.get('all_quantized'))}. "
    )
    kept = (
        f"{len(layers)} of {len(items(part, 'sensitivity'))} layers stay {to}: "
        f"{', '.join(layers)}; it falls by {drop}."
    )
    said += kept if layers else "So every layer is quantised."
    said += calls(part, "fallback")
    rows = [
        {
            "name": s.get("layer"),
            "value": units.decibels(s.get("sqnr_db")),
            "bars": [
                {
                    "value": number(s.get("sqnr_db")),
                    "class": "s1" if s.get("layer") in layers else "s0",
                }
            ],
        }
        for s in items(part, "sensitivity")
    ]
    note = element(
        "p",
        "The output's signal over what quantising one layer alone changes in it, in dB: shorter "
        "is more sensitive. Orange: fell back.",
        class_="note",
    )
    bars = fold(
        "Sensitivity of layers",
        f"{len(rows)} layers",
        note + halves(rows, "Sensitivity of each layer, dB", "every layer"),
        len(rows) <= MANY,
    )
    return element("h3", "Accuracy limit") + element("p", escape(said)) + (bars if rows else "")


def percent_points(value: Any) -> str:
    """A fraction as points: 0.005 is `0.50 points`."""
    n = number(value)
    return units.DASH if n is None else f"{100 * n:.2f}{NBSP}points".replace("-", "−")


def tensor_errors(tensors: list[dict], kinds: list[str]) -> str:
    """The SQNR in dB of each tensor, those of one layer together; a bar of 0 dB has no width."""
    rows = []
    for name in dict.fromkeys(str(t.get("name") or "") for t in tensors):
        mine = [
            t
            for t in tensors
            if str(t.get("name") or "") == name and number(t.get("sqnr_db")) is not None
        ]
        bars = [
            {
                "value": number(t["sqnr_db"]),
                "class": f"s{kinds.index(kind_of(t)) % 6}",
                "title": f"{name}, {kind_of(t)}: {units.decibels(t['sqnr_db'])}",
            }
            for t in mine
        ]
        if bars:
            figures = (
                " · ".join(f"{b['value']:.1f}" for b in bars)
                if len(bars) < 4
                else f"lowest {min(b['value'] for b in bars):.1f}"
            )
            rows.append({"name": name, "value": f"{figures}{NBSP}dB", "bars": bars})
    if not rows:
        return ""
    note = element(
        "p",
        "Signal to quantisation noise, in dB: longer is better; 6 dB more is half the error.",
        class_="note",
    )
    names = legend([(k, f"s{i % 6}", None) for i, k in enumerate(kinds)])
    return (
        element("h3", "Quantisation error per layer")
        + note
        + names
        + halves(rows, "Signal to quantisation noise of each layer, dB", "every layer")
    )


def verification(checks: list[dict]) -> str:
    """Per runtime: how its answers and its integers agree with the reference, layer by layer."""
    blocks = []
    for check in checks:
        score = child(check, "agreement")
        facts = []
        if number(score.get("value")) is not None:
            figure, small = show_score(score)
            facts.append(f"Same answer on {figure} of the samples {small}".strip())
        elif number(check.get("samples")) is not None:
            facts.append(f"{units.digits(check['samples'])} samples")
        if number(check.get("sqnr_db")) is not None:
            facts.append(f"output SQNR {units.decibels(check['sqnr_db'])}")
        if check.get("note"):
            facts.append(str(check["note"]))
        departure = child(check, "first_departure")
        loud = ""
        if departure:
            why = f": {departure['why']}" if departure.get("why") else ""
            loud = element(
                "p",
                element("b", "First departure"),
                escape(f" at {departure.get('layer') or 'an unnamed layer'}{why}"),
                class_="departure",
            )
        rows = [
            [
                (str(layer.get("layer") or ""), str(layer.get("operator") or "")),
                (units.digits(layer.get("max_off_by")), ""),
                (exact_share(layer.get("exact")), ""),
                (units.decibels(layer.get("sqnr_db")), ""),
                (str(layer.get("note") or ""), ""),
            ]
            for layer in items(check, "layers")
        ]
        head = ("layer", "off by", "exact", "SQNR", "note")
        worst = max(
            (number(layer.get("max_off_by")) or 0.0 for layer in items(check, "layers")),
            default=0.0,
        )
        body = fold(
            "Every layer",
            f"{len(rows)} layers, off by at most {units.digits(worst)}",
            table(head, rows, words=4),
            worst > 1 and len(rows) <= MANY,
        )
        blocks.append(
            element("h3", escape(runtime_name(check.get("runtime") or "")))
            + (element("p", escape("; ".join(facts))) if facts else "")
            + loud
            + body
        )
    note = (
        "The integers of each runtime against Mirabelle's own integer arithmetic on the same "
        "inputs. "
        "Off by: the largest difference, in quantisation steps. Exact: the share of values that "
        "are equal."
    )
    return section("Does the runtime compute the same?", note, *blocks)


def exact_share(value: Any) -> str:
    """A share that reads 100 % only where it is 1: 0.99996 is `> 99.99 %`."""
    n = number(value)
    return f">{NBSP}99.99{NBSP}%" if n is not None and 0.99995 <= n < 1 else units.percent(n)


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
    """Rows for `svg.bars`, in the order of execution: milliseconds of each layer before and after,
    int8 in a colour of its own.
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
        chart = svg.bars(rows, f"Milliseconds of each layer on {runtime_name(runtime)}")
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


def training(runs: list[dict]) -> str:
    """Per training: the losses by epoch and, on a scale of its own, the validation score by
    epoch.
    """
    blocks = []
    for run in runs:
        history = items(run, "history")
        keys = [
            k
            for k in dict.fromkeys(k for h in history for k in h)
            if k not in ("epoch", "seconds", "lr")
            and any(number(h.get(k)) is not None for h in history)
        ]
        scores = [k for k in keys if k.startswith("validation")]
        losses = [k for k in keys if k not in scores]
        charts = []
        for names, label in ((losses, "loss"), (scores, "validation score")):
            series = [{"name": k, "values": [number(h.get(k)) for h in history]} for k in names]
            share = all(k.endswith(("top1", "top5")) for k in names)
            chart = svg.lines(
                series,
                "epoch",
                label,
                y_format=(lambda v: f"{100 * v:.4g}{NBSP}%") if share else units.digits,
            )
            charts.append(
                element(
                    "div",
                    legend([(s["name"], f"s{i % 6}", 0) for i, s in enumerate(series)]),
                    chart,
                )
                if chart
                else ""
            )
        took = (
            f", {units.seconds(run['seconds'])}" if number(run.get("seconds")) is not None else ""
        )
        if any(charts):
            blocks.append(
                element(
                    "h3", escape(f"{run.get('stage') or 'training'}: {len(history)} epochs{took}")
                )
                + pair(*[c for c in charts if c])
            )
    return section("Training", "", *blocks)
