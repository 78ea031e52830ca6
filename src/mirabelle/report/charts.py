"""Charts that a section places: points with whiskers, curves, bars in groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mirabelle.report.svg import (
    HEIGHT,
    Scale,
    drawing,
    element,
    linear,
    padded,
    short,
    text,
    ticks,
    titled,
)
from mirabelle.report.units import digits

LEFT, RIGHT, TOP, BOTTOM = 48, 350, 26, 212  # the edges of the plotting area
GLYPH = 7.0  # the width of a character at the charts' font size, estimated generously
FAR = 16  # from here on a line joins a label to its point


def marker(kind: int, x: float, y: float, title: str = "") -> str:
    """A point of series `kind`: circle, square, triangle or diamond, so that color is not the only
    difference.
    """
    hint = titled(title) if title else ""
    if kind % 4 == 0:
        return element("circle", hint, cx=x, cy=y, r=4.5, class_="mark")
    if kind % 4 == 1:
        return element("rect", hint, x=x - 4, y=y - 4, width=8, height=8, class_="mark")
    corners = (
        [(0, -5.5), (5, 4), (-5, 4)]
        if kind % 4 == 2
        else [(0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)]
    )
    return element(
        "polygon",
        hint,
        points=" ".join(f"{x + dx:.6g},{y + dy:.6g}" for dx, dy in corners),
        class_="mark",
    )


def axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    y_label: str,
    x_format=digits,
    y_format=digits,
):
    """The frame of a plot: grid, tick labels and names of the axes. Returns the markup and the two
    scales (value to pixel).
    """
    x, y = linear(*x_range, LEFT, RIGHT), linear(*y_range, BOTTOM, TOP)
    parts = [text(y_label, 0, 12, class_="axis"), text(x_label, RIGHT, HEIGHT - 4, "end", "axis")]
    for v in ticks(*y_range):
        parts.append(element("line", x1=LEFT, x2=RIGHT, y1=y(v), y2=y(v), class_="grid"))
        parts.append(text(y_format(v), LEFT - 6, y(v) + 4, "end"))
    for v in ticks(*x_range):
        parts.append(element("line", x1=x(v), x2=x(v), y1=BOTTOM, y2=BOTTOM + 4, class_="tick"))
        anchor = "end" if x(v) > RIGHT - 8 else "middle"
        parts.append(text(x_format(v), x(v), BOTTOM + 18, anchor))
    parts.append(element("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="tick"))
    return "".join(parts), x, y


def free_place(
    x: float, y: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where a label `width` wide goes beside the point (x, y): the nearest place inside the plot
    that crosses none of the boxes taken.

    Boxes are (left, top, right, bottom). Returns the left end of the label's baseline and adds its
    box to `taken`.
    """
    sides = [
        (d, s, a) for d in (8, 20, 32, 44, 56, 70, 84) for s in (-1, 1, 0) for a in (0.5, 0, 1)
    ]
    best = None
    for distance, side, align in sides:
        if side == 0 and align == 0.5:
            continue
        left = x - width * align if side else (x + distance if align == 0 else x - distance - width)
        base = y + side * distance + (9 if side > 0 else 0 if side < 0 else 4)
        box = (left, base - 10, left + width, base + 3)
        if box[0] < LEFT or box[2] > RIGHT + 8 or box[1] < TOP - 8 or box[3] > BOTTOM:
            continue
        best = best or box
        if not any(
            box[0] < right and box[2] > left and box[1] < bottom and box[3] > top
            for left, top, right, bottom in taken
        ):
            best = box
            break
    best = best or (min(max(x - width / 2, LEFT), RIGHT - width), y - 18, x + width / 2, y - 5)
    taken.append(best)
    return best[0], best[3] - 3


