"""The tables of docs/results/distillation.md, from the results of `benchmarks.distillation`."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from mirabelle.base.files import read_json, write_text

DOCUMENT = Path(__file__).parents[1] / "docs" / "distillation.md"
BEGIN, END = (
    "<!-- results: written by python -m benchmarks.distillation --table -->",
    "<!-- end of results -->",
)
# Student's t, 97.5 %, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval; NaN for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), T[len(values) - 1] * statistics.stdev(values) / math.sqrt(
        len(values)
    )


def by_name(
    results: dict[str, Any], section: str, field: str, only: str = ""
) -> dict[str, dict[str, float]]:
    """name -> seed -> value, of the names that begin with `only`; what has no seed has the
    seed ''.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        parts = key.split("/")
        if parts[0] == section and field in value:
            name, seed = (
                (parts[1], parts[2])
                if len(parts) == 3
                else ("", parts[1])
                if parts[1].isdigit()
                else (parts[1], "")
            )
            if name.startswith(only):
                found.setdefault(name, {})[seed] = value[field]
    return found


def _shown(mean: float, half: float, scale: float = 100) -> str:
    return f"{mean * scale:.2f}" + ("" if math.isnan(half) else f" ± {half * scale:.2f}")


def _paired(table: dict[str, dict[str, float]], name: str, base: str) -> str:
    common = sorted(set(table.get(name, {})) & set(table.get(base, {})))
    if not common or name == base:
        return ""
    return _shown(*interval([table[name][s] - table[base][s] for s in common]))


def section(
    results: dict[str, Any], name: str, field: str, bases: list[str], only: str = ""
) -> list[str]:
    """A table: each configuration, and its difference from each base, paired by seed."""
    table = by_name(results, name, field, only)
    lines = [
        f"| {field} | seeds | value, % |" + "".join(f" minus “{b}” |" for b in bases),
        "|---" * (3 + len(bases)) + "|",
    ]
    for row, values in table.items():
        differences = "".join(f" {_paired(table, row, b)} |" for b in bases)
        lines.append(
            f"| {row} | {len(values)} | {_shown(*interval(list(values.values())))} |{differences}"
        )
    return lines


class Asked(NamedTuple):
    """A table: of which section and field, compared with what, and only of what begins so."""

    title: str
    section: str
    field: str
    bases: list[str]
    only: str = ""


ALONE = ["student alone", "teacher"]
TABLES = [
    Asked("500 images", "few", "top1", [f"{a}cross-entropy, lr 0.03" for a in ("", "augmented, ")]),
    Asked(
        "No labels, all labels",
        "labels",
        "top1",
        ["all labels, cross-entropy", "all labels, cross-entropy, lr 0.03"],
    ),
    *[
        Asked(
            f"An ensemble of three teachers, each with {labels} labels of its own",
            "ensemble",
            "top1",
            [f"{labels}, student of teacher {i}" for i in range(3)],
            f"{labels},",
        )
        for labels in ("1 000", "55 000")
    ],
    Asked("A class that was never seen: its recall", "missing", "recall", []),
    Asked("A class that was never seen: all classes", "missing", "top1", []),
    Asked(
        "A pruned network: 40 % of the MACs, 1 000 images, 200 steps",
        "shrunk",
        "top1",
        ["pruned, cross-entropy"],
        "pruned",
    ),
    *[
        Asked(
            f"Quantized to {bits} bits: 1 000 images, 200 steps",
            "shrunk",
            "top1",
            [f"{bits} bits, cross-entropy"],
            f"{bits} bits",
        )
        for bits in (3, 4, 8)
    ],
    Asked("The network before", "shrunk", "top1", [], "original"),
    *[
        Asked(
            f"Embeddings: pairs accepted at a false acceptance rate of {100 * rate:g} %",
            "embeddings",
            f"tar at far {rate:g}",
            ALONE,
        )
        for rate in (0.01, 0.1)
    ],
    Asked("Embeddings: area under the ROC", "embeddings", "auc", ALONE),
    Asked(
        "Sentences: pairs accepted at a false acceptance rate of 10 %",
        "text",
        "tar at far 0.1",
        ALONE,
    ),
    Asked("Sentences: area under the ROC", "text", "auc", ALONE),
]


def tables(results: dict[str, Any]) -> str:
    """Markdown: everything that was measured so far."""
    parts: list[str] = []
    for title, name, field, bases, only in TABLES:
        if by_name(results, name, field, only):
            parts += ["", f"### {title}", "", *section(results, name, field, bases, only)]
    if ratios := by_name(results, "cache", "ratio"):
        (values,) = ratios.values()
        mean, half = interval(list(values.values()))
        same = all(v == 1.0 for v in by_name(results, "cache", "same weights")[""].values())
        parts += [
            "",
            "### The cache",
            "",
            f"Epochs on known views are {_shown(mean, half, 1)} times as fast "
            f"({len(values)} seeds); same weights: {'yes' if same else 'no'}.",
        ]
    if conditions := results.get("conditions", {}):
        where = f"{conditions['threads']} thread of {conditions['machine']['cpu']}"
        parts += ["", f"{where}, torch {conditions['torch']}."]
    return "\n".join(parts).strip()


def write_tables(path: Path) -> None:
    """Replaces the results in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = f"{BEGIN}\n\n{tables(read_json(path))}\n\n{END}"
    if BEGIN in text:
        text = re.sub(
            re.escape(BEGIN) + ".*" + re.escape(END), lambda _: block, text, flags=re.DOTALL
        )
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    write_text(DOCUMENT, text)
