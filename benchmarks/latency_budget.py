"""Asks for half of the milliseconds and measures what came: `python -m benchmarks.latency_budget`;
one thread, batch 1; resumable. Needs torchvision.

The latency of the result is measured anew, in turn with the original's, after the pruning has
finished: the median of five openings of both files, and from what to what they reach. Weights are
random: a latency does not depend on them, and the knapsack spreads the widths that they ask for
unevenly.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import monotonic

import torch

from benchmarks import zoo
from benchmarks.openings import milliseconds, share_of
from benchmarks.runs import carry_out, kept
from mirabelle.base.data import example_inputs
from mirabelle.measurement import count_macs
from mirabelle.measurement.machine import machine, versions
from mirabelle.pruning import prune

RESULTS = Path(__file__).parent / "results" / "latency_budget.json"
NETWORKS = ("torchvision/resnet50", "torchvision/mobilenet_v2")
RUNTIMES = ("onnxruntime", "openvino")
ALLOCATIONS = ("uniform", "knapsack")
ASKED = 0.5


def measure(network: str, runtime: str, allocation: str) -> dict:
    model, x = zoo.build(network)
    begun = monotonic()
    small = prune(
        model, x, latency=ASKED, runtime=runtime, criterion="l1", allocation=allocation, repair=None
    )
    seconds = monotonic() - begun
    times = milliseconds({"whole": model, "small": small}, example_inputs(x), runtime)
    found, low, high = share_of(times["whole"], times["small"])
    return {
        "asked": ASKED,
        "share": found,
        "low": low,
        "high": high,
        "macs": count_macs(small, x) / count_macs(model, x),
        "whole_ms": median(times["whole"]),
        "small_ms": median(times["small"]),
        "seconds": seconds,
    }


def table(results: dict) -> str:
    lines = [
        "| network | runtime | allocation | asked | measured | MACs kept | original, ms | "
        "pruned, ms | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results["runs"]:
        measured = f"{r['share']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
        lines.append(
            f"| {r['network']} | {r['runtime']} | {r['allocation']} | {r['asked']} | {measured} "
            f"| {r['macs']:.3f} | {r['whole_ms']:.2f} | {r['small_ms']:.2f} "
            f"| {r['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    asked = [
        {"network": n, "runtime": r, "allocation": a}
        for n in NETWORKS
        for r in RUNTIMES
        for a in ALLOCATIONS
    ]
    carry_out(
        RESULTS,
        asked,
        lambda run: measure(**run),
        {"machine": machine(), "versions": versions("torch", *RUNTIMES)},
    )
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
