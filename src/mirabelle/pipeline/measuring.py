"""Every stage of a run on every runtime, measured at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.data import Batch
from mirabelle.base.names import resolve
from mirabelle.measurement.accuracy import METRICS, Scores, in_form_of, predictor, scores_of
from mirabelle.measurement.agreement import Answered
from mirabelle.measurement.changed import Album, Watch
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine
from mirabelle.measurement.memory import peak_memory
from mirabelle.onnx_files.source import paths_of_nodes
from mirabelle.pipeline.profiles import profiles
from mirabelle.pipeline.state import Outcome, State, seed_loaders
from mirabelle.runtimes.artifact import MOST_THREADS, Artifact

LATENCY_SECONDS = 12.0


def measure_all(state: State, folder: Path) -> Outcome:
    """Every stage on every runtime: bytes, accuracy (each sample's score goes into `scores`),
    pictures whose class changed, latency in one alternating run, memory and layers.

    Where there are no files the accuracy is that of the networks in PyTorch, and nothing is timed.
    What is chosen by is the accuracy of each file on other data (`Looks`). Without data there is no
    accuracy.
    """
    scored = state.recipe.has_data
    watch = Watch(Album(state.how), isinstance(state.loaders.test, Answered))
    if not state.runtimes:
        _write_scores(folder, _scores_in_pytorch(state, watch) if scored else {})
        watch.write(folder)
        return Outcome({"bytes": {}})
    artifacts = {
        (s.name, r): state.artifact(s.name, r) for s in state.stages for r in state.runtimes
    }
    _write_scores(folder, _scores_of_files(state, artifacts, watch) if scored else {})
    watch.write(folder)
    sizes = {f"{s}/{r}": a.bytes for (s, r), a in artifacts.items()}
    looks = {
        f"{s}/{r}": fact
        for (s, r), a in artifacts.items()
        if (fact := state.looks.fact(_formed(state, a))) is not None
    }
    return Outcome({"bytes": sizes, "looks": looks}, _timings(state, artifacts))


def _formed(state: State, artifact: Artifact) -> Callable[[Batch], Any]:
    """What a file gives, in the form of the network's outputs. Accuracy is the same with any number
    of threads; latency is measured with those of the recipe.
    """
    cores = min(machine()["cores"], MOST_THREADS)
    example = predictor(state.stages[0].model)(state.example)
    return in_form_of(example, artifact.with_threads(cores).predict)


def _scores_in_pytorch(state: State, watch: Watch) -> dict[str, Scores]:
    metric = resolve(state.recipe.metric, METRICS, "metric")
    scores = {}
    for stage in state.stages:
        seed_loaders(state)  # the same samples in the same order for each stage
        scores[f"{stage.name}/pytorch"] = scores_of(
            watch.watched(predictor(stage.model), stage.name, "pytorch"),
            state.loaders.test,
            metric,
            f"{stage.label} in PyTorch",
        )
    return scores


def _scores_of_files(
    state: State, artifacts: Mapping[tuple[str, str], Artifact], watch: Watch
) -> dict[str, Scores]:
    metric = resolve(state.recipe.metric, METRICS, "metric")
    scores = {}
    for stage in state.stages:
        for runtime in state.runtimes:
            seed_loaders(state)
            scores[f"{stage.name}/{runtime}"] = scores_of(
                watch.watched(_formed(state, artifacts[stage.name, runtime]), stage.name, runtime),
                state.loaders.test,
                metric,
                f"{stage.label} on {runtime}",
            )
    return scores


def _timings(state: State, artifacts: Mapping[tuple[str, str], Artifact]) -> dict[str, Any]:
    """What depends on the clock and the machine's memory; memory and layers of the first and the
    last stage.
    """
    ends = {s: state.stages[i].name for s, i in (("before", 0), ("after", -1))}
    calls = {f"{s}/{r}": a for (s, r), a in artifacts.items()}
    arrays = {k: a.arrays(*state.example.args, **state.example.kwargs) for k, a in calls.items()}
    latencies = alternate(
        {k: (lambda a=a, k=k: a(*arrays[k])) for k, a in calls.items()},
        runs=400,
        warmup=20,
        seconds=LATENCY_SECONDS,
        pin=state.threads == 1,
    )
    first = state.stages[0].name
    modules = paths_of_nodes(state.stages[0].model)
    return {
        "latency": {
            k: {
                "p50_ms": v.p50_ms,
                "p95_ms": v.p95_ms,
                "runs": v.runs,
                "threads": state.threads,
                "batch": state.example.size,
            }
            for k, v in latencies.items()
        },
        "speedup": {
            k: vars(speedup(latencies[f"{first}/{k.split('/')[1]}"], v))
            for k, v in latencies.items()
        },
        "memory": {
            f"{s}/{r}": vars(peak_memory(artifacts[s, r], *arrays[f"{s}/{r}"]))
            for s in dict.fromkeys(ends.values())
            for r in state.runtimes
        },
        "profile": profiles(artifacts, arrays, ends, state.runtimes, modules),
    }


def _write_scores(folder: Path, scores: dict[str, Scores]) -> None:
    # One .npy a file: the bytes of an .npz hold the time of day.
    for name, values in scores.items():
        path = folder / "scores" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values.to_array(), allow_pickle=False)


def read_scores(folder: Path, stage: str, runtime: str, metric: str) -> Scores:
    found = np.load(folder / "scores" / stage / f"{runtime}.npy", allow_pickle=False)
    return replace(Scores.from_array(found, resolve(metric, METRICS, "metric")), metric=metric)
