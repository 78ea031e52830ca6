"""From what the steps recorded to the report, and whether the limits hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.measurement.changed import read_changed
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.macs import count_macs, macs_by_module
from mirabelle.pipeline.measuring import read_scores
from mirabelle.pipeline.recommend import advice, recommended
from mirabelle.pipeline.state import Stage, State
from mirabelle.quantization.simulation.description import count_weights, quantization
from mirabelle.report import schema
from mirabelle.report.schema.run import gains, tensors_of
from mirabelle.runtimes import RUNTIMES, Artifact
from mirabelle.runtimes.sparse import choice
from mirabelle.sparsity.api import share_of_zeros

Facts = Sequence[tuple[str, dict[str, Any], dict[str, Any]]]  # step, what it found, timings
TIMED = ("latency", "speedup", "peak_memory", "profile", "timings", "seconds", "forms", "advice")
CLOCKED = ("fallback", "timing")  # parts of the quantization that hold milliseconds


def summarize(
    state: State, records: list[dict[str, Any]], measured: dict[str, Any], folder: Path, home: Path
) -> schema.Report:
    """The report: every number of the run. folder: where the measured scores are. home: that of
    the run.
    """
    runtimes = state.runtimes or ["pytorch"]
    first, last = state.stages[0], state.stages[-1]
    stages = [_stage(state, s, runtimes, measured, folder) for s in state.stages]
    facts = [(r["name"], r["facts"], r["timings"]) for r in records]
    zeros = _zeros(last.model)
    place, runtime, why = recommended(stages, runtimes, dict(state.recipe.limits.items()))
    result = _result(stages, place, runtime, why)
    if state.runtimes:
        result = replace(result, file=_where(state, place, runtime, home))
    return schema.Report(
        title=Path(state.recipe.path).name,
        recipe=state.recipe.to_dict(),
        machine=schema.Machine.of(machine()),
        versions=versions("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "MNN", "numpy"),
        network=schema.Network(state.recipe.model, tensors_of(state.example)),
        stages=stages,
        channels=_channels(state, first, last),
        training=_training(facts),
        looks=[schema.Look.of({"step": n, **f["look"]}) for n, f, _ in facts if f.get("look")],
        verification=_verification(facts),
        profile={
            r: schema.Profile.of(seen) for r, seen in measured["timings"].get("profile", {}).items()
        },
        timings={name: t.get("wall") for name, _, t in facts},
        quantization=_quantization(facts),
        sparsity=zeros,
        forms=schema.Forms.of(choice(state.artifact(last.name, "sparse").path).to_dict())
        if zeros and "sparse" in runtimes
        else schema.Forms.nothing(),
        handoff={r: _handoff(state.artifact(last.name, r)) for r in state.runtimes},
        result=result,
        limits=_limits(state, result),
        advice=advice(stages, runtimes, _integers(state), (place, runtime)),
        failed=dict(state.failed),
        stopped=state.stopped,
        changed=schema.Changed.of(
            read_changed(
                folder, state.stages[place].name, runtime, state.classes, state.how is not None
            )
        ),
    )


def _training(facts: Facts) -> list[schema.Training]:
    return [
        schema.Training(name, f["history"], schema.Curve.of(f["curve"]), timings.get("training"))
        for name, f, timings in facts
        if "history" in f
    ]


def _verification(facts: Facts) -> list[schema.Check]:
    return [
        schema.Check.of({**checked, "tolerance": RUNTIMES[checked["runtime"]].off_by})
        for _, f, _ in facts
        for checked in f.get("verification", [])
    ]


def _zeros(model: nn.Module) -> schema.Sparsity:
    return schema.Sparsity(
        [
            schema.SparseLayer.of({"layer": name.removesuffix(".weight"), **seen})
            for name, seen in share_of_zeros(model).items()
        ]
    )


def _quantization(facts: Facts) -> schema.Quantization:
    """What the last such step found, with the milliseconds of what was decided by the clock."""
    seen = [(f["quantization"], t) for _, f, t in facts if "quantization" in f]
    if not seen:
        return schema.Quantization.nothing()
    found, timings = seen[-1]
    timed = {
        name: {**found[name], "milliseconds": timings.get(name)}
        for name in CLOCKED
        if found[name] is not None
    }
    return schema.Quantization.of({**found, **timed})


def _handoff(file: Artifact) -> schema.Handoff:
    """What a file takes and gives, as whoever calls it has to name it."""
    inputs, outputs = (
        [schema.Tensor(s.name, None if s.shape is None else list(s.shape), s.dtype) for s in specs]
        for specs in (file.inputs, file.outputs)
    )
    return schema.Handoff(inputs, outputs)


def _integers(state: State) -> str | None:
    """The name of the first stage that is quantized."""
    return next((s.name for s in state.stages if quantization(s.model) is not None), None)


def _where(state: State, place: int, runtime: str, home: Path) -> str:
    """The path of a file from the run's folder; those of the last stage are copied to its top."""
    file = state.file(state.stages[place].name, runtime)
    if place == len(state.stages) - 1:
        return f"{runtime}/{file.name}"
    return file.relative_to(home).as_posix()


