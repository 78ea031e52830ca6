"""How many channels each layer had and has."""

from __future__ import annotations

from mirabelle.report import units
from mirabelle.report.parts import halves, legend, section
from mirabelle.report.schema import LayerSize
from mirabelle.report.units import NBSP, number


def channels(layers: list[LayerSize]) -> str:
    """How many output channels each layer had before and has after: paired bars, all to one
    scale.
    """
    rows, before, after = [], 0.0, 0.0
    for layer in layers:
        b, a = number(layer.before), number(layer.after)
        before, after = before + (b or 0), after + (a or 0)
        share = f" ({100 * a / b:.0f}{NBSP}%)" if a is not None and b else ""
        name = layer.layer or ""
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
