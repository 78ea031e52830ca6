"""Int8 without data against 300 real pictures: `python -m benchmarks.without_data`; one thread,
resumable, for the processor that it runs on.

`mb.quantize` and nothing else, exported for ONNX Runtime and run there on pictures that no
calibration saw: the signal-to-noise ratio of the outputs, and how often the first class is
float's. Without data the network gets zeros as its example, or what its preprocessing is, or one
real picture. The method was developed on the first four networks; nothing was chosen on
EfficientNet-Lite1 and 2. Networks, pictures and what to install are those of
`benchmarks/quantization.py`.
"""

from __future__ import annotations

import argparse
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mirabelle as mb
from benchmarks import photographs
from benchmarks import quantization_methods as others
from benchmarks.runs import carry_out, kept, rows
from examples import fashion, shapes
from mirabelle.measurement.accuracy import score
from mirabelle.measurement.machine import machine, versions
from mirabelle.runtimes.clipping import kernels_with_pairs
from mirabelle.sources.networks import Found
from mirabelle.sources.preprocessing import Preprocessing

RESULTS = Path(__file__).parent / "results" / "without_data.json"
RUNTIME = "onnxruntime"
IMAGES = 300
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (tuple(photographs.MEAN.flatten().tolist()), tuple(photographs.STD.flatten().tolist()))
# What a picture's pixels of 0..1 are normalized by; None where the inputs are no photographs.
NETWORKS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "shapes": None,
    "fashion": ((fashion.MEAN,), (fashion.STD,)),
    "mobilenet_v2": IMAGENET,
    "efficientnet_lite0": HALF,
    "efficientnet_lite1": HALF,
    "efficientnet_lite2": HALF,
}
SIZES = {"efficientnet_lite1": 240, "efficientnet_lite2": 260}
NOTHING, KNOWN, ONE, REAL = "nothing", "preprocessing", "one picture", "real pictures"


@lru_cache(maxsize=1)
def setting(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The network, calibration inputs, and test inputs that are none of these."""
    if name == "shapes":
        loaders = shapes.data()
        x, tests = (torch.cat([b[0] for b in loaders[p]]) for p in ("calibration", "test"))
        return shapes.network(), x, tests
    if name not in SIZES:
        model, x, tests, _ = others.setting(name)
        return model, x[:IMAGES], tests
    _, x, tests, _ = others.setting("efficientnet_lite0")
    size = (SIZES[name],) * 2
    x, tests = (nn.functional.interpolate(v, size, mode="bilinear") for v in (x, tests))
    return others.lite(name), x[:IMAGES], tests


def quantized(name: str, given: str) -> nn.Module:
    model, x, _ = setting(name)
    if given == REAL:
        data = others.batches_of(x)
        return mb.quantize(model, data, samples=len(x), target=others.TARGET[RUNTIME])
    known: Any = model
    normalized = NETWORKS[name]
    if given == KNOWN and normalized is not None:
        height, width = x.shape[2:]
        color = "gray" if x.shape[1] == 1 else "rgb"
        how = Preprocessing(height, width, *normalized, color=color)
        known = Found(name, model, how=how)
    inputs = x[:1] if given == ONE else torch.zeros_like(x[:1])
    return mb.quantize(known, inputs=inputs, target=others.TARGET[RUNTIME])


def run(asked: dict[str, str]) -> dict[str, Any]:
    """One network, with what it is given: its file against float's."""
    name, given = asked["network"], asked["given"]
    model, x, tests = setting(name)
    start = time.process_time()
    q = quantized(name, given)
    seconds = time.process_time() - start
    found = {}
    for kind, network in (("float", model), ("int8", q)):
        folder = others.folder_of(name, f"without data {given} {kind}", RUNTIME)
        file = mb.export(network, folder, runtime=RUNTIME, inputs=x[:1])
        found[kind] = others.outputs(file, tests)
    same = score((found["float"].argmax(1) == found["int8"].argmax(1)).astype(float), "agreement")
    return {
        "n": len(tests),
        "kernels_clip_pairs": kernels_with_pairs(RUNTIME) is not None,
        "cpu_seconds": seconds,
        "pictures": {REAL: len(x), ONE: 1}.get(given, 0),
        "agreement": same.value,
        "interval": [same.low, same.high],
        "sqnr_db": others.sqnr(found["float"], found["int8"]),
    }


def asked() -> list[dict[str, str]]:
    return [
        {"network": n, "given": g}
        for n, normalized in NETWORKS.items()
        for g in (REAL, KNOWN, NOTHING, ONE)
        if g != KNOWN or normalized is not None
    ]


def table(results: dict[str, Any]) -> str:
    """A row for each network; the gap is to real pictures."""
    head = (NOTHING, KNOWN, ONE, REAL)
    lines = [f"| network, n | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name in NETWORKS:
        found = {r["given"]: r for r in rows(results, network=name)}
        if not found:
            continue
        cells = [
            f"{r['sqnr_db']:.1f} dB, {100 * r['agreement']:.1f} %" if (r := found.get(g)) else ""
            for g in head
        ]
        n = next(iter(found.values()))["n"]
        lines.append(f"| {name}, {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help="one network")
    parser.add_argument("--given", choices=(REAL, KNOWN, NOTHING, ONE), help="one column")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        wanted = [
            a
            for a in asked()
            if options.network in (None, a["network"]) and options.given in (None, a["given"])
        ]
        conditions = {"machine": machine(), "versions": versions("torch", "onnxruntime")}
        carry_out(RESULTS, wanted, run, conditions)
    results = kept(RESULTS)
    print(table(results))
    print(f"\n{results.get('machine', {}).get('cpu')}, one thread.")


if __name__ == "__main__":
    main()
