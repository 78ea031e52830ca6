"""What was quantized and how: thresholds, what stayed in float, and the error of each tensor."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mirabelle.report import histograms, units
from mirabelle.report.parts import (
    MANY,
    METRICS,
    child,
    fold,
    halves,
    items,
    legend,
    runtime_name,
    section,
    texts,
    titled,
)
from mirabelle.report.picture import figure, most_clipped
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number

CLIPPING = (
    "Gray: the tensor's values. Columns: the steps that they are rounded to, as high as what "
    "falls to each; orange: what saturates at an end. "
    "With the threshold (dashed) inside, steps are finer where the values are. The tensor that "
    "gained most."
)


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
        histograms.histogram(counts, low, high, thresholds(tensor), label)
        if low is not None and high is not None
        else ""
    )
    rule = f" by {tensor['rule']}" if tensor.get("rule") else ""
    lines = [
        f"threshold {units.span(tensor.get('threshold'))} of "
        f"{units.span(tensor.get('maximum'))}{rule}",
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
    """Every quantized tensor's histogram with its threshold, in one fold per kind, and the SQNR in
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
        "Quantization",
        note[:1].upper() + note[1:] + "." if note else "",
        rules(tensors),
        placed(child(part, "timing")),
        fell_back(child(part, "fallback")),
        clipping,
        hint,
        folds,
        tensor_errors(tensors, kinds),
    )


def rules(tensors: list[dict]) -> str:
    """Which rules chose the thresholds, and why; nothing where one was given for all."""
    chosen = [str(t["rule"]) for t in tensors if t.get("chosen") and t.get("rule")]
    if not chosen:
        return ""
    counts = ", ".join(f"{n} by {rule}" for rule, n in Counter(chosen).most_common())
    said = (
        f"Thresholds were chosen tensor by tensor: {counts}. Each rule proposes where to clip; the "
        "one was taken whose clipping and rounding changes the network's outputs least, by the "
        "gradients of samples held out. Where outputs do not tell them apart, it is mse. "
    )
    return element("p", escape(said), element("a", "The table of layers", href="#every-layer"), ".")


def calls(part: dict, result: str) -> str:
    """What one call takes in float, with all layers quantized, and as it is, under the key
    `result`; nothing where it was not measured.
    """
    times = child(part, "milliseconds")
    steps = [
        f"{n} {units.milliseconds(times.get(k))}"
        for n, k in (("float", "float"), ("all quantized", "all_quantized"), ("as it is", result))
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
    """What a limit on the accuracy brought about: which layers are not quantized, what that costs
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
        f"quantized it falls by {percent_points(part.get('all_quantized'))}. "
    )
    kept = (
        f"{len(layers)} of {len(items(part, 'sensitivity'))} layers stay {to}: "
        f"{', '.join(layers)}; it falls by {drop}."
    )
    said += kept if layers else "So every layer is quantized."
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
        "The output's signal over what quantizing one layer alone changes in it, in dB: shorter "
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
        "Signal to quantization noise, in dB: longer is better; 6 dB more is half the error.",
        class_="note",
    )
    names = legend([(k, f"s{i % 6}", None) for i, k in enumerate(kinds)])
    return (
        element("h3", "Quantization error per layer")
        + note
        + names
        + halves(rows, "Signal to quantization noise of each layer, dB", "every layer")
    )
