"""Whether the files of a recipe can be made, before anything long starts: the network as it is,
quantized on a few samples, goes to every runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.data import samples as first_samples
from mirabelle.base.errors import first_line
from mirabelle.base.progress import track
from mirabelle.exporter import export
from mirabelle.pipeline.grids import exported_runtimes, grids_of
from mirabelle.pipeline.recipe import Recipe
from mirabelle.quantization.api import quantize
from mirabelle.sources.callables import Loaders

FEW = 8  # samples
# Of the recipe's quantize step: what decides which operators its files hold.
FORM = ("bits", "weight_bits", "symmetric", "per_channel", "weight_symmetric", "target", "keep")


def failures(
    recipe: Recipe, model: nn.Module, loaders: Loaders, example: Batch
) -> dict[str, str | None]:
    """By runtime, why its files cannot be made or run; None where they can. What the steps before
    do to the network is left out.
    """
    runtimes = exported_runtimes(recipe.steps)
    found: dict[str, str | None] = dict.fromkeys(runtimes)
    networks: dict[str, list[nn.Module]] = {r: [model] for r in runtimes}
    given = next((s.options for s in recipe.steps if s.name == "quantize"), {})
    for way in grids_of(recipe.steps):
        own = {k: v for k, v in {**given, **way.options}.items() if k in FORM}
        few = list(first_samples(loaders.calibration, FEW, "the calibration loader"))
        try:
            quantized = quantize(model, few, threshold="absmax", repair=None, samples=FEW, **own)
        except Exception as error:
            found |= dict.fromkeys(way.runtimes, _said(error, "quantizing for it"))
            continue
        for runtime in way.runtimes:
            networks[runtime].append(quantized)
    for runtime in track(runtimes, "converting"):
        found[runtime] = found[runtime] or _failure(networks[runtime], runtime, example)
    return found


def _failure(networks: list[nn.Module], runtime: str, example: Batch) -> str | None:
    """Why these networks do not become files that run."""
    with tempfile.TemporaryDirectory(prefix="mirabelle-") as folder:
        for number, network in enumerate(networks):
            what = ("the float network", "the quantized network")[min(number, 1)]
            inputs: Any = example.kwargs or example.args
            try:
                file = export(network, Path(folder) / str(number), runtime=runtime, inputs=inputs)
                file.predict(example)
            except Exception as error:  # of a converter or a runtime, too
                return _said(error, what)
    return None


def _said(error: Exception, what: str) -> str:
    return f"{what}: {type(error).__name__}: {first_line(error)}"


def listed(found: Mapping[str, str | None]) -> str:
    """`litert: the float network: ...; ncnn: ...` of those that fail."""
    return "; ".join(f"{r}: {why}" for r, why in found.items() if why is not None)
