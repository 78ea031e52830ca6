"""MobileNetV2 on every runtime, float and int8: bytes, milliseconds in turn, and how near the integers are to the reference.

`python -m benchmarks.runtimes` goes on where it stopped and prints the table of docs/runtimes.md; one thread, batch 1. Runtimes that are not installed are left out.
Real weights and photographs (see `photographs.py`); needs torchvision and pillow. `--table` only prints.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from functools import partial
from pathlib import Path

import torch

import mirabelle as mb
from benchmarks import photographs
from mirabelle.errors import MissingRuntimeError
from mirabelle.files import read_json, write_json
from mirabelle.measure.latency import alternate, speedup
from mirabelle.measure.machine import machine, versions
from mirabelle.quantize import quantize
from mirabelle.runtimes import RUNTIMES, load

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
# The grids that suit each runtime's kernels on this machine.
GRIDS = {"onnxruntime": "auto", "onnxruntime-mobile": "auto", "openvino": "auto", "ncnn": "symmetric"}
SAMPLES, SECONDS = 64, 40


def installed() -> list[str]:
    found = []
    for name, runtime in RUNTIMES.items():
        try:
            runtime.version()
            found.append(name)
        except MissingRuntimeError:
            pass
    return found


def networks() -> dict[str, torch.nn.Module]:
    """The float network, and quantised ones by their grids."""
    calibration, _ = photographs.split(0)
    data = photographs.crops(calibration, 1, 0).split(16)
    model = photographs.mobilenet_v2()
    return {"float": model} | {t: quantize(model, data, target=t, samples=len(calibration)) for t in ("auto", "arm", "symmetric")}


def files(folder: Path, names: list[str]) -> None:
    """Exports what is not there yet."""
    x = torch.zeros(1, 3, 224, 224)
    made: dict[str, torch.nn.Module] = {}
    for name in names:
        for kind in ("float", "int8") if RUNTIMES[name].int8 else ("float",):
            target = folder / name / kind
            if not (target / f"model{RUNTIMES[name].suffix}").is_file():
                made = made or networks()
                mb.export(made["float" if kind == "float" else GRIDS.get(name, "arm")], target, runtime=name, inputs=x)


def check(folder: Path, name: str, results: dict) -> None:
    """Compares both files with torch and with the reference on photographs that calibrated nothing."""
    _, held_out = photographs.split(0)
    data = photographs.crops(held_out, 1, 1)[:SAMPLES]
    made = networks()
    with torch.no_grad():
        expected = made["float"](data).numpy()
    artifact = load(folder / name / "float" / f"model{RUNTIMES[name].suffix}", name)
    got = artifact.predict(mb.data.as_batch(data))
    row = {"bytes": artifact.bytes, "version": artifact.version, "float_difference": float(abs(got - expected).max() / abs(expected).max())}
    if RUNTIMES[name].int8:
        small, q = load(folder / name / "int8" / f"model{RUNTIMES[name].suffix}", name), made[GRIDS.get(name, "arm")]
        found = mb.verify(q, small, [data], samples=SAMPLES)
        again = small.predict(mb.data.as_batch(data))
        row |= {
            "int8_bytes": small.bytes, "samples": found.samples, "layers": len(found.layers), "sites": len(q.meta["quantization"].sites),
            "off_by": max((c.max_off_by for c in found.layers), default=None), "declared": RUNTIMES[name].off_by,
            "exact": min((c.exact for c in found.layers), default=None), "sqnr_db": found.sqnr_db, "agreement": found.agreement.value,
            "float_agreement": float((again.argmax(1) == expected.argmax(1)).mean()), "note": found.note, "grids": q.meta["quantization"].target,
        }  # fmt: skip
    results["runtimes"][name] = {**results["runtimes"].get(name, {}), **row}


def time(folder: Path, names: list[str], results: dict) -> None:
    x = photographs.crops(photographs.split(0)[1], 1, 1)[:1].numpy()
    calls = {}
    for name in names:
        for kind in ("float", "int8") if RUNTIMES[name].int8 else ("float",):
            artifact = load(folder / name / kind / f"model{RUNTIMES[name].suffix}", name)
            calls[name, kind] = partial(artifact.session.run, artifact.arrays(x))
    seen = alternate({f"{n}/{k}": c for (n, k), c in calls.items()}, 2000, seconds=SECONDS * len(calls) / 4, pin=True)
    base = seen["onnxruntime/float"]
    for (name, kind), key in ((k, f"{k[0]}/{k[1]}") for k in calls):
        relative = speedup(base, seen[key])
        results["runtimes"][name][f"{kind}_ms"] = {"p50": seen[key].p50_ms, "p95": seen[key].p95_ms, "rounds": seen[key].runs}
        results["runtimes"][name][f"{kind}_speedup"] = [relative.value, relative.low, relative.high]


def table(results: dict) -> str:
    lines = [
        "| runtime | float: MB, ms p50 (over ONNX Runtime's float) | int8: MB, ms p50 | int8 grids | off by (declared) | exact, worst layer | same class as the reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results["runtimes"].items():
        cells = []
        for kind, size in (("float", "bytes"), ("int8", "int8_bytes")):
            if f"{kind}_ms" in r and size in r:
                value, low, high = r[f"{kind}_speedup"]
                cells.append(f"{r[size] / 1e6:.2f}, {r[f'{kind}_ms']['p50']:.2f} ({value:.2f} [{low:.2f}, {high:.2f}])")
            else:
                cells.append("–")
        off = f"{r['off_by']} ({r['declared']})" if r.get("off_by") is not None else "–"
        exact = f"{100 * r['exact']:.2f} %" if r.get("exact") is not None else "–"
        same = f"{100 * r['agreement']:.1f} % of {r['samples']}" if "agreement" in r else "–"
        lines.append(f"| {name} {r['version']} | {cells[0]} | {cells[1]} | {r.get('grids', '–')} | {off} | {exact} | {same} |")
    told = results["machine"]
    return "\n".join(
        [*lines, "", f"One thread of {told['cpu']} ({', '.join(told['features'])}), torch {results['versions']['torch']}, {results['date']}."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mirabelle-runtimes", help="where the files are kept meanwhile")
    parser.add_argument("--only", nargs="+", help="runtimes to export and check; timing is of all")
    parser.add_argument("--time", action="store_true", help="time again")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = read_json(RESULTS) if RESULTS.exists() else {"runtimes": {}}
    if not options.table:
        torch.set_num_threads(1)
        names = installed()
        files(options.folder, options.only or names)
        for name in options.only or names:
            if "float_difference" not in results["runtimes"].get(name, {}):
                check(options.folder, name, results)
                write_json(RESULTS, results)
        if not options.only and (options.time or any("float_ms" not in results["runtimes"][n] for n in names)):
            time(options.folder, names, results)
        results |= {"machine": machine(), "versions": versions("torch", "onnx"), "date": str(datetime.date.today())}
        write_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
