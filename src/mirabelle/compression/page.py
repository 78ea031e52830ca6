"""The report of a search, as `report.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mirabelle.base.version import __version__
from mirabelle.compression.front import Point, front
from mirabelle.compression.limits import DROP, Goal
from mirabelle.compression.prices import FLOAT, INT8
from mirabelle.compression.trial import Setting
from mirabelle.measurement.latency import speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.tensors import describe_tensors
from mirabelle.report.schema.run import tensors_of


def report_of(
    setting: Setting,
    points: Sequence[Point],
    chosen: Sequence[Point],
    best: Point,
    tested: Mapping[str, Any],
    network: nn.Module,
    verified: list[dict[str, Any]],
    sure: bool,
    missed: Sequence[str],
) -> dict[str, Any]:
    """All numbers of the search. points: all that were judged; chosen: those that were tested."""
    goal, runtime = setting.goal, setting.runtime
    before = _stage(setting, "original", setting.model, tested[""], tested[""])
    after = _stage(setting, "compressed", network, tested[best.folder], tested[""])
    after["macs"] = best.macs
    figures = after["runtimes"][runtime]
    result = {
        "runtime": runtime,
        "accuracy_drop": figures["accuracy_drop"],
        "accuracy_drop_interval": figures["accuracy_drop_interval"],
        "speedup": figures["speedup"]["value"],
        "size_ratio": before["runtimes"][runtime]["bytes"] / figures["bytes"],
        "macs_ratio": best.macs / max(1, before["macs"]),
    }
    report: dict[str, Any] = {
        "format": 1,
        "mirabelle": __version__,
        "title": f"{type(setting.model).__name__}, compressed",
        "machine": machine(),
        "versions": versions("torch", "onnx", "onnxruntime", "openvino", "optuna", "numpy"),
        "network": {"name": type(setting.model).__name__, "inputs": tensors_of(setting.inputs)},
        "stages": [before, after],
        "channels": _channels(setting, best),
        "training": [
            {
                "stage": best.name,
                "history": best.history,
                "curve": best.curve,
                "seconds": best.seconds,
            }
        ],
        "verification": verified,
        "result": result,
        "limits": _limits(goal, best, runtime),
        "missed": list(missed),
        "front": front_of(setting, points, chosen, best, tested),
        "search": {
            "limits": dict(goal.limits),
            "minimize": goal.minimize,
            "quantity": goal.quantity,
            "data": dict(setting.parts.how),
            "metric": setting.judge.metric,
            "trials": len({p.trial for p in points}),
            "points": len(points),
            "validation": {"n": best.n, "tells": sure},
            "plan": _plan(setting, best),
            "predicted": {
                "loss": _first(points, best).plan["loss"],
                "costs": dict(best.plan["costs"]),
            },
            "measured": {"loss": _first(points, best).loss, "costs": dict(best.costs)},
        },
    }
    described = quantization(network)
    if described is not None and isinstance(network, torch.fx.GraphModule):
        facts = {k: v for k, v in described.to_dict().items() if k not in ("sites", "inputs")}
        report["quantization"] = {**facts, "tensors": describe_tensors(network)}
    return report


def _first(points: Sequence[Point], best: Point) -> Point:
    """The network that was cut from the original, from which the best one goes on."""
    by_folder = {p.folder: p for p in points}
    while best.start in by_folder:
        best = by_folder[best.start]
    return best


def _stage(
    setting: Setting, name: str, network: nn.Module, found: Any, original: Any
) -> dict[str, Any]:
    faster = speedup(original.latency, found.latency)
    latency = {"p50_ms": found.latency.p50_ms, "p95_ms": found.latency.p95_ms}
    figures = {
        "bytes": found.artifact.bytes,
        "accuracy": vars(found.scores.score()),
        "accuracy_drop": found.drop,
        "accuracy_drop_interval": list(found.interval),
        "latency": latency | {"runs": found.latency.runs, "threads": 1, "batch": 1},
        "speedup": vars(faster),
        "peak_memory": None,
    }
    scales = sum(p.numel() for n, p in network.named_parameters() if n.startswith("quantizers."))
    return {
        "name": name,
        "label": name,
        "parameters": count_parameters(network) - scales,
        "macs": count_macs(setting.model, setting.inputs),
        "runtimes": {setting.runtime: figures},
    }


def _channels(setting: Setting, best: Point) -> list[dict[str, Any]]:
    coupling, kept = setting.table.coupling, best.plan["kept"]
    dead = setting.table.dead(best.plan["skipped"])
    found = []
    for i, cost in enumerate(coupling.costs):
        side = next((s for s in cost.sides if not s.summed), None)
        shape = coupling.shapes.get(cost.weight)
        if shape is None:
            continue
        left = shape[0] if side is None else round(side.left(kept, coupling.channels))
        left = 0 if i in dead else left
        layer = cost.weight.removesuffix(".weight")
        found.append({"layer": layer, "before": shape[0], "after": min(left, shape[0])})
    return found


def _limits(goal: Goal, best: Point, runtime: str) -> list[dict[str, Any]]:
    """As the validation data and the clock of the trials say: by these was chosen."""
    value = {DROP: best.drop, **best.costs}
    return [
        {
            "name": n,
            "limit": limit,
            "value": value[n],
            "met": n not in goal.missed(best, False),
            "runtime": runtime,
            "on_fail": "stop",
        }
        for n, limit in goal.limits.items()
    ]


def front_of(
    setting: Setting,
    points: Sequence[Point],
    chosen: Sequence[Point],
    best: Point,
    tested: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Every trial as a point of the picture."""
    first = {p.folder for p in front(points, setting.goal.quantity)}
    found = []
    for p in points:
        test = tested.get(p.folder)
        found.append(
            {
                "name": p.name,
                "accuracy": p.accuracy,
                "drop": p.drop,
                "interval": list(p.interval),
                "milliseconds": p.milliseconds,
                "bytes": p.bytes,
                "macs": p.macs,
                "on_front": p.folder in first,
                "best": p.folder == best.folder,
                "why": p.why,
                "knobs": dict(p.knobs),
                "test": None
                if test is None or p not in chosen
                else {"drop": test.drop, "interval": list(test.interval), "n": test.scores.n},
            }
        )
    return found