def _stage(
    state: State, stage: Stage, runtimes: list[str], measured: dict[str, Any], folder: Path
) -> schema.Stage:
    found: dict[str, schema.Figures] = {}
    original = state.stages[0].name
    facts, timings = measured["facts"], measured["timings"]
    for runtime in runtimes:
        key = f"{stage.name}/{runtime}"
        score, drop, interval = _accuracy(state, folder, [original, stage.name], runtime)
        found[runtime] = schema.Figures(
            bytes=facts["bytes"].get(key),
            accuracy=score,
            accuracy_drop=drop,
            accuracy_drop_interval=interval,
            look=schema.Look.of(facts.get("looks", {}).get(key)),
            latency=schema.Latency.of(timings.get("latency", {}).get(key)),
            speedup=schema.Speedup.of(timings.get("speedup", {}).get(key)),
            peak_memory=schema.PeakMemory.of(timings.get("memory", {}).get(key)),
        )
    macs = count_macs(stage.model, state.inputs)
    return schema.Stage(stage.name, stage.label, count_weights(stage.model), macs, found)


def _accuracy(
    state: State, folder: Path, stages: list[str], runtime: str
) -> tuple[schema.Score, float | None, list[float | None]]:
    """Of the second stage, and what it lost since the first; nothing without data to score."""
    if not state.recipe.has_data:
        return schema.Score.nothing(), None, []
    before, after = (read_scores(folder, s, runtime, state.recipe.metric) for s in stages)
    drop, low, high = before.drop(after)
    return schema.Score.of(vars(after.score())), drop, [low, high]


def _channels(state: State, first: Stage, last: Stage) -> list[schema.LayerSize]:
    """Output channels and MACs of each convolution and linear layer, before and after. MACs after
    are those of the last float network: rounding changes none.
    """
    after = dict(last.model.named_parameters())
    floats = [s for s in state.stages if quantization(s.model) is None]
    macs = [macs_by_module(s.model, state.inputs) for s in (first, floats[-1])]
    return [
        schema.LayerSize(
            layer := name.rpartition(".")[0] or name,
            p.shape[0],
            after[name].shape[0],
            [found.get(layer) for found in macs],
        )
        for name, p in first.model.named_parameters()
        if p.ndim > 1 and name.endswith("weight") and name in after
    ]


def _result(stages: Sequence[schema.Stage], place: int, runtime: str, why: str) -> schema.Result:
    """The recommended file against the original on the same runtime."""
    chosen = stages[place]
    after = chosen.on(runtime)
    return schema.Result(
        stage=chosen.name,
        label=chosen.label,
        runtime=runtime,
        why=why,
        file=None,
        accuracy_drop=after.accuracy_drop,
        accuracy_drop_interval=after.accuracy_drop_interval,
        **gains(stages[0], chosen, runtime),
    )


def _limits(state: State, result: schema.Result) -> list[schema.Limit]:
    found = []
    for name, limit in state.recipe.limits.items():
        value = getattr(result, "macs_ratio" if name == "macs" else name)
        met = value is not None and (
            value <= limit if name in ("accuracy_drop", "macs") else value >= limit
        )
        on_fail = "stop" if state.recipe.limits.stops(name) else "warn"
        found.append(schema.Limit(name, limit, value, met, result.runtime, on_fail))
    return found


def missed(report: schema.Report, on_fail: str) -> list[str]:
    """One sentence for each limit with this `on_fail` that was not met: which, and by how much. Of
    what stops a run: also why it ended early, and runtimes without a file.
    """
    said = []
    if on_fail == "stop":
        said += [report.stopped] if report.stopped else []
        said += [f"{r} has no file: {why}" for r, why in report.failed.items()]
    for limit in report.limits:
        if not limit.met and limit.on_fail == on_fail:
            value, by = "not measured", ""
            if limit.value is not None and limit.limit is not None:
                value = f"{limit.value:.4g}"
                by = f", missed by {abs(limit.value - limit.limit):.2g}"
            said.append(
                f"{limit.name} is {value}, the limit is {limit.limit:g}{by} (on {limit.runtime})"
            )
    return said


def without_timings(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what the clock and the memory of this run decided: equal for equal runs,
    however often they were interrupted.

    The runtime that came out fastest is a timing too, so what hangs on it (`result`, `limits`,
    `changed`) is left out.
    """
    stripped = copy.deepcopy(
        {
            k: v
            for k, v in report.items()
            if k not in (*TIMED, "result", "limits", "changed", "machine")
        }
    )
    for stage in stripped["stages"]:
        for figures in stage["runtimes"].values():
            for key in TIMED:
                figures.pop(key, None)
    for name in CLOCKED:
        if (part := stripped.get("quantization", {}).get(name)) is not None:
            part.pop("milliseconds", None)
    for training in stripped["training"]:
        training.pop("seconds", None)
    return stripped