def scatter(
    series: Sequence[Sequence[dict]],
    x_label: str,
    y_label: str,
    y_format=digits,
    x_format=digits,
    limits: Sequence[dict] = (),
    trails: bool = True,
) -> str:
    """Series of labeled points with vertical whiskers in one plot, each joined in its order by a
    dotted line where `trails` is set. The horizontal axis begins at 0.

    series: points {"label", "x", "y", "low", "high", "title"}; low and high may be None, a label
    may be empty. limits: {"axis" ("x" or "y"), "value", "title"}, drawn as dashed lines.
    """
    points = [p for one in series for p in one]
    ends = [v for p in points for v in (p["y"], p["low"], p["high"]) if v is not None]
    ends += [line["value"] for line in limits if line["axis"] == "y"]
    far = [p["x"] for p in points] + [v["value"] for v in limits if v["axis"] == "x"]
    frame, x, y = axes(
        (0.0, max(far) * 1.1 or 1.0),
        padded(ends),
        x_label,
        y_label,
        y_format=y_format,
        x_format=x_format,
    )
    taken = [
        box
        for p in points
        for box in (
            (x(p["x"]) - 6, y(p["y"]) - 6, x(p["x"]) + 6, y(p["y"]) + 6),
            (x(p["x"]) - 4, y(p["high"]), x(p["x"]) + 4, y(p["low"]))
            if None not in (p["low"], p["high"])
            else None,
        )
        if box
    ]
    groups = []
    for one in series if trails else ():
        places = [(x(p["x"]), y(p["y"])) for p in one]
        for (x0, y0), (x1, y1) in pairwise(places):
            along = [(x0 + (x1 - x0) * i / 20, y0 + (y1 - y0) * i / 20) for i in range(1, 20)]
            taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in along]
    for kind, one in enumerate(series):
        path = " ".join(f"{x(p['x']):.6g},{y(p['y']):.6g}" for p in one)
        trail = element("polyline", points=path, class_="trail") if trails else ""
        marks = [_whiskered(p, kind, x, y) for p in one]
        labels = [_labeled(p, x(p["x"]), y(p["y"]), taken) for p in one if p["label"]]
        groups.append(element("g", trail, *marks, *labels, class_=f"s{kind % 6}"))
    label = f"{y_label} against {x_label}: {', '.join(p['title'] for p in points)}"
    return drawing(label, frame, *(_limit_line(v, x, y) for v in limits), *groups)


def _whiskered(p: dict, kind: int, x: Scale, y: Scale) -> str:
    px, whisker = x(p["x"]), ""
    if None not in (p["low"], p["high"]):
        low, high, left = y(p["low"]), y(p["high"]), px - 3
        ends = f"M{left:.6g} {low:.6g}h6M{left:.6g} {high:.6g}h6"
        whisker = element("path", d=f"M{px:.6g} {low:.6g}V{high:.6g}{ends}", class_="whisker")
    return whisker + marker(kind, px, y(p["y"]), p["title"])


def _labeled(p: dict, px: float, py: float, taken: list) -> str:
    width = len(p["label"]) * GLYPH
    left, base = free_place(px, py, width, taken)
    near = min(max(px, left), left + width), min(max(py, base - 10), base + 3)
    joined = ""
    if math.dist(near, (px, py)) > FAR:
        joined = element("line", x1=px, y1=py, x2=near[0], y2=near[1], class_="leader")
    return joined + text(p["label"], left, base, class_="name")


def _limit_line(limit: dict, x: Scale, y: Scale) -> str:
    if limit["axis"] == "x":
        at, d = x(limit["value"]), f"M{x(limit['value']):.6g} {TOP}V{BOTTOM}"
        left = at > (LEFT + RIGHT) / 2
        anchor = "end" if left else "start"
        named = text(limit["title"], at + (-4 if left else 4), TOP + 6, anchor, "limit")
    else:
        d = f"M{LEFT} {y(limit['value']):.6g}H{RIGHT}"
        named = text(limit["title"], RIGHT, y(limit["value"]) - 4, "end", "limit")
    return element("g", titled(limit["title"]), element("path", d=d, class_="threshold"), named)