def _plan(setting: Setting, best: Point) -> list[dict[str, Any]]:
    """What was decided, layer by layer, with what it bought and what it cost."""
    table, kept = setting.table, best.plan["kept"]
    floats = best.plan["floats"]
    prices = table.prices[setting.goal.quantity]
    dead, found = table.dead(best.plan["skipped"]), []
    # what is lost without a block stands at its last layer
    blocks = {max(table.layers_of[n]): table.blocks[n] for n in best.plan["skipped"]}
    for i, cost in enumerate(table.coupling.costs):
        if not cost.weight:
            continue
        is_float = floats is None or cost.weight in floats or cost.weight not in table.layers
        form = FLOAT if is_float else INT8
        before = float(prices.layer(i, {}, FLOAT))
        after = float(prices.layer(i, kept, form))
        shape = table.coupling.shapes[cost.weight]
        side = next((s for s in cost.sides if not s.summed), None)
        left = shape[0] if side is None else round(side.left(kept, table.coupling.channels))
        group = None if side is None else next(iter(side.groups))
        lost = 0.0 if group is None else _lost(table, group, kept)
        row = {
            "layer": cost.weight.removesuffix(".weight"),
            "before": shape[0],
            "after": min(left, shape[0]),
            "form": form,
            "cost_before": before,
            "cost_after": after,
            "loss_of_channels": lost,
            "loss_of_integers": 0.0 if is_float else table.layers[cost.weight],
            "loss_of_blocks": blocks.get(i, 0.0),
            "group": group,
        }
        if i in dead:
            row |= {"after": 0, "form": "skipped", "cost_after": 0.0, "loss_of_integers": 0.0}
        found.append(row)
    return found


def _lost(table: Any, group: str, kept: Mapping[str, int]) -> float:
    scores = table.scores[group].sort().values
    return float(scores[: len(scores) - kept[group]].sum())
