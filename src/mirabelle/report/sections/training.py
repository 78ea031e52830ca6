"""The curves of each training."""

from __future__ import annotations

from mirabelle.report import charts, units
from mirabelle.report.parts import items, legend, pair, section
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def training(runs: list[dict]) -> str:
    """Per training: the losses by epoch and, on a scale of its own, the validation score by
    epoch.
    """
    blocks = []
    for run in runs:
        history = items(run, "history")
        keys = [
            k
            for k in dict.fromkeys(k for h in history for k in h)
            if k not in ("epoch", "seconds", "lr")
            and any(number(h.get(k)) is not None for h in history)
        ]
        scores = [k for k in keys if k.startswith("validation")]
        losses = [k for k in keys if k not in scores]
        curves = []
        for names, label in ((losses, "loss"), (scores, "validation score")):
            series = [{"name": k, "values": [number(h.get(k)) for h in history]} for k in names]
            share = all(k.endswith(("top1", "top5")) for k in names)
            chart = charts.lines(
                series,
                "epoch",
                label,
                y_format=(lambda v: f"{100 * v:.4g}{NBSP}%") if share else units.digits,
            )
            curves.append(
                element(
                    "div",
                    legend([(s["name"], f"s{i % 6}", 0) for i, s in enumerate(series)]),
                    chart,
                )
                if chart
                else ""
            )
        took = (
            f", {units.seconds(run['seconds'])}" if number(run.get("seconds")) is not None else ""
        )
        if any(curves):
            blocks.append(
                element(
                    "h3", escape(f"{run.get('stage') or 'training'}: {len(history)} epochs{took}")
                )
                + pair(*[c for c in curves if c])
            )
    return section("Training", "", *blocks)
