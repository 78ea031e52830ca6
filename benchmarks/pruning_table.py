"""The tables of `benchmarks.pruning`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.pruning_methods import EPOCHS, METHODS, PHOTOGRAPHS, SHARES, TIMED, TUNED
from benchmarks.runs import rows, span, those


def table(results: dict) -> str:
    heads = " | ".join(f"{share:.0%} of the MACs" for share in SHARES)
    columns = "|---|" + "---|" * len(SHARES)
    original = results.get("original", math.nan)
    parts = [f"| residual network, points lost before any training | {heads} |", columns]
    for m in METHODS:
        cells = [_lost(results, kind="fashion", method=m, share=s) for s in SHARES]
        parts.append(f"| {m} | {' | '.join(cells)} |")
    for key, title, factor in (
        ("agreement", "agreement with the original, %", 100),
        ("sqnr", "SQNR of the logits, dB", 1),
    ):
        parts += ["", f"| MobileNetV2, {title} | {heads} |", columns]
        for m in METHODS:
            cells = [
                span(
                    [factor * r[key] for r in rows(results, kind="mobilenet_v2", method=m, share=s)]
                )
                for s in SHARES
            ]
            parts.append(f"| {m} | {' | '.join(cells)} |")
    parts += [
        "",
        "| MobileNetV2 at 80 % of the MACs, 512 views of | agreement, % | SQNR, dB | agreement "
        "on those views, % | SQNR on them, dB |",
        "|---|---|---|---|---|",
    ]
    for n in PHOTOGRAPHS:
        found = rows(results, kind="photographs", photographs=n)
        cells = [
            span([f * r[key] for r in side])
            for side in (found, [r["seen"] for r in found])
            for key, f in (("agreement", 100), ("sqnr", 1))
        ]
        parts.append(f"| {n} photographs | {' | '.join(cells)} |")
    parts += [
        "",
        "| residual network at 50 % of the MACs, points lost after training | "
        + " | ".join(f"{e} epochs" for e in EPOCHS)
        + " |",
        "|---|" + "---|" * len(EPOCHS),
    ]
    for m in TUNED:
        cells = [_lost(results, kind="tuned", method=m, epochs=e) for e in EPOCHS]
        parts.append(f"| {m} | {' | '.join(cells)} |")
    parts += ["", *_latency_table(results)]
    info = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    parts.append(
        f"\nMean (range; seeds). Original {100 * original:.2f} %, n = 10 000. "
        f"{results.get('machine', {}).get('cpu')}, one thread, {info}."
    )
    return "\n".join(parts)


def _lost(results: dict, **known: Any) -> str:
    """The points of top-1 that these runs lost."""
    original = results.get("original", math.nan)
    return span([100 * (original - r["top1"]) for r in rows(results, **known)])


def _latency_table(results: dict) -> list[str]:
    lines = [
        "| on | asked | time of a call, % | by milliseconds, % | more than by MACs, points | "
        "SQNR by milliseconds, dB | more than by MACs, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, key, title in (
        ("fashion", "top1", "residual network, top-1"),
        ("mobilenet_v2", "agreement", "MobileNetV2, agreement"),
    ):
        for runtime, share in [
            (by, s) for by, asked in TIMED[network].items() if by != "macs" for s in asked
        ]:
            cuts = [
                those(r["cuts"], runtime=runtime)
                for r in rows(results, kind="latency", network=network)
            ]
            pairs = [(those(c, by=runtime, share=share)[0], those(c, by="macs")) for c in cuts]
            cells = [
                f"{title}, {runtime}",
                f"{share:.0%}",
                span([100 * own["time"] for own, _ in pairs]),
            ]
            for value, factor in ((key, 100), ("sqnr", 1)):
                known = [
                    (factor * own[value], factor * _at(own["time"], macs, value))
                    for own, macs in pairs
                    if value in own
                ]
                cells += (
                    [span([own for own, _ in known]), span([own - other for own, other in known])]
                    if known
                    else ["", ""]
                )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _at(time: float, cuts: list[dict], key: str) -> float:
    """What cuts by MACs have at this time, on straight lines between them; not a number outside of
    them.
    """
    known = sorted((c["time"], c[key]) for c in cuts)
    return float(np.interp(time, [t for t, _ in known], [v for _, v in known], math.nan, math.nan))
