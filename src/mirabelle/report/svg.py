"""Charts as inline SVG. Every function takes numbers and returns text; lengths are in pixels of a
360-wide drawing unless said otherwise.

Colours are CSS classes: `s0`, `s1`, ... set `currentColor` for a series. Every mark carries a
`<title>`, which browsers show as a tooltip.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from mirabelle.report.units import digits, number

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 350, 26, 212  # the edges of the plotting area
GLYPH = 7.0  # the width of a character at the charts' font size, estimated generously
FAR = 16  # from here on a line joins a label to its point
NAME_LENGTH = 26

Scale = Callable[[float], float]


def escape(value: Any) -> str:
    """Text that is safe inside elements and quoted attributes; characters that HTML and XML do not
    allow are replaced.
    """
    text = re.sub(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]", "\ufffd", str(value)
    )
    return html.escape(text, quote=True)


def element(tag: str, *body: str, **attributes: Any) -> str:
    """`<tag a="b">body</tag>`. The body is markup already; attributes are escaped, None is left
    out, `_` in a name is `-`, `class_` is `class`.
    """
    pairs = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{escape(f"{v:.6g}" if isinstance(v, float) else v)}"'
        for k, v in attributes.items()
        if v is not None
    )
    return f"<{tag}{pairs}>{''.join(body)}</{tag}>"


def text(value: Any, x: Any, y: Any, anchor: str | None = None, class_: str | None = None) -> str:
    return element("text", escape(value), x=x, y=y, text_anchor=anchor, class_=class_)


def titled(value: Any) -> str:
    return element("title", escape(value))


def short(name: Any, most: int = NAME_LENGTH) -> str:
    """A long name without its middle; the end of a layer's name tells more than its beginning."""
    name = str(name)
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """The map of [low, high] onto [start, end]; an empty range goes to the middle."""
    if high == low:
        return lambda _: (start + end) / 2
    return lambda v: start + (v - low) / (high - low) * (end - start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) inside [low,
    high].
    """
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of the values with room around it; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def marker(kind: int, x: float, y: float, title: str = "") -> str:
    """A point of series `kind`: circle, square, triangle or diamond, so that colour is not the only
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


def drawing(
    label: str, *body: str, class_: str = "plot", width: float = WIDTH, height: float = HEIGHT
) -> str:
    """A drawing that scales with the page; `label` is what a screen reader says."""
    return element(
        "svg",
        titled(label),
        *body,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        class_=class_,
    )


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
    points: list[dict],
    kind: int,
    all_points: list[dict],
    x_label: str,
    y_label: str,
    y_format=digits,
) -> str:
    """One series of labelled points with vertical whiskers, joined in their order by a dotted line.
    The horizontal axis begins at 0.

    points: {"label", "x", "y", "low", "high", "title"}; low and high may be None. kind: the number
    of the series, for its colour and marker. all_points: every point of the panels that share these
    axes.
    """
    ends = [v for p in all_points for v in (p["y"], p["low"], p["high"]) if v is not None]
    frame, x, y = axes(
        (0.0, max(p["x"] for p in all_points) * 1.1 or 1.0),
        padded(ends),
        x_label,
        y_label,
        y_format=y_format,
    )
    taken = [(x(p["x"]) - 6, y(p["y"]) - 6, x(p["x"]) + 6, y(p["y"]) + 6) for p in points]
    taken += [
        (x(p["x"]) - 4, y(p["high"]), x(p["x"]) + 4, y(p["low"]))
        for p in points
        if None not in (p["low"], p["high"])
    ]
    places = [(x(p["x"]), y(p["y"])) for p in points]
    for (x0, y0), (x1, y1) in pairwise(places):
        along = [(x0 + (x1 - x0) * i / 20, y0 + (y1 - y0) * i / 20) for i in range(1, 20)]
        taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in along]
    path = " ".join(f"{a:.6g},{b:.6g}" for a, b in places)
    trail, marks, labels = element("polyline", points=path, class_="trail"), [], []
    for p in points:
        px = x(p["x"])
        if None not in (p["low"], p["high"]):
            low, high = y(p["low"]), y(p["high"])
            marks.append(
                element(
                    "path",
                    d=f"M{px:.6g} {low:.6g}V{high:.6g}M{px - 3:.6g} {low:.6g}h6M{px - 3:.6g} "
                    f"{high:.6g}h6",
                    class_="whisker",
                )
            )
        marks.append(marker(kind, px, y(p["y"]), p["title"]))
        width = len(p["label"]) * GLYPH
        left, base = free_place(px, y(p["y"]), width, taken)
        near = min(max(px, left), left + width), min(max(y(p["y"]), base - 10), base + 3)
        if math.dist(near, (px, y(p["y"]))) > FAR:
            labels.append(
                element("line", x1=px, y1=y(p["y"]), x2=near[0], y2=near[1], class_="leader")
            )
        labels.append(text(p["label"], left, base, class_="name"))
    label = f"{y_label} against {x_label}: {', '.join(p['title'] for p in points)}"
    return drawing(label, frame, element("g", trail, *marks, *labels, class_=f"s{kind % 6}"))


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


