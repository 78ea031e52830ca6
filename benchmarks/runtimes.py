"""The demo's network and MobileNetV2 on every runtime, float and int8: bytes, milliseconds in turn,
accuracy, and how near the integers are to the reference.

`python -m benchmarks.runtimes` goes on where it stopped and prints the table of
docs/results/runtimes.md; one thread, batch 1. Runtimes that are not installed are left out. The
demo's network is scored on all test images of Fashion-MNIST. MobileNetV2 has real weights and
photographs without labels (see `photographs.py`; needs torchvision and pillow): there, the share of
the same class as torch in float. `--table` only prints.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import mirabelle as mb
from benchmarks import photographs
from examples import fashion
from mirabelle.base.errors import MissingRuntimeError
from mirabelle.base.files import read_json, write_json
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.quantization import quantize
from mirabelle.quantization.simulation.description import quantization
from mirabelle.runtimes import RUNTIMES, Artifact, check_runs_here, load

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
# The grids that suit each runtime's kernels on this machine.
GRIDS = {
    "onnxruntime": "auto",
    "onnxruntime-mobile": "auto",
    "openvino": "auto",
    "ncnn": "symmetric",
}
SAMPLES, SECONDS = 64, 60


def installed() -> list[str]:
    found = []
    for name in RUNTIMES:
        if name == "sparse":  # dense networks are run by one of the others there
            continue
        try:
            check_runs_here(name)
            found.append(name)
        except MissingRuntimeError:
            pass
    return found


def fashion_data() -> tuple[nn.Module, list, list, list]:
    data = fashion.data()
    return (
        fashion.resnet(),
        [b[0] for b in data.calibration],
        list(data.test),
        [next(iter(data.test))[0][:SAMPLES]],
    )


def photo_data() -> tuple[nn.Module, list, list, list]:
    calibration, held_out = photographs.split(0)
    model, seen = photographs.mobilenet_v2(), photographs.crops(held_out, 1, 1)
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in seen.split(16)])
    return (
        model,
        list(photographs.crops(calibration, 1, 0).split(16)),
        list(zip(seen.split(16), classes.split(16))),
        [seen[:SAMPLES]],
    )


# Network, calibration data, labeled data, and what the integers are compared on.
NETWORKS = {"demo": fashion_data, "MobileNetV2": photo_data}


# What suits the network's quantization, see docs/quantization.md.
OPTIONS: dict[str, dict] = {
    "demo": {},
    "MobileNetV2": {"repair": ["equalize-activations", "bias-analytic"], "threshold": "laplace"},
}


def variants(
    name: str, model: nn.Module, calibration: list, names: list[str]
) -> dict[str, nn.Module]:
    """The float network, and quantized ones by their grids."""
    wanted = dict.fromkeys(GRIDS.get(n, "arm") for n in names if RUNTIMES[n].int8)
    return {"float": model} | {
        t: quantize(model, calibration, target=t, samples=512, **OPTIONS[name]) for t in wanted
    }


def measure(folder: Path, name: str, names: list[str], results: dict) -> None:
    """Exports, scores, verifies and times one network on the runtimes that are not in the results
    yet; timing is of all of them.
    """
    rows = results["networks"].setdefault(name, {})
    model, calibration, labeled, compared = NETWORKS[name]()
    made = variants(name, model, calibration, names)
    x = compared[0][:1]
    calls = {}
    for runtime in names:
        for kind in ("float", "int8") if RUNTIMES[runtime].int8 else ("float",):
            form = made["float" if kind == "float" else GRIDS.get(runtime, "arm")]
            path = folder / name / runtime / kind / f"model{RUNTIMES[runtime].suffix}"
            artifact = (
                load(path, runtime)
                if path.is_file()
                else mb.export(form, path.parent, runtime=runtime, inputs=x)
            )
            calls[runtime, kind] = partial(artifact.session.run, artifact.arrays(x.numpy()))
            row = rows.setdefault(runtime, {}).setdefault(kind, {})
            if "score" in row:
                continue
            row |= scored(artifact, labeled, f"{runtime} {kind}")
            if kind == "int8":
                row |= verified(form, artifact, compared, labeled)
            results |= {
                "machine": machine(),
                "versions": versions("torch", "onnx"),
                "date": str(datetime.date.today()),
            }
            write_json(RESULTS, results)
    if any("p50" not in row[kind] for runtime, row in rows.items() for kind in row):
        time_all(calls, rows)
        write_json(RESULTS, results)


def scored(artifact: Artifact, labeled: list, what: str) -> dict:
    found = evaluate(artifact.predict, labeled, "top1", what)
    return {
        "bytes": artifact.bytes,
        "version": artifact.version,
        "score": found.value,
        "n": found.n,
        "low": found.low,
        "high": found.high,
    }


def verified(form: nn.Module, artifact: Artifact, compared: list, labeled: list) -> dict:
    """How near the file's integers are to the reference, and what the simulation scores."""
    seen = mb.verify(form, artifact, compared, samples=SAMPLES)
    simulated = evaluate(predictor(form), labeled, "top1", f"{artifact.runtime}, simulated")
    own = [c.max_off_by for c in seen.layers if c.cause != "earlier layers"]
    described = quantization(form)
    assert described is not None
    return {
        "samples": seen.samples,
        "layers": len(seen.layers),
        "sites": len(described.sites),
        "declared": RUNTIMES[artifact.runtime].off_by,
        "off_by": max((c.max_off_by for c in seen.layers), default=None),
        "exact": min((c.exact for c in seen.layers), default=None),
        "own": max(own, default=None),
        "simulated": simulated.value,
        "agreement": seen.agreement.value,
        "note": seen.note,
        "grids": described.target,
    }