def waterfall(
    rows: list[dict], label: str, from_zero: bool = True, over: Sequence[float] = ()
) -> str:
    """What each step added or took away: a floating bar from the value before to the value after.

    rows: {"name", "value" (text below the name), "start", "end", "class"}. from_zero: the left edge
    is 0; otherwise it is a little below the smallest value, which shows small changes of large
    values. over: values that the axis covers too, so that several charts have one.
    """
    every = [*over, *(v for r in rows for v in (r["start"], r["end"]))]
    if not rows:
        return ""
    low, high = (min(0.0, *every), max(0.0, *every)) if from_zero else padded(every)
    at = linear(low, high, 0.0, 100.0)
    parts, top = [], 0
    for row in rows:
        left, right = sorted((at(row["start"]), at(row["end"])))
        hint = titled(f"{row['name']}: {row['value']}")
        bar = element(
            "rect",
            hint,
            x=f"{left:.6g}%",
            y=top + 31,
            width=f"{max(right - left, 0.6):.6g}%",
            height=10,
            class_=f"bar {row['class']}",
        )
        track = element("rect", x=0, y=top + 31, width="100%", height=10, class_="track")
        name = text(short(row["name"]), 0, top + 12, class_="row")
        parts.append(element("g", name, text(row["value"], 0, top + 26, class_="value")))
        parts += [track, bar]
        top += 52
    return element(
        "svg",
        titled(label),
        *parts,
        width="100%",
        height=top,
        role="img",
        aria_label=label,
        class_="bars",
    )


def lines(
    series: list[dict],
    x_label: str,
    y_label: str,
    y_format=digits,
    at: Sequence[float] | None = None,
    x_format=digits,
) -> str:
    """Curves; None is a gap. series: {"name", "values": [number or None]}. at: where the values
    stand, ascending; 1, 2, 3, ... unless given.
    """
    known = [v for s in series for v in s["values"] if v is not None]
    if not known:
        return ""
    longest = max(len(s["values"]) for s in series)
    places = [float(p) for p in (at or range(1, longest + 1))]
    whole = x_format if at else lambda v: f"{v:g}" if v == int(v) else ""
    frame, x, y = axes(
        (places[0], max(places[-1], places[0])),
        padded(known),
        x_label,
        y_label,
        y_format=y_format,
        x_format=whole,
    )
    parts = []
    for i, s in enumerate(series):
        runs: list[list[str]] = [[]]
        dots = []
        for place, v in zip(places, s["values"]):
            if v is None:
                runs.append([])
                continue
            runs[-1].append(f"{x(place):.6g},{y(v):.6g}")
            if longest <= 30:
                title = f"{s['name']}, {x_label} {whole(place)}: {y_format(v)}"
                dots.append(
                    element("circle", titled(title), cx=x(place), cy=y(v), r=3, class_="mark")
                )
        curves = [
            element("polyline", points=" ".join(r), class_="curve") for r in runs if len(r) > 1
        ]
        parts.append(
            element("g", titled(s["name"]), *curves, *dots, class_=f"s{i % 6} dash{i % 3}")
        )
    return drawing(
        f"{y_label} by {x_label}: {', '.join(str(s['name']) for s in series)}", frame, *parts
    )


def bars(rows: list[dict], label: str, most: float | None = None) -> str:
    """Horizontal bars in groups, a line of text above each group. Widths are percentages of the
    drawing's width, so text never scales.

    rows: {"name", "value" (text at the right), "bars": [{"value": number or None, "class",
    "title"}]}; `most` is the value of a full width, by default the largest. A bar of None or below
    0 has no width.
    """
    known = [b["value"] for r in rows for b in r["bars"] if b["value"] is not None]
    full = most or max(known, default=0.0) or 1.0
    parts, top = [], 0
    for row in rows:
        name = text(short(row["name"]), 0, top + 12, class_="row")
        group = [titled(row["name"]), name, text(row["value"], "100%", top + 12, "end", "value")]
        top += 17
        for bar in row["bars"]:
            share = min(max(100 * (bar["value"] or 0.0) / full, 0.0), 100.0)
            group.append(element("rect", x=0, y=top, width="100%", height=8, class_="track"))
            group.append(
                element(
                    "rect",
                    titled(bar.get("title", "")),
                    x=0,
                    y=top,
                    width=f"{share:.6g}%",
                    height=8,
                    class_=f"bar {bar['class']}",
                )
            )
            top += 10
        parts.append(element("g", *group))
        top += 7
    return element(
        "svg",
        titled(label),
        *parts,
        width="100%",
        height=max(top, 1),
        role="img",
        aria_label=label,
        class_="bars",
    )
