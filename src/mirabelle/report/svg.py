"""Charts as inline SVG. Every function takes numbers and returns text; lengths are in pixels of a
360-wide drawing unless said otherwise.

Colors are CSS classes: `s0`, `s1`, ... set `currentColor` for a series. Every mark carries a
`<title>`, which browsers show as a tooltip.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, HEIGHT = 360, 250
NAME_LENGTH = 26

Scale = Callable[[float], float]


# Characters that HTML and XML do not allow, and those that mean something there.
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
SPECIAL = re.compile(rf"[&<>\"']|{FORBIDDEN.pattern}")


def escape(value: Any) -> str:
    """Text that is safe inside elements and quoted attributes; characters that HTML and XML do not
    allow are replaced.
    """
    text = str(value)
    if not SPECIAL.search(text):
        return text
    return html.escape(FORBIDDEN.sub("\ufffd", text), quote=True)


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
