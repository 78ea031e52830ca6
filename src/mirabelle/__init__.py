"""Mirabelle: a trained network in, one that fits a phone out.

The verbs are functions, `mb.prune(...)`; the rooms that hold their tables are packages,
`mb.pruning.CRITERIA`. Each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirabelle.base.errors import (
        CaptureError,
        CheckpointError,
        InputError,
        LimitError,
        MirabelleError,
        MirabelleWarning,
        MissingRuntimeError,
        RecipeError,
        SurgeryError,
    )
    from mirabelle.base.version import __version__
    from mirabelle.channels.explain import explain
    from mirabelle.compression.api import compress
    from mirabelle.compression.result import Compressed
    from mirabelle.distillation.api import distill
    from mirabelle.exporter import export
    from mirabelle.measurement.api import measure
    from mirabelle.measurement.result import Measurement
    from mirabelle.pipeline.api import Run, run
    from mirabelle.pruning.api import prune
    from mirabelle.pruning.factorization import factorize
    from mirabelle.quantization.api import quantize
    from mirabelle.report.picture import picture
    from mirabelle.runtimes.artifact import Artifact
    from mirabelle.sparsity.api import sparsify
    from mirabelle.store import load, save
    from mirabelle.training.api import fit
    from mirabelle.verification.api import Verification, verify

_HOME = {
    "compress": "compression.api",
    "distill": "distillation.api",
    "explain": "channels.explain",
    "export": "exporter",
    "factorize": "pruning.factorization",
    "fit": "training.api",
    "load": "store",
    "measure": "measurement.api",
    "picture": "report.picture",
    "prune": "pruning.api",
    "quantize": "quantization.api",
    "run": "pipeline.api",
    "save": "store",
    "sparsify": "sparsity.api",
    "verify": "verification.api",
    "Artifact": "runtimes.artifact",
    "Compressed": "compression.result",
    "Measurement": "measurement.result",
    "Run": "pipeline.api",
    "Verification": "verification.api",
    **dict.fromkeys(
        (
            "CaptureError",
            "CheckpointError",
            "InputError",
            "LimitError",
            "MirabelleError",
            "MirabelleWarning",
            "MissingRuntimeError",
            "RecipeError",
            "SurgeryError",
        ),
        "base.errors",
    ),
    "__version__": "base.version",
}
_ROOMS = (
    "base",
    "channels",
    "compression",
    "devices",
    "distillation",
    "fitting",
    "graph",
    "integers",
    "integrations",
    "measurement",
    "onnx_files",
    "pipeline",
    "pruning",
    "quantization",
    "report",
    "runtimes",
    "sources",
    "sparsity",
    "training",
    "verification",
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(f"mirabelle.{_HOME[name]}"), name)
    elif name in _ROOMS:
        return importlib.import_module(f"mirabelle.{name}")
    else:
        raise AttributeError(f"module 'mirabelle' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})


__all__ = [
    "Artifact",
    "CaptureError",
    "CheckpointError",
    "Compressed",
    "InputError",
    "LimitError",
    "Measurement",
    "MirabelleError",
    "MirabelleWarning",
    "MissingRuntimeError",
    "RecipeError",
    "Run",
    "SurgeryError",
    "Verification",
    "__version__",
    "compress",
    "distill",
    "explain",
    "export",
    "factorize",
    "fit",
    "load",
    "measure",
    "picture",
    "prune",
    "quantize",
    "run",
    "save",
    "sparsify",
    "verify",
]
