"""What was quantized and how: thresholds, what stayed in float, and the error of each tensor."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mirabelle.report import histograms, units
from mirabelle.report.parts import (
    MANY,
    METRICS,
    fold,
    halves,
    legend,
    runtime_name,
    section,
    texts,
    titled,
)
from mirabelle.report.picture import figure, most_clipped
from mirabelle.report.schema import Fallback, Quantization, QuantizedTensor, Timing
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number

CLIPPING = (
    "Gray: the tensor's values. Columns: the steps that they are rounded to, as high as what "
    "falls to each; orange: what saturates at an end. "
    "With the threshold (dashed) inside, steps are finer where the values are. The tensor that "
    "gained most."
)


def thresholds(tensor: QuantizedTensor) -> list[float]:
    """Where a tensor is clipped, in its own units: [t] where its integers begin at 0, else [-t, t].
    Of many channels, the largest.
    """
    if ends := [e for e in units.numbers(tensor.range) if e]:
        return ends
    t = max((abs(v) for v in units.numbers(tensor.threshold)), default=0.0)
    if not t:
        return []
    lowest = min(units.numbers(tensor.levels), default=-1.0)
    return [t] if lowest >= 0 else [-t, t]


def kind_of(tensor: QuantizedTensor) -> str:
    return str(tensor.kind or "tensor")


def tensor_figure(tensor: QuantizedTensor) -> str:
    """One tensor: its histogram (log counts) with the thresholds, and threshold, largest value,
    scale, zero point and SQNR below.
    """
    name, bins = str(tensor.name or ""), tensor.histogram
    low, high = bins.low, bins.high
    counts: list = found if isinstance(found := bins.counts, list) else []
    label = (
        f"{name}, {kind_of(tensor)}: threshold {units.span(tensor.threshold)}, "
        f"largest {units.span(tensor.maximum)}"
    )
    chart = (
        histograms.histogram(counts, low, high, thresholds(tensor), label)
        if low is not None and high is not None
        else ""
    )
    rule = f" by {tensor.rule}" if tensor.rule else ""
    lines = [
        f"threshold {units.span(tensor.threshold)} of {units.span(tensor.maximum)}{rule}",
        f"scale {units.span(tensor.scale)}, zero {units.span(tensor.zero_point)}",
        f"SQNR {units.decibels(tensor.sqnr_db)}",
    ]
    return element(
        "figure",
        chart,
        element(
            "figcaption", element("b", escape(name)), "<br/>".join(escape(line) for line in lines)
        ),
    )


def _calls(named: tuple[str, Any]) -> str:
    """`mean`, `softplus (3 times)`."""
    name, count = named
    return f"{name} ({count} times)" if isinstance(count, int) and count > 1 else name


def quantization(part: Quantization) -> str:
    """Every quantized tensor's histogram with its threshold, in one fold per kind, and the SQNR in
    dB of each layer's tensors.
    """
    tensors = part.tensors
    if not tensors:
        return ""
    facts = [
        f"{units.digits(part.bits)} bits" if part.bits is not None else None,
        f"thresholds by {part.threshold}" if part.threshold else None,
        f"for {part.target}" if part.target else None,
        f"calibrated on {units.digits(part.samples)} samples" if part.samples is not None else None,
    ]
    facts += [f"repaired by {', '.join(names)}" for names in [texts(part.repair)] if names]
    facts += [
        f"left in float by name: {', '.join(names)}"
        for names in [texts(part.keep)]
        if names and not part.fallback and not part.timing
    ]
    if part.float_operators:
        facts.append(f"operators in float: {', '.join(map(_calls, part.float_operators.items()))}")
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
            f"What clipping does: {shown.name}",
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
        placed(part.timing),
        fell_back(part.fallback),
        clipping,
        hint,
        folds,
        tensor_errors(tensors, kinds),
    )


def rules(tensors: list[QuantizedTensor]) -> str:
    """Which rules chose the thresholds, and why; nothing where one was given for all."""
    chosen = [str(t.rule) for t in tensors if t.chosen and t.rule]
    if not chosen:
        return ""
    counts = ", ".join(f"{n} by {rule}" for rule, n in Counter(chosen).most_common())
    said = (
        f"Thresholds were chosen tensor by tensor: {counts}. Each rule proposes where to clip; the "
        "one was taken whose clipping and rounding changes the network's outputs least, by the "
        "gradients of samples held out. Where outputs do not tell them apart, it is mse. "
    )
    return element("p", escape(said), element("a", "The table of layers", href="#every-layer"), ".")


def calls(part: Timing | Fallback, result: str) -> str:
    """What one call takes in float, with all layers quantized, and as it is, under the key
    `result`; nothing where it was not measured.
    """
    times = part.milliseconds
    steps = [
        f"{n} {units.milliseconds(times.get(k))}"
        for n, k in (("float", "float"), ("all quantized", "all_quantized"), ("as it is", result))
    ]
    return f" One call on {runtime_name(part.runtime)}: {', '.join(steps)}." if times else ""


def placed(part: Timing) -> str:
    """What placement by time left in float."""
    layers = texts(part.layers)
    said = (
        f"Placed by time: {', '.join(layers) if layers else 'no layer'} "
        f"{'stays' if len(layers) < 2 else 'stay'} in float."
        if part
        else ""
    )
    return element("p", escape(said + calls(part, "placed"))) if part else ""


def fell_back(part: Fallback) -> str:
    """What a limit on the accuracy brought about: which layers are not quantized, what that costs
    in milliseconds, and how sensitive each layer is.
    """
    layers = texts(part.layers)
    if not part:
        return ""
    ends = part.interval
    low, high = ends if len(ends) == 2 else (None, None)
    drop = (
        f"{percent_points(part.drop)} [{percent_points(low)}, "
        f"{percent_points(high)}], n = {units.digits(part.n)}"
    )
    to = "in float" if part.precision == "float" else f"in {part.precision} bits"
    metric = METRICS.get(str(part.metric), str(part.metric))
    said = (
        f"The {metric} may fall by {percent_points(part.limit)}; with every layer "
        f"quantized it falls by {percent_points(part.all_quantized)}. "
    )
    kept = (
        f"{len(layers)} of {len(part.sensitivity)} layers stay {to}: "
        f"{', '.join(layers)}; it falls by {drop}."
    )
    said += kept if layers else "So every layer is quantized."
    said += calls(part, "fallback")
    rows = [
        {
            "name": s.layer,
            "value": units.decibels(s.sqnr_db),
            "bars": [{"value": s.sqnr_db, "class": "s1" if s.layer in layers else "s0"}],
        }
        for s in part.sensitivity
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


def tensor_errors(tensors: list[QuantizedTensor], kinds: list[str]) -> str:
    """The SQNR in dB of each tensor, those of one layer together; a bar of 0 dB has no width."""
    rows = []
    for name in dict.fromkeys(str(t.name or "") for t in tensors):
        mine = [t for t in tensors if str(t.name or "") == name and t.sqnr_db is not None]
        bars = [
            {
                "value": t.sqnr_db,
                "class": f"s{kinds.index(kind_of(t)) % 6}",
                "title": f"{name}, {kind_of(t)}: {units.decibels(t.sqnr_db)}",
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
