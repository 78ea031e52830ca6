"""One table of all layers: what each is, takes, loses and how it was decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirabelle.report import units
from mirabelle.report.parts import Cell, child, items, runtime_name, section, table
from mirabelle.report.sections.profile import merged, reconciled
from mirabelle.report.sections.verification import exact_share
from mirabelle.report.units import number

Column = tuple[str, Callable[[str], Cell], bool]  # head, cell of a layer, whether it is prose
NOTHING: Cell = ("", "")


def layers(report: dict) -> str:
    """Every layer in one table, by its module path: channels, MACs, bits, milliseconds on each
    runtime before and after, error, agreement with the integer reference, threshold and advice.
    """
    checks = items(report, "verification")
    tensors = items(child(report, "quantization"), "tensors")
    times = {r: reconciled(report, r) for r in child(report, "profile")}
    sources = [
        *([str(layer.get("layer")) for layer in items(c, "layers")] for c in checks),
        [str(c.get("layer")) for c in items(report, "channels")],
        [str(t.get("name")) for t in tensors],
        *([str(r.get("layer")) for r in rows] for rows in times.values()),
    ]
    names: list[str] = []
    for found in sources:
        names = merged(names, list(dict.fromkeys(found)))
    names = sorted(
        (n for n in names if n not in ("", "None")), key=lambda n: n.startswith("(")
    )  # what is no layer of weights comes last
    known = [
        *_sizes(items(report, "channels")),
        *(_milliseconds(r, rows) for r, rows in times.items()),
        *_errors(tensors, checks),
        *(c for check in checks for c in _exactness(check)),
        _threshold(tensors),
        _advice(times),
    ]
    rows = [[(name, ""), *(cell(name) for _, cell, _ in known)] for name in names]
    note = (
        "Milliseconds are shares of the latency of a call. SQNR: the layer's value in float over "
        "what rounding changed in it by then; below it, the weights' own. Exact: integers of the "
        "runtime that equal the reference's. Threshold: what chose where the layer's values are "
        "clipped, at which share of the largest, and what that gained."
    )
    head = ("layer", *(title for title, _, _ in known))
    words = [title for title, _, prose in known if prose]
    return section(
        "Every layer", note, table(head, rows, words=words, sortable=True) if rows else ""
    )


def _by(rows: list[dict], key: str) -> dict[str, dict]:
    return {str(r.get(key)): r for r in rows}


def _change(one: Any, other: Any, show: Callable[[Any], str]) -> Cell:
    """`32 → 16`, sorted by what it is now; one figure where nothing changed."""
    a, b = number(one), number(other)
    if b is None:
        return (show(a), "", a) if a is not None else NOTHING
    return (show(b) if a in (None, b) else f"{show(a)} → {show(b)}", "", b)


def _sizes(channels: list[dict]) -> list[Column]:
    known = _by(channels, "layer")

    def width(name: str) -> Cell:
        row = child(known, name)
        return _change(row.get("before"), row.get("after"), units.digits)

    def macs(name: str) -> Cell:
        found = child(known, name).get("macs")
        one, other = found if isinstance(found, list) and len(found) == 2 else (None, None)
        return _change(one, other, units.count)

    return [("channels", width, False), ("MACs", macs, False)]


def _milliseconds(runtime: str, rows: list[dict]) -> Column:
    known = _by(rows, "layer")

    def cell(name: str) -> Cell:
        row = child(known, name)
        one, other = number(row.get("before_ms")), number(row.get("after_ms"))
        if one is None and other is None:
            return NOTHING
        kind = "" if row.get("int8") is None else "int8" if row["int8"] else "float"
        faster = units.times(one / other) if one and other else ""
        small = ", ".join(t for t in (faster, kind) if t)
        return f"{units.digits(one)} → {units.digits(other)}", small, other

    return f"ms, {runtime_name(runtime)}", cell, False


def _errors(tensors: list[dict], checks: list[dict]) -> list[Column]:
    """Bits and errors: those of the tensors, and what rounding changed in the layer's value."""
    weights = _by([t for t in tensors if t.get("kind") == "weight"], "name")
    values = _by([t for t in tensors if t.get("kind") == "activation"], "name")
    first = _by(items(checks[0], "layers"), "layer") if checks else {}

    def bits(name: str) -> Cell:
        found = [number(child(t, name).get("bits")) for t in (weights, values)]
        if found == [None, None]:
            return NOTHING
        shown = " / ".join(units.digits(b) for b in found if b is not None)
        both = "weights / values" if None not in found else "values" if found[1] else "weights"
        return shown, both, min(b for b in found if b is not None)

    def error(name: str) -> Cell:
        layer = number(child(first, name).get("float_sqnr_db"))
        own = [number(child(t, name).get("sqnr_db")) for t in (weights, values)]
        shown = layer if layer is not None else own[1] if own[1] is not None else own[0]
        if shown is None:
            return NOTHING
        small = f"weights {units.decibels(own[0])}" if own[0] is not None else ""
        return units.decibels(shown), small, shown

    return [("bits", bits, False), ("SQNR", error, False)]


def _exactness(check: dict) -> list[Column]:
    known, runtime = _by(items(check, "layers"), "layer"), runtime_name(check.get("runtime") or "")

    def exact(name: str) -> Cell:
        layer = child(known, name)
        share, off = number(layer.get("exact")), number(layer.get("max_off_by"))
        if share is None:
            return NOTHING
        small = f"off by {units.digits(off)}" if off else ""
        return exact_share(share), small, share

    def cause(name: str) -> Cell:
        return str(child(known, name).get("cause") or ""), ""

    return [(f"exact, {runtime}", exact, False), (f"cause, {runtime}", cause, True)]


def _threshold(tensors: list[dict]) -> Column:
    known = _by([t for t in tensors if t.get("kind") == "activation"], "name")

    def cell(name: str) -> Cell:
        tensor = child(known, name)
        if not tensor.get("rule"):
            return NOTHING
        return str(tensor["rule"]), why(tensor)

    return "threshold", cell, True


def why(tensor: dict) -> str:
    """Where a rule clips, and what that gained in dB over clipping nothing."""
    ends, most = units.numbers(tensor.get("range")), number(tensor.get("maximum"))
    reach = max((abs(e) for e in ends), default=0.0)
    parts = []
    if reach and most:
        share = reach / most
        parts.append(f"at {share:.2f} of the largest" if share < 0.995 else "clips nothing")
    after, before = number(tensor.get("sqnr_db")), number(child(tensor, "unclipped").get("sqnr_db"))
    if after is not None and before is not None and abs(after - before) >= 0.05:
        parts.append(f"{after - before:+.1f} dB".replace("-", "−"))
    return ", ".join(parts)


def _advice(times: dict[str, list[dict]]) -> Column:
    """What to do about a layer; nothing for one that is faster by the call's own latency."""
    said = {
        (str(row.get("layer")), runtime): f"{runtime_name(runtime)}: {row['advice']}"
        for runtime, rows in times.items()
        for row in rows
        if row.get("advice") and not (row.get("int8") and faster(row))
    }

    def cell(name: str) -> Cell:
        return "; ".join(said[name, r] for r in times if (name, r) in said), ""

    return "advice", cell, True


def faster(row: dict) -> bool:
    one, other = number(row.get("before_ms")), number(row.get("after_ms"))
    return one is not None and other is not None and other <= one
