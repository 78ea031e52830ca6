"""The tables of `benchmarks.quantization`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.quantization_methods import (
    BITS,
    LATENCY_ONLY,
    METHODS,
    NETWORKS,
    RUNTIMES,
    STEPS,
    TEACHERS,
    TRAINED,
)
from benchmarks.runs import rows


def _span(values: list[float], form: str = "{:.2f}") -> str:
    if not values:
        return "–"
    middle = form.format(sum(values) / len(values))
    return (
        middle
        if len(values) == 1
        else f"{middle} ({form.format(min(values))} to {form.format(max(values))}; {len(values)})"
    )


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return (
        [
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *(f"| {' | '.join(r)} |" for r in rows),
        ]
        if rows
        else []
    )


def _points(r: dict[str, Any]) -> str:
    return (
        f"{100 * r['drop']:.2f} [{100 * r['interval'][0]:.2f}, {100 * r['interval'][1]:.2f}]"
        if "drop" in r
        else ""
    )


def _files(results: dict, network: str) -> list[str]:
    cells = []
    for runtime in RUNTIMES:
        for r in [
            r
            for m in METHODS
            if m != "float"
            for r in rows(results, kind="file", network=network, runtime=runtime, method=m)
        ]:
            if "error" in r:
                cells.append([r["method"], runtime, f"failed: {r['error']}", "", "", "", ""])
                continue
            numbers = [
                f"{100 * r['agreement']:.2f}",
                f"{r['sqnr_db']:.1f}",
                _points(r),
                f"{r['cpu_seconds']:.1f}",
                f"{r['bytes'] / 1e6:.2f}",
            ]
            cells.append([r["method"], runtime, *numbers])
    n = next((r["n"] for r in rows(results, kind="file", network=network) if "n" in r), 0)
    return _lines(
        [
            f"{network}, n = {n}",
            "runtime",
            "agreement, %",
            "SQNR, dB",
            "points lost [95 %]",
            "CPU-seconds",
            "file, MB",
        ],
        cells,
    )


def _latencies(results: dict) -> list[str]:
    methods, cells = LATENCY_ONLY[1:], []
    for r in [r for n in NETWORKS for r in rows(results, kind="latency", network=n)]:
        found = [r["files"].get(m) for m in methods]
        ratios = [
            f"{f['to_float']:.2f} [{f['interval'][0]:.2f}, {f['interval'][1]:.2f}]" if f else "–"
            for f in found
        ]
        cells.append([r["network"], r["runtime"], *ratios, f"{r['files']['float']['p50_ms']:.2f}"])
    return _lines(["time of a call, float = 1", "runtime", *methods, "float, ms"], cells)


def _references(results: dict) -> list[str]:
    cells = []
    for r in rows(results, kind="reference"):
        first = r.get("first_departure")
        numbers = [
            r["n"],
            r["layers"],
            r["off_by"],
            f"{100 * r['least_exact']:.3f}",
            r["different"],
            r["ties"],
            first[0] if first else "none",
        ]
        cells.append([r["network"], r["runtime"], *(str(n) for n in numbers)])
    heads = [
        "reference against",
        "runtime",
        "n",
        "layers",
        "off by at most",
        "least exact layer, %",
        "other class",
        "of these ties",
        "first layer off by more than 1",
    ]
    return _lines(heads, cells)


def _demo(results: dict, kind: str, title: str, methods: Iterable[str]) -> list[str]:
    bits = sorted({r["bits"] for r in rows(results, kind=kind)}, reverse=True)
    cells = [
        [
            m,
            *(
                _span(
                    [
                        100 * r["drop"]
                        for r in rows(results, kind=kind, method=m, bits=b)
                        if "drop" in r
                    ]
                )
                for b in bits
            ),
        ]
        for m in methods
    ]
    return _lines(
        [f"{title} (mean, range; seeds)", *(f"{b}-bit weights" for b in bits)],
        cells if bits else [],
    )


def _memory(results: dict) -> list[str]:
    found = rows(results, kind="memory")
    sizes = sorted({r["images"] for r in found})
    cells = [
        [
            m,
            *(
                _span(
                    [r["peak_mb"] for r in found if (r["method"], r["images"]) == (m, s)], "{:.0f}"
                )
                for s in sizes
            ),
        ]
        for m in dict.fromkeys(r["method"] for r in found)
    ]
    return _lines(["peak of the process, MB", *(f"{s} images" for s in sizes)], cells)


def _engines(results: dict) -> list[str]:
    cells = []
    for r in rows(results, kind="engine"):
        numbers = (
            [f"failed: {r['error']}", ""]
            if "error" in r
            else [f"{r['bytes'] / 1e6:.1f}", f"{r['cpu_seconds']:.1f}"]
        )
        cells.append([r["network"], f"{r['file'] / 1e6:.1f}" if "file" in r else "", *numbers])
    return _lines(
        [
            "TensorRT engine, int8",
            "ONNX file, MB",
            "engine for 8.0, 8.6 and 8.9, MB",
            "CPU-seconds to build",
        ],
        cells,
    )


def table(results: dict) -> str:
    parts = [line for n in TRAINED for line in _files(results, n)]
    parts += [*_latencies(results), *_references(results)]
    parts += _demo(results, "bits", "demo network, points lost without training", BITS)
    parts += _demo(results, "training", f"demo network, points lost after {STEPS} steps", TEACHERS)
    parts += _engines(results)
    parts += _memory(results)
    info = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    parts += [
        "",
        f"{results.get('machine', {}).get('cpu')}, "
        f"{' '.join(results.get('machine', {}).get('features', []))}, one thread, {info}.",
    ]
    return "\n".join(parts)
