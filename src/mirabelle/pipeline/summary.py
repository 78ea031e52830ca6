"""From what the steps recorded to the report's JSON, and whether the limits hold."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.base.version import __version__
from mirabelle.measurement.changed import read_changed
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.macs import count_macs, count_parameters, macs_by_module
from mirabelle.pipeline.measuring import read_scores
from mirabelle.pipeline.recommend import advice, gains, recommended
from mirabelle.pipeline.state import Stage, State
from mirabelle.quantization.simulation.description import quantization
from mirabelle.report.schema.run import tensors_of
from mirabelle.runtimes import RUNTIMES, Artifact, TensorSpec
from mirabelle.runtimes.sparse import choice
from mirabelle.sparsity.api import share_of_zeros

TIMED = ("latency", "speedup", "peak_memory", "profile", "timings", "seconds", "forms", "advice")
CLOCKED = ("fallback", "timing")  # parts of the quantization that hold milliseconds


def summarize(
    state: State, records: list[dict[str, Any]], measured: dict[str, Any], folder: Path, home: Path
) -> dict[str, Any]:
    """The report: every number of the run. folder: where the measured scores are. home: that of
    the run.
    """
    runtimes = state.runtimes or ["pytorch"]
    first, last = state.stages[0], state.stages[-1]
    stages = [_stage(state, s, runtimes, measured, folder) for s in state.stages]
    facts = [(r["name"], r["facts"], r["timings"]) for r in records]
    report: dict[str, Any] = {
        "format": 1,
        "mirabelle": __version__,
        "title": Path(state.recipe.path).name,
        "recipe": state.recipe.to_dict(),
        "machine": machine(),
        "versions": versions(
            "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "MNN", "numpy"
        ),
        "network": {"name": state.recipe.model, "inputs": tensors_of(state.example)},
        "stages": stages,
        "channels": _channels(state, first, last),
        "training": [
            {
                "stage": name,
                "history": f["history"],
                "curve": f["curve"],
                "seconds": t.get("training"),
            }
            for name, f, t in facts
            if "history" in f
        ],
        "looks": [{"step": name, **f["look"]} for name, f, _ in facts if f.get("look")],
        "verification": [
            {**checked, "tolerance": RUNTIMES[checked["runtime"]].off_by}
            for _, f, _ in facts
            for checked in f.get("verification", [])
        ],
        "profile": measured["timings"].get("profile", {}),
        "timings": {name: t.get("wall") for name, _, t in facts},
    }
    for _, f, t in facts:
        if "quantization" in f:
            report["quantization"] = _quantization(f["quantization"], t)
    if zeros := share_of_zeros(last.model):
        report["sparsity"] = {
            "layers": [
                {"layer": name.removesuffix(".weight"), **seen} for name, seen in zeros.items()
            ]
        }
        if "sparse" in runtimes:
            report["forms"] = choice(state.artifact(last.name, "sparse").path).to_dict()
    report["handoff"] = {r: _tensors(state.artifact(last.name, r)) for r in state.runtimes}
    report |= _verdict(state, report["stages"], measured["facts"].get("looks", {}), home)
    best = report["result"]
    report["changed"] = read_changed(
        folder, best["stage"], best["runtime"], state.classes, state.how is not None
    )
    return report


def _quantization(found: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
    """What a step found, with the milliseconds of what was decided by the clock."""
    timed = {
        name: {**found[name], "milliseconds": timings.get(name)}
        for name in CLOCKED
        if found[name] is not None
    }
    return {**found, **timed}


def _tensors(file: Artifact) -> dict[str, Any]:
    """What a file takes and gives, as whoever calls it has to name it."""
    return {
        kind: [{"name": s.name, "shape": _sizes(s), "dtype": s.dtype} for s in specs]
        for kind, specs in (("inputs", file.inputs), ("outputs", file.outputs))
    }


def _sizes(spec: TensorSpec) -> list[int | None] | None:
    return None if spec.shape is None else list(spec.shape)


def _verdict(
    state: State, stages: list[dict[str, Any]], looks: dict[str, Any], home: Path
) -> dict[str, Any]:
    """Which file is the best, what it gains, which limits it meets, and what else is to be said."""
    runtimes = state.runtimes or ["pytorch"]
    place, runtime, why = recommended(stages, runtimes, looks, dict(state.recipe.limits.items()))
    result = _result(stages, place, runtime, why)
    if state.runtimes:
        result["file"] = _where(state, place, runtime, home)
    quantized = next((s.name for s in state.stages if quantization(s.model) is not None), None)
    return {
        "result": result,
        "limits": _limits(state, result),
        "advice": advice(stages, runtimes, quantized, (place, runtime)),
        "failed": state.failed,
        "stopped": state.stopped,
    }


def _where(state: State, place: int, runtime: str, home: Path) -> str:
    """The path of a file from the run's folder; those of the last stage are copied to its top."""
    file = state.file(state.stages[place].name, runtime)
    if place == len(state.stages) - 1:
        return f"{runtime}/{file.name}"
    return file.relative_to(home).as_posix()