def histogram(
    counts: Sequence[float], low: float, high: float, thresholds: Sequence[float], label: str
) -> str:
    """Counts over equal bins of [low, high], heights in log(1 + count), on a drawing 160 wide and
    92 high.

    The thresholds are vertical lines; a threshold t > 0 clips what lies above it and t < 0 what
    lies below: that part is tinted.
    """
    width, bottom, top = 160.0, 74.0, 6.0
    heights = [math.log1p(max(number(c) or 0.0, 0.0)) for c in counts]
    if not heights or not high > low:
        return ""
    x = linear(min(low, 0.0, *thresholds), max(high, 0.0, *thresholds), 1.0, width - 1)
    y = linear(0.0, max(heights) or 1.0, bottom, top)
    above = min((t for t in thresholds if t > 0), default=math.inf)
    below = max((t for t in thresholds if t < 0), default=-math.inf)
    step = (high - low) / len(heights)
    kept, clipped = [], []
    for i, h in enumerate(heights):
        a, b = low + i * step, low + (i + 1) * step
        for start, end, out in (
            (a, min(b, below), clipped),
            (max(a, below), min(b, above), kept),
            (max(a, above), b, clipped),
        ):
            if h and end > start:
                out.append(f"M{x(start):.5g} {bottom:g}V{y(h):.5g}H{x(end):.5g}V{bottom:g}Z")
    parts = []
    if above < high:
        parts.append(
            element(
                "rect",
                x=x(above),
                y=top,
                width=x(high) - x(above),
                height=bottom - top,
                class_="outside",
            )
        )
    if below > low:
        parts.append(
            element(
                "rect",
                x=x(low),
                y=top,
                width=x(below) - x(low),
                height=bottom - top,
                class_="outside",
            )
        )
    parts += [
        element("path", d="".join(d), class_=c)
        for d, c in ((kept, "kept"), (clipped, "clipped"))
        if d
    ]
    parts.append(element("path", d=f"M1 {bottom:g}H{width - 1:g}", class_="tick"))
    parts += [
        element(
            "path",
            titled(f"threshold {digits(t)}"),
            d=f"M{x(t):.5g} {top - 4:g}V{bottom:g}",
            class_="threshold",
        )
        for t in thresholds
    ]
    left, right = min(low, 0.0), max(high, 0.0)
    parts += [text(digits(left), 1, 88), text(digits(right), width - 1, 88, "end")]
    if left < 0 < right and width / 4 < x(0) < 3 * width / 4:
        parts.append(text("0", x(0), 88, "middle"))
    return drawing(label, *parts, class_="histogram", width=width, height=92)