def time_all(calls: dict[tuple[str, str], Callable], rows: dict) -> None:
    """Times all files in turn, and writes what came out into the rows."""
    named = {f"{runtime}/{kind}": call for (runtime, kind), call in calls.items()}
    seen = alternate(named, 1000, seconds=SECONDS, pin=True)
    for runtime, kind in calls:
        found = seen[f"{runtime}/{kind}"]
        faster = speedup(seen["onnxruntime/float"], found)
        rows[runtime][kind] |= {
            "p50": found.p50_ms,
            "rounds": found.runs,
            "speedup": [faster.value, faster.low, faster.high],
        }


def table(results: dict) -> str:
    lines = [
        "| network | runtime | | MB | times as fast as ONNX Runtime in float | top-1 | of the "
        "simulation | "
        "off by of its own (declared) | off by, with what it grew into | exact, worst layer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results["networks"].items():
        for runtime, kinds in rows.items():
            for kind, r in kinds.items():
                off = r["off_by"] if r.get("off_by") is not None else "–"
                own = f"{r['own']} ({r['declared']})" if r.get("own") is not None else "–"
                exact = f"{100 * r['exact']:.2f} %" if r.get("exact") is not None else "–"
                simulated = f"{100 * r['simulated']:.2f} %" if "simulated" in r else "–"
                faster = "{:.2f} [{:.2f}, {:.2f}]".format(*r["speedup"]) if "speedup" in r else "–"
                score = (
                    f"{100 * r['score']:.2f} % [{100 * r['low']:.2f}, "
                    f"{100 * r['high']:.2f}], n = {r['n']}"
                )
                shown = f"{kind}, {r['grids']} grids" if "grids" in r else kind
                lines.append(
                    f"| {name} | {runtime} {r['version']} | {shown} | {r['bytes'] / 1e6:.3f} | "
                    f"{faster} | {score} | {simulated} | {own} | {off} | {exact} |"
                )
    told = results["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"One thread of {told['cpu']} ({', '.join(told['features'])}), torch "
            f"{results['versions']['torch']}, {results['date']}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "mirabelle-runtimes",
        help="where the files are kept meanwhile",
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = read_json(RESULTS) if RESULTS.exists() else {"networks": {}}
    if not options.table:
        torch.set_num_threads(1)
        for name in options.networks:
            measure(options.folder, name, installed(), results)
    print(table(results))


if __name__ == "__main__":
    main()
