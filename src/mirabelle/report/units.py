"""Numbers as people read them. Whatever is unknown, NaN or infinite is a dash; units follow a
no-break space.
"""

from __future__ import annotations

import math
from typing import Any

NBSP = "\u00a0"
DASH = "–"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None: for null, text, booleans, NaN and infinity."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def numbers(values: Any) -> list[float]:
    """The finite numbers of a list, or of one number standing alone."""
    return [
        n
        for v in (values if isinstance(values, list) else [values])
        if (n := number(v)) is not None
    ]


def digits(value: Any, significant: int = 3) -> str:
    """`significant` digits, an integer part never cut, thousands apart, an exponent only where it
    helps: 0.0122, 81.5, 1 234, 3.1e−7.
    """
    n = number(value)
    if n is None:
        return DASH
    if n and abs(n) < 1e-4:
        mantissa, exponent = f"{n:.{significant - 1}g}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = (
        f"{n:,.0f}".replace(",", NBSP)
        if abs(n) >= 10 ** (significant - 1)
        else f"{n:.{significant}g}"
    )
    return text.replace("-", "−")


def scaled(value: Any, prefixes: tuple[str, ...], unit: str = "") -> str:
    """Three significant digits before a prefix of a thousand: 51.6 M, 2.48 MB."""
    n = number(value)
    if n is None:
        return DASH
    step = 0
    while step < len(prefixes) - 1 and abs(float(f"{n:.3g}")) >= 1000:
        n, step = n / 1000, step + 1
    return f"{digits(n)}{NBSP}{prefixes[step]}{unit}".rstrip(NBSP)


def count(value: Any) -> str:
    return scaled(value, ("", "k", "M", "G", "T"))


def size(value: Any) -> str:
    """Bytes, in powers of a thousand."""
    return scaled(value, ("", "k", "M", "G", "T"), "B")


def milliseconds(value: Any) -> str:
    return DASH if number(value) is None else f"{digits(value)}{NBSP}ms"


def decibels(value: Any) -> str:
    n = number(value)
    return DASH if n is None else f"{n:.1f}{NBSP}dB".replace("-", "−")


def seconds(value: Any) -> str:
    """`71 s`, `12 min 5 s`, `2 h 03 min`."""
    n = number(value)
    if n is None:
        return DASH
    if n < 99.5:
        return f"{digits(n)}{NBSP}s"
    minutes, rest = divmod(round(n), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def times(value: Any) -> str:
    return DASH if number(value) is None else f"{digits(value)}×"


def percent(value: Any, places: int = 2) -> str:
    """A fraction as a percentage."""
    n = number(value)
    return DASH if n is None else f"{100 * n:.{places}f}{NBSP}%".replace("-", "−")


def points(value: Any) -> str:
    """A difference of fractions in points of a hundred, without its unit: 0.0031 is 0.31."""
    n = number(value)
    return DASH if n is None else f"{100 * n:.2f}".replace("-", "−")


def interval(low: Any, high: Any, show) -> str:
    """`[0.08, 0.54]`, or nothing where either end is unknown."""
    return "" if number(low) is None or number(high) is None else f"[{show(low)}, {show(high)}]"


def span(values: Any) -> str:
    """One number, or the range of a list of them (one per channel): `0.001 … 0.012`."""
    known = numbers(values)
    if not known or min(known) == max(known):
        return digits(known[0]) if known else DASH
    return f"{digits(min(known))} … {digits(max(known))}"


def change(drop: float, share: bool, of: str = "") -> str:
    """`0.63 points of top1 gained`, `0.012 of MeanAP lost`, `nothing of top1 lost`."""
    name = f" of {of}" if of else ""
    figure = f"{100 * abs(drop):.2f} points" if share else f"{abs(drop):.3g}"
    if float(figure.split()[0]) == 0:
        return f"nothing{name} lost"
    return f"{figure}{name} {'lost' if drop > 0 else 'gained'}"
