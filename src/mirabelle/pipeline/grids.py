"""Which grids the files of a recipe get: each runtime's kernels want their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.pipeline.order import NETWORK
from mirabelle.pipeline.recipe import Step
from mirabelle.quantization.targets import target_of


@dataclass(frozen=True)
class Grids:
    """What `quantize` is called with for some runtimes, besides the options of the recipe."""

    runtimes: tuple[str, ...]
    options: Mapping[str, Any]


def exported_runtimes(steps: Sequence[Step]) -> list[str]:
    """The runtimes that files are written for; none where no step exports."""
    for step in steps:
        if step.name == "export":
            return list(step.options.get("runtimes", ["onnxruntime"]))
    return []


def grids_of(steps: Sequence[Step]) -> list[Grids]:
    """One entry for each way in which the recipe's network is quantized, the first for what the
    steps after it see. One alone where the recipe names the target, where nothing is exported, and
    where a step after it trains the quantized network, of which there is one.
    """
    names = [s.name for s in steps]
    runtimes = exported_runtimes(steps)
    if "quantize" not in names:
        return []
    place = names.index("quantize")
    given, later = steps[place].options, names[place + 1 :]
    if not runtimes or any(n in NETWORK for n in later):
        return [Grids(tuple(runtimes), {})]
    found: dict[str, Grids] = {}
    for runtime in runtimes:
        own: dict[str, Any] = {}
        if given.get("target", "auto") == "auto":
            own["target"] = target_of(runtime)
        timed = given.get("placement") == "fastest" or given.get("accuracy_drop") is not None
        if timed and "runtime" not in given:
            own["runtime"] = runtime
        before = found.get(str(own), Grids((), own))
        found[str(own)] = Grids((*before.runtimes, runtime), own)
    return list(found.values())
