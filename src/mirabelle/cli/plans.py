"""What a recipe would do, and roughly how long it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mirabelle.base.data import Batch, batches, length_of
from mirabelle.cli.common import Common, say
from mirabelle.pipeline.facts import check_fit
from mirabelle.pipeline.inputs import Opened, check, check_pictures
from mirabelle.pipeline.recipe import OPTIONS, Recipe

# How often a step runs the network on a sample, in passes; measured on small networks, and rough.
PASSES = {"quantize": 9.0, "verify": 14.0, "sparsify": 12.0, "prune": 8.0, "factorize": 8.0}
TRAINED = 3.0  # a training step, in passes of its samples
TIMED = 14.0  # seconds that latency is measured
EXPORTED = 6.0  # seconds for a file, with capture
CUT = 15.0  # seconds to follow the channels and prove the cut


def dry_run(recipe: Recipe, folder: Path, common: Common) -> int:
    """Checks everything that a run checks before its first step, and says what would follow."""
    named = check(recipe)
    check_fit(named.recipe, named.model, named.loaders)
    doubts = check_pictures(named).warnings
    seconds = estimated(named)
    lines = [
        f"network: {named.found.name}",
        f"data: {named.data}",
        *([f"pictures: {named.data.how}"] if named.data.how else []),
        *(f"warning: {d}" for d in doubts),
        "steps:",
        *(f"  {i}. {_said(name, seconds)}" for i, name in enumerate(seconds, 1)),
        f"about {_time(sum(seconds.values()))} in all; everything goes into {folder}",
    ]
    found = {
        "network": named.found.name,
        "data": str(named.data),
        "preprocessing": named.data.how.to_dict() if named.data.how else None,
        "warnings": doubts,
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "folder": str(folder),
    }
    return say(found, common.json, "\n".join(lines))


def _said(name: str, seconds: Mapping[str, float]) -> str:
    return f"{name}, about {_time(seconds[name])}"


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


def estimated(named: Opened) -> dict[str, float]:
    """Seconds of each step, from the time of one batch: to within a factor of three or so."""
    batch = next(batches(named.loaders.calibration, 1))
    one = _seconds(named, batch)
    test = _samples(named.loaders.test, batch)
    found: dict[str, float] = {}
    files = 1
    for step in named.recipe.steps:
        options = {**OPTIONS[step.name], **step.options}
        runtimes = len(options.get("runtimes") or ()) or 1
        if step.name == "export":
            stages = 1 + len([s for s in named.recipe.steps if s.name not in ("export", "verify")])
            found["export"] = EXPORTED * runtimes * stages
            files = runtimes * stages
        elif step.name in ("fit", "distill"):
            count = _samples(named.loaders.train, batch)
            passes = (options.get("epochs") or 1) * TRAINED * (2 if step.name == "distill" else 1)
            found[step.name] = passes * count * one
        else:
            count = min(options["samples"], test * 4)
            found[step.name] = PASSES[step.name] * count * one
            found[step.name] += CUT if step.name == "prune" else 2.0
    found["measure"] = TIMED + files * test * one
    return found


def _samples(loader: Any, batch: Batch) -> int:
    length = length_of(loader)
    return (length or 10) * batch.size


def _seconds(named: Opened, batch: Batch) -> float:
    """Of one sample in a pass, the better of two tries."""
    with torch.inference_mode():
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            batch.run(named.model)
            times.append(time.perf_counter() - begun)
    return min(times) / batch.size
