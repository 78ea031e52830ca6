"""What is left of sparse layers, the form that each runs in, and when sparse is faster."""

from __future__ import annotations

from mirabelle.report import charts, units
from mirabelle.report.parts import halves, legend, pair, section, table, titled
from mirabelle.report.schema import BreakEven, Forms, SparseLayer
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP


def sparsity(layers: list[SparseLayer], forms: Forms) -> str:
    """What is left of each sparse layer's weights, and, where each layer's form was chosen, which
    and how long it takes in each.
    """
    rows, size, left = [], 0.0, 0.0
    for layer in layers:
        total, zeros = layer.size, layer.zeros
        if not total or zeros is None:
            continue
        size, left = size + total, left + total - zeros
        name = layer.layer or ""
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


def _forms(forms: Forms) -> str:
    rows = []
    for layer in forms.layers:
        times = layer.milliseconds
        cells = [(units.milliseconds(times.get(f)), "") for f in ("dense", "1x1", "4x1")]
        zeros = layer.zeros
        rows.append(
            [
                (str(layer.name or ""), str(layer.kind or "")),
                ("" if zeros is None else f"{100 * zeros:.1f}{NBSP}%", ""),
                *cells,
                (str(layer.form or ""), ""),
            ]
        )
    note = (
        ""
        if forms.sparse
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


def break_even(found: BreakEven) -> str:
    """How many times as fast sparse is as dense at each share of zeros, a panel for each kind of
    layer.
    """
    at = [v for v in found.sparsities if v is not None]
    panels = []
    for kind, forms in found.speedups.items():
        series = [
            {
                "name": "zeros "
                f"{'of single weights' if form == '1x1' else 'in blocks of 4 outputs'}",
                "values": values,
            }
            for form, values in forms.items()
        ]
        if not at or not any(v is not None for s in series for v in s["values"]):
            continue
        series.append({"name": "as fast as dense", "values": [1.0] * len(at)})
        cross = [
            f"{form}: {'never' if v is None else f'{100 * v:.0f}{NBSP}%'}"
            for form, v in found.break_even.get(kind, {}).items()
        ]
        names = legend([(s["name"], f"s{i}", 0) for i, s in enumerate(series)])
        drawn = charts.lines(
            series,
            "share of zeros",
            "times as fast",
            at=at,
            x_format=lambda v: f"{100 * v:.3g}{NBSP}%",
        )
        panels.append(titled(f"{kind} (break-even {', '.join(cross)})", names + drawn))
    most = [found.limits.gmacs, found.limits.gigabytes]
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
