"""What int8 files are worth on each kind of x86 processor: `python -m benchmarks.processors`; one
thread, resumable.

The same files, made once, are run as on each kind (`tests/processors`): agreement with float's
first class, and the signal-to-noise ratio of the logits to those of float. Networks with trained
weights, calibration and test images as in `benchmarks/quantization.py`, which says what to install.
Mirabelle's rows are without options: `auto` is the target that it takes by itself on that kind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import quantization_methods as others
from benchmarks.runs import carry_out, kept, those
from mirabelle.measurement.accuracy import score
from mirabelle.measurement.machine import machine, versions
from mirabelle.runtimes import load
from mirabelle.runtimes.clipping import kernels_with_pairs
from tests.processors.__main__ import KINDS, preload

RESULTS = Path(__file__).parent / "results" / "processors.json"
METHODS = {
    "Mirabelle, for VNNI": others.ours(),
    "Mirabelle, for all x86": others.ours(),
    "ONNX Runtime, MinMax, reduced range": others.ort_static("MinMax", reduce_range=True),
    "NNCF, performance": others.nncf_ptq("PERFORMANCE"),
    "NNCF, mixed": others.nncf_ptq("MIXED"),
}
TARGETS = {"Mirabelle, for VNNI": "x86-vnni", "Mirabelle, for all x86": "x86"}


def file_of(network: str, method: str, runtime: str) -> Path:
    """The file of that name, made unless it is there."""
    folder = others.folder_of(network, method, runtime)
    path = folder / ("model.onnx" if runtime == "onnxruntime" else "model.xml")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model, x, _, _ = others.setting(network)
        others.TARGET[runtime] = TARGETS.get(method, "auto")
        (others.in_float if method == "float" else METHODS[method])(model, x, runtime, folder)
    return path


def run(asked: dict[str, str], library: Path) -> dict[str, Any]:
    """Every method's file of one network, on one runtime and kind of processor."""
    network, runtime, kind = (asked[k] for k in ("network", "runtime", "processor"))
    methods = [m for m in METHODS if runtime == "onnxruntime" or not m.startswith("ONNX Runtime")]
    files = {m: str(file_of(network, m, runtime)) for m in ("float", *methods)}
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.processors",
        "--child",
        network,
        runtime,
        json.dumps(files),
    ]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PROCESSOR": kind}
    return json.loads(
        subprocess.run(
            words, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout.splitlines()[-1]
    )


def child(network: str, runtime: str, files: dict[str, str]) -> dict[str, Any]:
    tests = others.setting(network)[2]
    given = {m: others.outputs(load(p, runtime), tests) for m, p in files.items()}
    wanted, methods = given.pop("float"), {}
    for method, values in given.items():
        same = score((wanted.argmax(1) == values.argmax(1)).astype(np.float64), "agreement")
        methods[method] = {
            "agreement": same.value,
            "interval": [same.low, same.high],
            "sqnr_db": others.sqnr(wanted, values),
        }
    return {"n": len(tests), "clips": kernels_with_pairs(runtime) is not None, "methods": methods}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| network, n | runtime | file | " + " | ".join(KINDS) + " |",
        "|---" * (3 + len(KINDS)) + "|",
    ]
    for network, runtime in dict.fromkeys((r["network"], r["runtime"]) for r in results["runs"]):
        found = {
            r["processor"]: r for r in those(results["runs"], network=network, runtime=runtime)
        }
        n = next(iter(found.values()))["n"]
        for method in next(iter(found.values()))["methods"]:
            seen = [found[k]["methods"][method] if k in found else None for k in KINDS]
            cells = [
                f"{100 * s['agreement']:.1f} %, {s['sqnr_db']:.1f} dB" if s else "–" for s in seen
            ]
            lines.append(f"| {network}, {n} | {runtime} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=others.TRAINED, help="one network")
    parser.add_argument(
        "--table", action="store_true", help="only print the table of what is there"
    )
    parser.add_argument("--processor", choices=list(KINDS), help="one kind")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        network, runtime, files = options.child
        return print(json.dumps(child(network, runtime, json.loads(files))))
    with tempfile.TemporaryDirectory() as folder:
        library, why = preload(Path(folder))
        if library is None and not options.table:
            raise SystemExit(f"other processors cannot be emulated here: {why}")
        networks = [options.network] if options.network else list(others.TRAINED)
        kinds = [options.processor] if options.processor else list(KINDS)
        asked = [
            {"network": n, "runtime": r, "processor": k}
            for n in networks
            for r in others.RUNTIMES
            for k in kinds
        ]
        conditions = {
            "machine": machine(),
            "versions": versions("torch", "onnxruntime", "openvino", "nncf"),
        }
        if not options.table:
            carry_out(RESULTS, asked, lambda one: run(one, library), conditions)  # type: ignore[arg-type]
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
