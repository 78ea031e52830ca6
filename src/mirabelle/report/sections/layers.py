"""One table of all layers: what each is, takes, loses and how it was decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mirabelle.report import units
from mirabelle.report.parts import Cell, runtime_name, section, table
from mirabelle.report.schema import (
    Check,
    CheckedLayer,
    LayerSize,
    LayerTime,
    QuantizedTensor,
    Report,
)
from mirabelle.report.sections.profile import merged, reconciled
from mirabelle.report.sections.verification import exact_share
from mirabelle.report.units import number

Column = tuple[str, Callable[[str], Cell], bool]  # head, cell of a layer, whether it is prose
NOTHING: Cell = ("", "")
Row = TypeVar("Row", LayerSize, LayerTime, CheckedLayer)


def layers(report: Report) -> str:
    """Every layer in one table, by its module path: channels, MACs, bits, milliseconds on each
    runtime before and after, error, agreement with the integer reference, threshold and advice.
    """
    checks = report.verification
    tensors = report.quantization.tensors
    times = {r: reconciled(report, r) for r in report.profile}
    sources = [
        *([str(layer.layer) for layer in c.layers] for c in checks),
        [str(c.layer) for c in report.channels],
        [str(t.name) for t in tensors],
        *([str(r.layer) for r in rows] for rows in times.values()),
    ]
    names: list[str] = []
    for found in sources:
        names = merged(names, list(dict.fromkeys(found)))
    names = sorted(
        (n for n in names if n not in ("", "None")), key=lambda n: n.startswith("(")
    )  # what is no layer of weights comes last
    known = [
        *_sizes(report.channels),
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


def _by_layer(rows: list[Row]) -> dict[str, Row]:
    return {str(r.layer): r for r in rows}


def _by_name(tensors: list[QuantizedTensor], kind: str) -> dict[str, QuantizedTensor]:
    return {str(t.name): t for t in tensors if t.kind == kind}


def _change(one: Any, other: Any, show: Callable[[Any], str]) -> Cell:
    """`32 → 16`, sorted by what it is now; one figure where nothing changed."""
    a, b = number(one), number(other)
    if b is None:
        return (show(a), "", a) if a is not None else NOTHING
    return (show(b) if a in (None, b) else f"{show(a)} → {show(b)}", "", b)


def _sizes(channels: list[LayerSize]) -> list[Column]:
    known = _by_layer(channels)

    def width(name: str) -> Cell:
        row = known.get(name) or LayerSize.nothing()
        return _change(row.before, row.after, units.digits)

    def macs(name: str) -> Cell:
        found = (known.get(name) or LayerSize.nothing()).macs
        one, other = found if len(found) == 2 else (None, None)
        return _change(one, other, units.count)

    return [("channels", width, False), ("MACs", macs, False)]


def _milliseconds(runtime: str, rows: list[LayerTime]) -> Column:
    known = _by_layer(rows)

    def cell(name: str) -> Cell:
        row = known.get(name) or LayerTime.nothing()
        one, other = row.before_ms, row.after_ms
        if one is None and other is None:
            return NOTHING
        kind = "" if row.int8 is None else "int8" if row.int8 else "float"
        faster = units.times(one / other) if one and other else ""
        small = ", ".join(t for t in (faster, kind) if t)
        return f"{units.digits(one)} → {units.digits(other)}", small, other

    return f"ms, {runtime_name(runtime)}", cell, False


def _errors(tensors: list[QuantizedTensor], checks: list[Check]) -> list[Column]:
    """Bits and errors: those of the tensors, and what rounding changed in the layer's value."""
    weights = _by_name(tensors, "weight")
    values = _by_name(tensors, "activation")
    first = _by_layer(checks[0].layers) if checks else {}

    def bits(name: str) -> Cell:
        found = [number((t.get(name) or QuantizedTensor.nothing()).bits) for t in (weights, values)]
        if found == [None, None]:
            return NOTHING
        shown = " / ".join(units.digits(b) for b in found if b is not None)
        both = "weights / values" if None not in found else "values" if found[1] else "weights"
        return shown, both, min(b for b in found if b is not None)

    def error(name: str) -> Cell:
        layer = number((first.get(name) or CheckedLayer.nothing()).float_sqnr_db)
        own = [
            number((t.get(name) or QuantizedTensor.nothing()).sqnr_db) for t in (weights, values)
        ]
        shown = layer if layer is not None else own[1] if own[1] is not None else own[0]
        if shown is None:
            return NOTHING
        small = f"weights {units.decibels(own[0])}" if own[0] is not None else ""
        return units.decibels(shown), small, shown

    return [("bits", bits, False), ("SQNR", error, False)]


def _exactness(check: Check) -> list[Column]:
    known, runtime = _by_layer(check.layers), runtime_name(check.runtime or "")

    def exact(name: str) -> Cell:
        layer = known.get(name) or CheckedLayer.nothing()
        share, off = layer.exact, layer.max_off_by
        if share is None:
            return NOTHING
        small = f"off by {units.digits(off)}" if off else ""
        return exact_share(share), small, share

    def cause(name: str) -> Cell:
        return str((known.get(name) or CheckedLayer.nothing()).cause or ""), ""

    return [(f"exact, {runtime}", exact, False), (f"cause, {runtime}", cause, True)]


def _threshold(tensors: list[QuantizedTensor]) -> Column:
    known = _by_name(tensors, "activation")

    def cell(name: str) -> Cell:
        tensor = known.get(name) or QuantizedTensor.nothing()
        if not tensor.rule:
            return NOTHING
        return str(tensor.rule), why(tensor)

    return "threshold", cell, True


def why(tensor: QuantizedTensor) -> str:
    """Where a rule clips, and what that gained in dB over clipping nothing."""
    ends, most = units.numbers(tensor.range), number(tensor.maximum)
    reach = max((abs(e) for e in ends), default=0.0)
    parts = []
    if reach and most:
        share = reach / most
        parts.append(f"at {share:.2f} of the largest" if share < 0.995 else "clips nothing")
    after, before = tensor.sqnr_db, tensor.unclipped.sqnr_db
    if after is not None and before is not None and abs(after - before) >= 0.05:
        parts.append(f"{after - before:+.1f} dB".replace("-", "−"))
    return ", ".join(parts)


def _advice(times: dict[str, list[LayerTime]]) -> Column:
    """What to do about a layer; nothing for one that is faster by the call's own latency."""
    said = {
        (str(row.layer), runtime): f"{runtime_name(runtime)}: {row.advice}"
        for runtime, rows in times.items()
        for row in rows
        if row.advice and not (row.int8 and faster(row))
    }

    def cell(name: str) -> Cell:
        return "; ".join(said[name, r] for r in times if (name, r) in said), ""

    return "advice", cell, True


def faster(row: LayerTime) -> bool:
    one, other = row.before_ms, row.after_ms
    return one is not None and other is not None and other <= one
