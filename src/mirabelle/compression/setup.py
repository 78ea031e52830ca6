"""What is worked out once for a study, before its trials: the tables of losses and costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.data import Batch, batches, check_finite, device_of, samples
from mirabelle.base.errors import InputError
from mirabelle.base.files import content_hash, read_tensors, write_tensors
from mirabelle.base.identity import data_identity, function_identity, network_identity
from mirabelle.compression.clock import locked, timing
from mirabelle.compression.limits import Goal
from mirabelle.compression.parts import NAMELESS, Parts, Source
from mirabelle.compression.plan import LEAST, Known, Table, coupled, table
from mirabelle.compression.prices import Prices, prices
from mirabelle.compression.trial import KEPT, STATISTICS, Setting
from mirabelle.distillation.choices import choose_losses
from mirabelle.distillation.teachers import Teachers
from mirabelle.exporter import export
from mirabelle.measurement.accuracy import as_tensor, predictor
from mirabelle.measurement.judge import Judge
from mirabelle.pruning.allocation import widths_of
from mirabelle.pruning.api import ALIGN
from mirabelle.runtimes import RUNTIMES

FEW = 64  # samples on which losses of outputs are measured
TABLE = "table.safetensors"


def identity(
    model: nn.Module, parts: Parts, goal: Goal, options: Mapping[str, Any], seed: int
) -> str:
    """What tells one study from another; the time that it may take does not."""
    return content_hash(
        {
            "network": network_identity(model),
            "data": {
                n: data_identity(getattr(parts, n), seed) for n in ("train", "validation", "test")
            },
            "limits": dict(goal.limits),
            "minimize": goal.minimize,
            "metric": function_identity(options["metric"]),
            "runtime": options["runtime"],
            "keep": sorted(options["keep"]),
            "seed": seed,
        }
    )


def prepared(
    model: nn.Module,
    parts: Parts,
    goal: Goal,
    options: Mapping[str, Any],
    folder: Path,
    source: Source = NAMELESS,
) -> Setting:
    """Everything that the trials share. The first process works it out, others read it."""
    runtime = options["runtime"]
    inputs = parts.example
    coupling = coupled(model, inputs, options["keep"])
    base = export(model, folder / "original", runtime=runtime, inputs=inputs.args or inputs)
    few = _few(parts)
    predict = predictor(model)
    integers = RUNTIMES[runtime].int8
    with locked(folder / "table.lock"):
        quantities = dict.fromkeys((goal.quantity, *goal.costs, "size", "macs"))
        with timing():
            known = {
                q: prices(q, model, coupling, runtime, integers, parts.calibration)
                for q in quantities
            }
        measured = _table(model, coupling, parts, known, goal.quantity, folder, options["keep"])
        found = fine_enough(measured, goal)
    wanted = [as_tensor(predict(b)) for b in few]
    return Setting(
        model,
        parts,
        Judge(model, parts.validation, options["metric"], parts.labeled),
        found,
        goal,
        runtime,
        folder,
        options["seed"],
        base,
        few,
        wanted,
        _losses(model, parts),
        folder / "teacher" if wanted[0][0].numel() <= KEPT else None,
        source,
    )


def _few(parts: Parts) -> list[Batch]:
    """Samples that no statistics come from, without labels."""
    found = [b._replace(target=None) for b in batches(parts.validation, 8)]
    return list(samples(found, FEW))


def _table(
    model: nn.Module,
    coupling: Any,
    parts: Parts,
    known: Mapping[str, Prices],
    quantity: str,
    folder: Path,
    keep: Sequence[str],
) -> Table:
    """The table of `folder` if it was written before, else a new one."""
    path, groups = folder / TABLE, {g.name for g in coupling.groups}
    align = max(getattr(form, "align", ALIGN) for form in known[quantity].forms.values())
    if path.is_file():
        scores, about = read_tensors(path)
        if set(scores) != groups:
            raise InputError(f"{path} is of another network; choose another folder")
        layers, blocks = json.loads(about["layers"]), json.loads(about["blocks"])
        return table(model, [], known, coupling, align, Known(scores, layers, blocks))
    few = list(samples(parts.calibration, STATISTICS))
    found = table(model, few, known, coupling, align, keep=keep)
    about = {"layers": json.dumps(dict(found.layers)), "blocks": json.dumps(dict(found.blocks))}
    write_tensors(path, found.scores, about)
    return found


def fine_enough(found: Table, goal: Goal) -> Table:
    """The table itself where its narrowest plan holds the limits of costs, else with finer widths:
    layers of few channels have hardly any that are multiples of what kernels like.
    """
    step = ALIGN
    while step > 1 and any(
        found.plan({q: 0.0}).costs[q] > limit for q, limit in goal.costs.items()
    ):
        step //= 2
        widths = {g.name: widths_of(g, step, LEAST) for g in found.coupling.groups}
        found = replace(found, widths=widths)
    return found


def _losses(model: nn.Module, parts: Parts) -> dict[str, Mapping[str, float] | None]:
    """The losses that the search chooses among, by name. The first is usual: the squared error of
    the outputs, in which plans are made and layers are fitted, too.
    """
    what = "the training data"
    first = check_finite(next(batches(parts.train, what=what)), f"batch 0 of {what}", squares=True)
    chosen, _ = choose_losses(model, Teachers(model, device_of(model)), first)
    found: dict[str, Mapping[str, float] | None] = {"mse": {"mse": 1.0}}
    if "mse" not in chosen:
        found["chosen"] = chosen
    target = first.target
    if isinstance(target, torch.Tensor) and target.ndim == 1 and not target.is_floating_point():
        labeled = {f"{n}, labels": {**(v or {}), "labels": 0.3} for n, v in found.items()}
        found = labeled | found
    return found


def check_study(found: str, expected: str | None, folder: Path) -> None:
    """`InputError` where the folder is another search's."""
    if expected is not None and expected != found:
        raise InputError(
            f"{folder} holds the search for another network, other data or other limits; choose "
            "another folder, or remove it"
        )
