"""What a tensor holds: its histogram with the thresholds, and what a grid makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mirabelle.report.svg import Scale, drawing, element, linear, text, titled
from mirabelle.report.units import digits, number

Bin = tuple[float, float, float]  # where it begins and ends, and the height


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
    bins = [(low + i * step, low + (i + 1) * step, h) for i, h in enumerate(heights)]
    parts = [
        element("rect", x=x(a), y=top, width=x(b) - x(a), height=bottom - top, class_="outside")
        for a, b in ((above, high), (low, below))
        if b > a
    ]
    kept, clipped = _split(bins, below, above)
    parts += [
        element("path", d=_blocks(part, x, y, bottom), class_=c)
        for part, c in ((kept, "kept"), (clipped, "clipped"))
        if part
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


def _split(bins: list[Bin], below: float, above: float) -> tuple[list[Bin], list[Bin]]:
    """The parts of bins between two thresholds, and those outside; empty bins are in neither."""
    kept, clipped = [], []
    for a, b, height in bins:
        for start, end, out in (
            (a, min(b, below), clipped),
            (max(a, below), min(b, above), kept),
            (max(a, above), b, clipped),
        ):
            if height and end > start:
                out.append((start, end, height))
    return kept, clipped


def _blocks(bins: list[Bin], x: Scale, y: Scale, bottom: float) -> str:
    return "".join(
        f"M{x(start):.5g} {bottom:g}V{y(height):.5g}H{x(end):.5g}V{bottom:g}Z"
        for start, end, height in bins
    )


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

    Gray: the histogram. Columns: the grid's values, as high as the counts that are rounded to them,
    those from beyond the ends at the ends, in another color. Heights are log(1 + count); the
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
    rounded, clipped = _rounded(values, low, bin_width, start, end, steps)
    y = linear(0.0, max(math.log1p(v) for v in (*values, *rounded, *clipped)) or 1.0, bottom, top)
    bins = [
        (low + i * bin_width, low + (i + 1) * bin_width, math.log1p(c))
        for i, c in enumerate(values)
        if c
    ]
    every = math.ceil(steps / 48)
    zero = round(-start / step)
    drawn = [k for k in range(steps + 1) if not (k - zero) % every or k in (0, steps)]
    columns = {
        name: "".join(
            f"M{x(start + k * step):.5g} {bottom:g}V{y(math.log1p(counted[k])):.5g}"
            for k in drawn
            if counted[k]
        )
        for name, counted in (("column", rounded), ("column clipped", clipped))
    }
    marks = "".join(f"M{x(start + k * step):.5g} {bottom:g}v5" for k in drawn)
    body = [
        element("path", d=_blocks(bins, x, y, bottom), class_="ghost"),
        *(element("path", d=d, class_=c) for c, d in columns.items() if d),
        *(
            element(
                "path",
                titled(digits(v)),
                d=f"M{x(v):.5g} {top - 8:g}V{bottom:g}",
                class_="threshold",
            )
            for v in (start, end)
            if low < v < high and v != 0
        ),
        element("path", d=f"M4 {bottom:g}H{width - 4:g}{marks}", class_="tick"),
    ]
    shown = f"{steps} steps of {digits(step)}{_thinned(every)}"
    left, right = min(low, start), max(high, end)
    body += [
        text(digits(left), 6, bottom + 18),
        text(digits(right), width - 6, bottom + 18, "end"),
        text(shown, width / 2, bottom + 34, "middle"),
    ]
    if left < 0 < right and width / 8 < x(0) < 7 * width / 8:
        body.append(text("0", x(0), bottom + 18, "middle"))
    return drawing(f"{label}: {shown}", *body, class_="plot clipping", width=width, height=height)


def _thinned(every: int) -> str:
    """What is said where only every so many steps are drawn."""
    ordinal = "th" if every > 3 else ("", "", "nd", "rd")[every]
    return f", every {every}{ordinal} drawn" if every > 1 else ""


def _rounded(
    counts: list[float], low: float, bin_width: float, start: float, end: float, steps: int
) -> tuple[list[float], list[float]]:
    """What falls to each value of a grid: for the width of a bin what is rounded to it, and what
    is clipped to it.
    """
    step = (end - start) / steps
    totals, clipped = [0.0] * (steps + 1), [0.0] * (steps + 1)
    parts = max(1, math.ceil(2 * bin_width / step))  # a bin wider than a step is spread
    for i, c in enumerate(counts):
        for j in range(parts):
            v = low + (i + (j + 0.5) / parts) * bin_width
            k = min(max(round((v - start) / step), 0), steps)
            inside = start - step / 2 <= v <= end + step / 2
            (totals if inside else clipped)[k] += c / parts
    return [bin_width / step * t for t in totals], clipped
