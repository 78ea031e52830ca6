"""Where the time goes on each runtime, before and after, node by node and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mirabelle.measurement.layers import advice, advice_of, attribute, layer_names, pair_layers
from mirabelle.runtimes import RUNTIMES
from mirabelle.runtimes.artifact import Artifact


def profiles(
    artifacts: Mapping[tuple[str, str], Artifact],
    arrays: Mapping[str, Any],
    ends: Mapping[str, str],
    runtimes: Sequence[str],
    modules: Mapping[str, str],
) -> dict[str, Any]:
    """By runtime: every executed node of the first and of the last stage, the layers that they
    belong to, paired, and what to do about them. Runtimes without a profiler are left out.

    artifacts: by (stage, runtime). arrays: inputs by "stage/runtime". ends: the names of the stages
    `before` and `after`. modules: the path of a module by its node, in networks of ONNX files.
    """
    found = {}
    for runtime in runtimes:
        if RUNTIMES[runtime].profile is None:
            continue
        files = {end: artifacts[stage, runtime] for end, stage in ends.items()}
        times = {e: f.profile(*arrays[f"{ends[e]}/{runtime}"]) for e, f in files.items()}
        named = {e: attribute(times[e], _names(f, modules)) for e, f in files.items()}
        rows = pair_layers(named["before"], named["after"])
        found[runtime] = {
            **{end: [t._asdict() for t in seen] for end, seen in times.items()},
            "layers": [{**asdict(r), "advice": advice_of(r)} for r in rows],
            "advice": advice(rows),
        }
    return found


def _names(file: Artifact, modules: Mapping[str, str]) -> dict[str, str]:
    """What a runtime may call a node -> the layer's path, as all else in a report is named."""
    known = {name: modules.get(layer, layer) for name, layer in layer_names(file).items()}
    return {**modules, **known}