def clipping(
    counts: Sequence[float],
    low: float,
    high: float,
    start: float,
    end: float,
    steps: int,
    label: str,
) -> str:
    """A distribution and what a grid makes of it: counts over equal bins of [low, high], and
    `steps` + 1 values evenly from `start` to `end`.

    Grey: the histogram. Columns: the grid's values, as high as the counts that are rounded to them,
    those from beyond the ends at the ends, in another colour. Heights are log(1 + count); the
    columns' counts are taken for the width of a bin, so that a column reaches the histogram where
    nothing is clipped. Of more than 48 steps, every k-th is drawn, and the label says so. Dashed:
    the ends, where they lie inside of what was seen.
    """
    width, height, bottom, top = 360.0, 190.0, 150.0, 14.0
    n = len(counts)
    values = [max(number(c) or 0.0, 0.0) for c in counts]
    if not n or not high > low or not end > start or steps < 1:
        return ""
    x = linear(min(low, start), max(high, end), 6.0, width - 6)
    bin_width, step = (high - low) / n, (end - start) / steps
    totals, clipped = [0.0] * (steps + 1), [0.0] * (steps + 1)
    parts = max(
        1, math.ceil(2 * bin_width / step)
    )  # a bin may be wider than a step: its count is spread
    for i, c in enumerate(values):
        for j in range(parts):
            v = low + (i + (j + 0.5) / parts) * bin_width
            k = min(max(round((v - start) / step), 0), steps)
            (totals if start - step / 2 <= v <= end + step / 2 else clipped)[k] += c / parts
    scale = bin_width / step  # a step's count per bin's width
    y = linear(
        0.0,
        max(math.log1p(v) for v in (*values, *(scale * t for t in totals), *clipped)) or 1.0,
        bottom,
        top,
    )
    outline = "".join(
        f"M{x(low + i * bin_width):.5g} "
        f"{bottom:g}V{y(math.log1p(c)):.5g}H{x(low + (i + 1) * bin_width):.5g}V{bottom:g}Z"
        for i, c in enumerate(values)
        if c
    )
    every = math.ceil(steps / 48)
    columns = {"column": "", "column clipped": ""}
    zero = round(-start / step)
    for k in range(steps + 1):
        if (k - zero) % every and k not in (0, steps):
            continue
        for name, count in (("column", scale * totals[k]), ("column clipped", clipped[k])):
            if count:
                columns[name] += f"M{x(start + k * step):.5g} {bottom:g}V{y(math.log1p(count)):.5g}"
    marks = "".join(
        f"M{x(start + k * step):.5g} {bottom:g}v5"
        for k in range(steps + 1)
        if not (k - zero) % every or k in (0, steps)
    )
    ends = [
        element(
            "path", titled(digits(v)), d=f"M{x(v):.5g} {top - 8:g}V{bottom:g}", class_="threshold"
        )
        for v in (start, end)
        if low < v < high and v != 0
    ]
    body = [
        element("path", d=outline, class_="ghost"),
        *(element("path", d=d, class_=c) for c, d in columns.items() if d),
        *ends,
        element("path", d=f"M4 {bottom:g}H{width - 4:g}{marks}", class_="tick"),
    ]
    shown = f"{steps} steps of {digits(step)}" + (
        f", every {every}{'th' if every > 3 else ('nd', 'rd')[every - 2]} drawn"
        if every > 1
        else ""
    )
    left, right = min(low, start), max(high, end)
    body += [
        text(digits(left), 6, bottom + 18),
        text(digits(right), width - 6, bottom + 18, "end"),
        text(shown, width / 2, bottom + 34, "middle"),
    ]
    if left < 0 < right and width / 8 < x(0) < 7 * width / 8:
        body.append(text("0", x(0), bottom + 18, "middle"))
    return drawing(f"{label}: {shown}", *body, class_="plot clipping", width=width, height=height)
