"""What a network costs on 64-bit Arm, in instructions of one inference: original, pruned, int8,
sparse; `python -m benchmarks.arm`.

Instructions are not milliseconds: see docs/results/arm.md, whose table it prints. Needs `mirabelle
setup-arm64`, torchvision and timm. Weights are random: a count of instructions does not depend on
them. Goes on where it stopped; `--most N` ends after N measurements, `--table` only prints.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import mirabelle as mb
from benchmarks import zoo
from mirabelle.base.checks import clone
from mirabelle.base.files import read_json, write_json
from mirabelle.devices import arm64, arm_setup
from mirabelle.measurement.machine import machine, versions
from mirabelle.pruning import prune
from mirabelle.quantization import quantize

RESULTS = Path(__file__).parent / "results" / "arm.json"
NETWORKS = {
    "MobileNetV1": "timm/mobilenetv1_100",
    "MobileNetV2": "torchvision/mobilenet_v2",
    "ResNet-18": "torchvision/resnet18",
}
CORES = ("cortex-a76", "cortex-a53")
INT8 = {
    "litert": "arm",
    "onnxruntime": "arm",
    "onnxruntime-mobile": "arm",
    "ncnn": "symmetric",
    "openvino": "arm",
}
SPARSE = ("sparse 80 %", "sparse 90 %", "sparse 95 %", "sparse 90 %, blocks")
VARIANTS = ("original", "pruned to half the MACs", "int8", "pruned, int8", *SPARSE)


def variants(runtime: str) -> tuple[str, ...]:
    return VARIANTS if runtime == "litert" else VARIANTS[:4]


def sparse(model: nn.Module, share: float, block: int) -> nn.Module:
    """The smallest weights of each 1x1 convolution and linear layer gone, the same ones for `block`
    output channels.
    """
    model = clone(model)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) or (
                isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
            ):
                rows = layer.weight.view(
                    -1, block if len(layer.weight) % block == 0 else 1, layer.weight[0].numel()
                )
                size = rows.abs().sum(1, keepdim=True)
                rows *= size > size.flatten().kthvalue(max(1, round(share * size.numel()))).values
    return model


def build(name: str, variant: str, runtime: str) -> tuple[nn.Module, torch.Tensor]:
    model, x = zoo.build(NETWORKS[name])
    if variant.startswith("pruned"):
        model = prune(
            model, x, macs=0.5, criterion="l1", allocation="uniform", align=8, repair=None
        )
    if variant.startswith("sparse"):
        model = sparse(model, float(variant.split()[1]) / 100, 4 if "blocks" in variant else 1)
    if variant.endswith("int8"):
        model = quantize(
            model,
            [torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(0))],
            target=INT8[runtime],
        )
    return model, x[:1]


def measure(name: str, variant: str, runtime: str, cores: list[str]) -> list[dict]:
    model, x = build(name, variant, runtime)
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        artifact = mb.export(model, folder, runtime=runtime, inputs=x)
        for core in cores:
            found, _ = arm64.run(artifact, artifact.arrays(x), core)
            rows.append(
                {
                    "network": name,
                    "variant": variant,
                    "runtime": runtime,
                    "core": core,
                    "bytes": artifact.bytes,
                    "instructions": found.count,
                    "spread": found.spread,
                    "relative": found.relative,
                    "version": found.runtime,
                    "emulator": found.emulator,
                    "warning": "; ".join(
                        str(w.message) for w in said if "densely" in str(w.message)
                    ),
                }
            )
    return rows


def table(results: dict) -> str:
    rows = {(r["network"], r["runtime"], r["variant"], r["core"]): r for r in results["runs"]}
    lines = [
        "| network | runtime | variant | file, MB | Cortex-A76: M instructions (of the "
        "original) | Cortex-A53 | outputs as on x86 to |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        for runtime in dict.fromkeys(r["runtime"] for r in results["runs"]):
            for variant in VARIANTS:
                found = [rows.get((name, runtime, variant, core)) for core in CORES]
                if not any(found):
                    continue
                cells = []
                for core, r in zip(CORES, found):
                    base = rows.get((name, runtime, "original", core))
                    cells.append(
                        "–"
                        if r is None
                        else f"{r['instructions'] / 1e6:.1f}"
                        + (f" ({r['instructions'] / base['instructions']:.2f})" if base else "")
                    )
                first = next(r for r in found if r)
                worst = max(r["relative"] for r in found if r)
                lines.append(
                    f"| {name} | {runtime} | {variant} | {first['bytes'] / 1e6:.2f} | "
                    f"{cells[0]} | {cells[1]} | {worst:.0e} |"
                )
    seen = sorted({f"{r['version']}" for r in results["runs"]})
    spread = max((r["spread"] / r["instructions"] for r in results["runs"]), default=0.0)
    lines += [
        "",
        f"Instructions are not milliseconds. {results['runs'][0]['emulator']}, "
        f"{', '.join(seen)}, torch {results['versions']['torch']}, {results['date']}.",
    ]
    return "\n".join(
        [
            *lines,
            f"Between the quartiles of the inferences of one process lie at most {spread:.1e} "
            "of the count.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="+", default=["litert", "onnxruntime", "ncnn"])
    parser.add_argument("--most", type=int, default=10**9)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = read_json(RESULTS) if RESULTS.exists() else {"runs": []}
    if not options.table:
        torch.set_num_threads(1)
        for runtime in options.runtimes:
            arm_setup.find(runtime)
        results |= {
            "machine": machine(),
            "versions": versions("torch", "torchvision", "timm"),
            "date": str(datetime.date.today()),
        }
        left = options.most
        for runtime in options.runtimes:
            for name in NETWORKS:
                for variant in variants(runtime):
                    done = {
                        r["core"]
                        for r in results["runs"]
                        if (r["network"], r["runtime"], r["variant"]) == (name, runtime, variant)
                    }
                    cores = [c for c in CORES if c not in done]
                    if cores and left > 0:
                        left -= 1
                        results["runs"] += measure(name, variant, runtime, cores)
                        write_json(RESULTS, results)
                        counts = [r["instructions"] / 1e6 for r in results["runs"][-len(cores) :]]
                        print(f"{name}, {runtime}, {variant}: {counts} M", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
