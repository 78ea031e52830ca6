"""From what the steps recorded to the report's JSON, and whether the limits hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.base.version import __version__
from mirabelle.measurement.accuracy import paired_drop, score
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.macs import count_macs, count_parameters, macs_by_module
from mirabelle.pipeline.steps import Stage, State, read_scores
from mirabelle.quantization.simulation.description import quantization
from mirabelle.runtimes import RUNTIMES
from mirabelle.runtimes.sparse import choice
from mirabelle.sparsity.api import share_of_zeros

TIMED = ("latency", "speedup", "peak_memory", "profile", "timings", "seconds", "forms")
CLOCKED = ("fallback", "timing")  # parts of the quantisation that hold milliseconds


def summarise(
    state: State, records: list[dict[str, Any]], measured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The report: every number of the run. folder: where the measured scores are."""
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
        "network": {
            "name": state.recipe.model,
            "inputs": [
                {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
                for name, t in [
                    *((f"input{i}", t) for i, t in enumerate(state.example.args)),
                    *state.example.kwargs.items(),
                ]
            ],
        },
        "stages": stages,
        "channels": _channels(state, first, last),
        "training": [
            {"stage": name, "history": f["history"], "seconds": t.get("training")}
            for name, f, t in facts
            if "history" in f
        ],
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
            report["quantization"] = f["quantization"]
            for name in CLOCKED:
                if f["quantization"][name] is not None:
                    report["quantization"][name] = {
                        **f["quantization"][name],
                        "milliseconds": t.get(name),
                    }
    if zeros := share_of_zeros(last.model):
        report["sparsity"] = {
            "layers": [
                {"layer": name.removesuffix(".weight"), **seen} for name, seen in zeros.items()
            ]
        }
        if "sparse" in runtimes:
            report["forms"] = choice(state.artifact(last.name, "sparse").path).to_dict()
    report["result"] = _result(stages, runtimes, first.name, last.name, folder)
    report["limits"] = _limits(state, report["result"])
    return report


def _stage(
    state: State, stage: Stage, runtimes: list[str], measured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    original = state.stages[0].name
    for runtime in runtimes:
        key = f"{stage.name}/{runtime}"
        scores = read_scores(folder, stage.name, runtime)
        drop, low, high = paired_drop(read_scores(folder, original, runtime), scores)
        found[runtime] = {
            "bytes": measured["facts"]["bytes"].get(key),
            "accuracy": vars(score(scores, state.recipe.metric)),
            "accuracy_drop": drop,
            "accuracy_drop_interval": [low, high],
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


def _parameters(model: nn.Module) -> int:
    """Weights and biases; the scales of a quantised network are not counted."""
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


def _result(
    stages: list[dict], runtimes: list[str], first: str, last: str, folder: Path
) -> dict[str, Any]:
    """The last stage against the first, on the runtime on which the last one is fastest."""
    before, after = stages[0], stages[-1]
    timed = [r for r in runtimes if after["runtimes"][r]["latency"]]
    best = (
        min(timed, key=lambda r: after["runtimes"][r]["latency"]["p50_ms"])
        if timed
        else runtimes[0]
    )
    a, b = before["runtimes"][best], after["runtimes"][best]
    return {
        "runtime": best,
        "accuracy_drop": b["accuracy_drop"],
        "accuracy_drop_interval": b["accuracy_drop_interval"],
        "speedup": b["speedup"]["value"] if b["speedup"] else None,
        "size_ratio": a["bytes"] / b["bytes"] if a["bytes"] and b["bytes"] else None,
        "macs_ratio": after["macs"] / before["macs"],
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
    """One sentence for each limit with this `on_fail` that was not met: which, and by how much."""
    said = []
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

    The runtime that came out fastest is a timing too, so what hangs on it (`result`, `limits`) is
    left out.
    """
    stripped = copy.deepcopy(
        {k: v for k, v in report.items() if k not in (*TIMED, "result", "limits", "machine")}
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