def _stage(
    state: State, stage: Stage, runtimes: list[str], measured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    original = state.stages[0].name
    for runtime in runtimes:
        key = f"{stage.name}/{runtime}"
        found[runtime] = {
            "bytes": measured["facts"]["bytes"].get(key),
            **_accuracy(state, folder, [original, stage.name], runtime),
            "look": measured["facts"].get("looks", {}).get(key),
            "latency": measured["timings"].get("latency", {}).get(key),
            "speedup": measured["timings"].get("speedup", {}).get(key),
            "peak_memory": measured["timings"].get("memory", {}).get(key),
        }
    return {
        "name": stage.name,
        "label": stage.label,
        "parameters": _parameters(stage.model),
        "macs": count_macs(stage.model, state.inputs),
        "runtimes": found,
    }


def _accuracy(state: State, folder: Path, stages: list[str], runtime: str) -> dict[str, Any]:
    """Of the second stage, and what it lost since the first; None without data to score."""
    if not state.recipe.has_data:
        return {"accuracy": None, "accuracy_drop": None, "accuracy_drop_interval": []}
    before, after = (read_scores(folder, s, runtime, state.recipe.metric) for s in stages)
    drop, *interval = map(finite, before.drop(after))
    return {
        "accuracy": {k: finite(v) for k, v in vars(after.score()).items()},
        "accuracy_drop": drop,
        "accuracy_drop_interval": interval,
    }


def finite(value: Any) -> Any:
    """None for the ends of an interval that is open, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parameters(model: nn.Module) -> int:
    """Weights and biases; the scales of a quantized network are not counted."""
    scales = sum(p.numel() for n, p in model.named_parameters() if n.startswith("quantizers."))
    return count_parameters(model) - scales


def _channels(state: State, first: Stage, last: Stage) -> list[dict[str, Any]]:
    """Output channels and MACs of each convolution and linear layer, before and after. MACs after
    are those of the last float network: rounding changes none.
    """
    after = dict(last.model.named_parameters())
    floats = [s for s in state.stages if quantization(s.model) is None]
    macs = [macs_by_module(s.model, state.inputs) for s in (first, floats[-1])]
    return [
        {
            "layer": (layer := name.rpartition(".")[0] or name),
            "before": p.shape[0],
            "after": after[name].shape[0],
            "macs": [found.get(layer) for found in macs],
        }
        for name, p in first.model.named_parameters()
        if p.ndim > 1 and name.endswith("weight") and name in after
    ]


def _result(stages: list[dict], place: int, runtime: str, why: str) -> dict[str, Any]:
    """The recommended file against the original on the same runtime."""
    after = stages[place]["runtimes"][runtime]
    return {
        "stage": stages[place]["name"],
        "label": stages[place]["label"],
        "runtime": runtime,
        "why": why,
        "accuracy_drop": after["accuracy_drop"],
        "accuracy_drop_interval": after["accuracy_drop_interval"],
        **gains(stages, place, runtime),
    }


def _limits(state: State, result: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, limit in state.recipe.limits.items():
        value = result["macs_ratio"] if name == "macs" else result[name]
        met = value is not None and (
            value <= limit if name in ("accuracy_drop", "macs") else value >= limit
        )
        stops = state.recipe.limits.stops(name)
        found.append(
            {
                "name": name,
                "limit": limit,
                "value": value,
                "met": met,
                "runtime": result["runtime"],
                "on_fail": "stop" if stops else "warn",
            }
        )
    return found


def missed(report: dict[str, Any], on_fail: str) -> list[str]:
    """One sentence for each limit with this `on_fail` that was not met: which, and by how much. Of
    what stops a run: also why it ended early, and runtimes without a file.
    """
    said = []
    if on_fail == "stop":
        said += [report["stopped"]] if report.get("stopped") else []
        said += [f"{r} has no file: {why}" for r, why in report.get("failed", {}).items()]
    for limit in report["limits"]:
        if not limit["met"] and limit["on_fail"] == on_fail:
            value = "not measured" if limit["value"] is None else f"{limit['value']:.4g}"
            by = (
                ""
                if limit["value"] is None
                else f", missed by {abs(limit['value'] - limit['limit']):.2g}"
            )
            said.append(
                f"{limit['name']} is {value}, the limit is {limit['limit']:g}{by} (on "
                f"{limit['runtime']})"
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
