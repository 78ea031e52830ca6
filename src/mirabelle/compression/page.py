"""The report of a search, as `report.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mirabelle.compression.front import Point, front
from mirabelle.compression.limits import DROP, Goal
from mirabelle.compression.prices import FLOAT, INT8
from mirabelle.compression.trial import Setting
from mirabelle.measurement.latency import speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.macs import count_macs
from mirabelle.quantization.simulation.description import count_weights, quantization
from mirabelle.quantization.simulation.tensors import describe_tensors
from mirabelle.report import schema
from mirabelle.report.schema.run import gains, tensors_of


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
) -> schema.Report:
    """All numbers of the search. points: all that were judged; chosen: those that were tested."""
    runtime, macs = setting.runtime, count_macs(setting.model, setting.inputs)
    before = _stage(setting, "original", setting.model, macs, tested[""], tested[""])
    after = _stage(setting, "compressed", network, best.macs, tested[best.folder], tested[""])
    return schema.Report(
        title=f"{type(setting.model).__name__}, compressed",
        machine=schema.Machine.of(machine()),
        versions=versions("torch", "onnx", "onnxruntime", "openvino", "optuna", "numpy"),
        network=schema.Network(type(setting.model).__name__, tensors_of(setting.inputs)),
        stages=[before, after],
        channels=_channels(setting, best),
        training=[
            schema.Training(
                best.name, list(best.history), schema.Curve.of(best.curve), best.seconds
            )
        ],
        verification=[schema.Check.of(checked) for checked in verified],
        quantization=_quantization(network),
        result=_result(before, after, runtime),
        limits=_limits(setting.goal, best, runtime),
        missed=list(missed),
        front=front_of(setting, points, chosen, best, tested),
        search=_search(setting, points, best, sure),
    )


def _result(before: schema.Stage, after: schema.Stage, runtime: str) -> schema.Result:
    """What the best network gains over the original."""
    figures = after.on(runtime)
    return schema.Result(
        stage=None,
        label=None,
        runtime=runtime,
        why=None,
        file=None,
        accuracy_drop=figures.accuracy_drop,
        accuracy_drop_interval=figures.accuracy_drop_interval,
        **gains(before, after, runtime),
    )


def _search(setting: Setting, points: Sequence[Point], best: Point, sure: bool) -> schema.Search:
    goal, first = setting.goal, _first(points, best)
    return schema.Search(
        limits=dict(goal.limits),
        minimize=goal.minimize,
        quantity=goal.quantity,
        data=dict(setting.parts.how),
        metric=setting.judge.metric,
        trials=len({p.trial for p in points}),
        points=len(points),
        validation={"n": best.n, "tells": sure},
        plan=_plan(setting, best),
        predicted=schema.Foretold(first.plan["loss"], dict(best.plan["costs"])),
        measured=schema.Foretold(first.loss, dict(best.costs)),
    )


def _quantization(network: nn.Module) -> schema.Quantization:
    described = quantization(network)
    if described is None or not isinstance(network, torch.fx.GraphModule):
        return schema.Quantization.nothing()
    facts = {k: v for k, v in described.to_dict().items() if k not in ("sites", "inputs")}
    return schema.Quantization.of({**facts, "tensors": describe_tensors(network)})


def _first(points: Sequence[Point], best: Point) -> Point:
    """The network that was cut from the original, from which the best one goes on."""
    by_folder = {p.folder: p for p in points}
    while best.start in by_folder:
        best = by_folder[best.start]
    return best


def _stage(
    setting: Setting, name: str, network: nn.Module, macs: float, found: Any, original: Any
) -> schema.Stage:
    latency = found.latency
    figures = schema.Figures(
        bytes=found.artifact.bytes,
        accuracy=schema.Score.of(vars(found.scores.score())),
        accuracy_drop=found.drop,
        accuracy_drop_interval=list(found.interval),
        look=schema.Look.nothing(),
        latency=schema.Latency(latency.p50_ms, latency.p95_ms, latency.runs, 1, 1),
        speedup=schema.Speedup.of(vars(speedup(original.latency, latency))),
        peak_memory=schema.PeakMemory.nothing(),
    )
    return schema.Stage(name, name, count_weights(network), macs, {setting.runtime: figures})


def _channels(setting: Setting, best: Point) -> list[schema.LayerSize]:
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
        found.append(schema.LayerSize(layer, shape[0], min(left, shape[0]), []))
    return found


def _limits(goal: Goal, best: Point, runtime: str) -> list[schema.Limit]:
    """As the validation data and the clock of the trials say: by these was chosen."""
    value, wanting = {DROP: best.drop, **best.costs}, goal.missed(best, False)
    return [
        schema.Limit(n, limit, value[n], n not in wanting, runtime, "stop")
        for n, limit in goal.limits.items()
    ]


def front_of(
    setting: Setting,
    points: Sequence[Point],
    chosen: Sequence[Point],
    best: Point,
    tested: Mapping[str, Any],
) -> list[schema.Trial]:
    """Every trial as a point of the picture."""
    first = {p.folder for p in front(points, setting.goal.quantity)}
    return [
        schema.Trial(
            name=p.name,
            accuracy=p.accuracy,
            drop=p.drop,
            interval=list(p.interval),
            milliseconds=p.milliseconds,
            bytes=p.bytes,
            macs=p.macs,
            on_front=p.folder in first,
            why=p.why,
            best=p.folder == best.folder,
            knobs=dict(p.knobs),
            plan=[],
            test=_on_test(tested[p.folder])
            if p.folder in tested and p in chosen
            else schema.Tested.nothing(),
        )
        for p in points
    ]


def _on_test(found: Any) -> schema.Tested:
    return schema.Tested(found.drop, list(found.interval), found.scores.n)


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
