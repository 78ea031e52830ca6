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
) -> dict[str, Any]:
    """By runtime: every executed node of the first and of the last stage, the layers that they
    belong to, paired, and what to do about them. Runtimes without a profiler are left out.

    artifacts: by (stage, runtime). arrays: inputs by "stage/runtime". ends: the names of the stages
    `before` and `after`.
    """
    found = {}
    for runtime in runtimes:
        if RUNTIMES[runtime].profile is None:
            continue
        files = {end: artifacts[stage, runtime] for end, stage in ends.items()}
        times = {e: f.profile(*arrays[f"{ends[e]}/{runtime}"]) for e, f in files.items()}
        named = {e: attribute(times[e], layer_names(f)) for e, f in files.items()}
        rows = pair_layers(named["before"], named["after"])
        found[runtime] = {
            **{end: [t._asdict() for t in seen] for end, seen in times.items()},
            "layers": [{**asdict(r), "advice": advice_of(r)} for r in rows],
            "advice": advice(rows),
        }
    return found
