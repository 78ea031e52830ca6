"""Asks for half of the milliseconds and measures what came: `python -m benchmarks.latency_budget`; one thread, batch 1. Needs torchvision.

The latency of the result is measured anew, in turn with the original's, after the pruning has finished. Weights are random: a latency does not depend on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic

import torch

from benchmarks import zoo
from mirabelle.export import export
from mirabelle.files import read_json, write_json
from mirabelle.measure import count_macs
from mirabelle.measure.latency import alternate, speedup
from mirabelle.measure.machine import machine, versions
from mirabelle.prune import prune

RESULTS = Path(__file__).parent / "results" / "latency_budget.json"
NETWORKS = ("torchvision/resnet50", "torchvision/mobilenet_v2")
RUNTIMES = ("onnxruntime", "openvino")
ASKED = 0.5


def measure(name: str, runtime: str) -> dict:
    model, x = zoo.build(name)
    begun = monotonic()
    small = prune(model, x, latency=ASKED, runtime=runtime, criterion="l1", allocation="uniform", repair=None)
    seconds = monotonic() - begun
    one = x[:1].numpy()
    with tempfile.TemporaryDirectory() as folder:
        files = {k: export(m, Path(folder) / k, runtime=runtime, inputs=x[:1]) for k, m in (("whole", model), ("small", small))}
        times = alternate({k: lambda f=f: f(one) for k, f in files.items()}, 400, seconds=20, pin=True)
    faster = speedup(times["whole"], times["small"])
    return {
        "network": name, "runtime": runtime, "asked": ASKED, "share": 1 / faster.value, "low": 1 / faster.high, "high": 1 / faster.low, "rounds": faster.rounds,
        "macs": count_macs(small, x) / count_macs(model, x), "whole_ms": times["whole"].p50_ms, "small_ms": times["small"].p50_ms, "seconds": seconds,
    }  # fmt: skip


def table(results: dict) -> str:
    lines = ["| network | runtime | asked | measured [95 %] | MACs kept | original, ms | pruned, ms |", "|---|---|---|---|---|---|---|"]
    for r in results["runs"]:
        measured = f"{r['share']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
        lines.append(f"| {r['network']} | {r['runtime']} | {r['asked']} | {measured} | {r['macs']:.3f} | {r['whole_ms']:.2f} | {r['small_ms']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    results = read_json(RESULTS) if RESULTS.exists() else {"runs": []}
    results |= {"machine": machine(), "versions": versions("torch", *RUNTIMES)}
    done = {(r["network"], r["runtime"]) for r in results["runs"]}
    for name in NETWORKS:
        for runtime in RUNTIMES:
            if (name, runtime) not in done:
                results["runs"].append(measure(name, runtime))
                write_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
