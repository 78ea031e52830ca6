"""Curves one above the other on one horizontal axis: what a training saw, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.report.charts import LEFT, RIGHT, marker
from mirabelle.report.svg import Scale, drawing, element, linear, padded, text, ticks, titled
from mirabelle.report.units import digits

HEAD, FOOT = 26, 14  # above a panel, for its name, and below it
AXIS = 30  # below the last panel


@dataclass(frozen=True)
class Line:
    """points: (x, y), ascending in x. number: of the color and the dashes. marks: single points
    are drawn, too.
    """

    name: str
    points: Sequence[tuple[float, float]]
    number: int = 0
    marks: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines on one vertical axis. height: of the plotting area, in units of the drawing."""

    label: str
    lines: Sequence[Line]
    show: Callable[[Any], str] = digits
    height: int = 150


def stacked(panels: Sequence[Panel], x_label: str, label: str) -> str:
    """Panels on one horizontal axis, which begins at 0; nothing where no line has a point."""
    panels = [p for p in panels if any(line.points for line in p.lines)]
    if not panels:
        return ""
    far = max(x for p in panels for line in p.lines for x, _ in line.points)
    x = linear(0.0, max(far, 1.0), LEFT, RIGHT)
    parts, top = [], 0
    for panel in panels:
        parts.append(_panel(panel, x, top + HEAD, x_label))
        top += HEAD + panel.height + FOOT
    bottom = top - FOOT
    for v in ticks(0.0, max(far, 1.0)):
        parts.append(element("line", x1=x(v), x2=x(v), y1=bottom, y2=bottom + 4, class_="tick"))
        parts.append(text(digits(v), x(v), bottom + 16, "end" if x(v) > RIGHT - 8 else "middle"))
    parts.append(text(x_label, RIGHT, bottom + AXIS, "end", "axis"))
    return drawing(label, *parts, height=bottom + AXIS + 4)


def _panel(panel: Panel, x: Scale, top: int, x_label: str) -> str:
    low, high = padded([v for line in panel.lines for _, v in line.points])
    y = linear(low, high, top + panel.height, top)
    parts = [text(panel.label, 0, top - 14, class_="axis")]
    for v in ticks(low, high, 5 if panel.height > 100 else 3):
        parts.append(element("line", x1=LEFT, x2=RIGHT, y1=y(v), y2=y(v), class_="grid"))
        parts.append(text(panel.show(v), LEFT - 6, y(v) + 4, "end"))
    base = top + panel.height
    parts.append(element("line", x1=LEFT, x2=RIGHT, y1=base, y2=base, class_="tick"))
    return "".join(parts) + "".join(_line(v, x, y, panel.show, x_label) for v in panel.lines)


def _line(line: Line, x: Scale, y: Scale, show: Callable[[Any], str], x_label: str) -> str:
    places = " ".join(f"{x(a):.5g},{y(b):.5g}" for a, b in line.points)
    body = [titled(line.name)]
    if len(line.points) > 1:
        body.append(element("polyline", points=places, class_="curve"))
    if line.marks or len(line.points) == 1:
        body += [
            marker(line.number, x(a), y(b), f"{line.name}, {x_label} {a:g}: {show(b)}")
            for a, b in line.points
        ]
    return element("g", *body, class_=f"s{line.number % 6} dash{line.number % 3}")
