"""The steps. Each takes the state that the steps before it left, writes its output into a folder,
and says what is to be known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mirabelle.base.data import Batch, seed_epoch
from mirabelle.base.errors import InputError
from mirabelle.base.names import resolve
from mirabelle.distillation.api import run as run_distillation
from mirabelle.exporter import export
from mirabelle.fitting.gradients import LOSSES
from mirabelle.measurement.accuracy import METRICS, sample_scores
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.machine import machine
from mirabelle.measurement.memory import peak_memory
from mirabelle.pipeline.facts import build_teachers
from mirabelle.pipeline.profiles import profiles
from mirabelle.pipeline.recipe import Recipe
from mirabelle.pruning.api import prune
from mirabelle.quantization.api import quantize
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.tensors import describe_tensors
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.artifact import MOST_THREADS, Artifact
from mirabelle.sources.callables import Loaders
from mirabelle.sparsity.api import sparsify
from mirabelle.store import save
from mirabelle.training.api import LabelsObjective, train, with_loss
from mirabelle.training.loop import Trained
from mirabelle.verification.api import verify

LATENCY_SECONDS = 12.0


@dataclass(frozen=True)
class Stage:
    """The network as it is after a step that changed it."""

    name: str
    label: str
    model: nn.Module


@dataclass
class State:
    """What steps pass on. saved: where the last network that a step changed is. exported: where the
    export step put the files of each stage. file: the ONNX file that the original came from.
    """

    recipe: Recipe
    loaders: Loaders
    example: Batch
    stages: list[Stage]
    saved: Path | None = None
    exported: Path | None = None
    runtimes: list[str] = field(default_factory=list)
    threads: int = 1
    file: Path | None = None

    @property
    def model(self) -> nn.Module:
        return self.stages[-1].model

    @property
    def inputs(self) -> Any:
        return self.example.kwargs or self.example.args

    def artifact(self, stage: str, runtime: str) -> Artifact:
        assert self.exported is not None
        folder, suffix = self.exported / stage / runtime, RUNTIMES[runtime].suffix
        path = folder / f"model{suffix}"
        if not path.is_file():  # a file that was handed on keeps its name
            path = next(iter(sorted(folder.glob(f"*{suffix}"))), path)
        return load(path, runtime, self.threads)


@dataclass(frozen=True)
class Outcome:
    """facts: the same for every run with the same key. timings: of this run. model, label: where
    the step changed the network.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None


def _prune(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    loss = resolve(state.recipe.loss, LOSSES, "loss")
    return Outcome(
        model=prune(
            state.model,
            state.inputs,
            data=state.loaders.train,
            loss=loss,
            seed=state.recipe.seed,
            checkpoint=work,
            **options,
        )
    )


def _sparsify(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    loss = resolve(state.recipe.loss, LOSSES, "loss")
    return Outcome(
        model=sparsify(
            state.model, data=state.loaders.train, loss=loss, seed=state.recipe.seed, **options
        )
    )


def _trained(trained: Trained) -> Outcome:
    facts = {"history": trained.history, "choices": trained.choices}
    return Outcome(facts, {"training": trained.seconds}, trained.model)


def _fit(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    loss = resolve(state.recipe.loss, LOSSES, "loss")
    options = with_loss(options, loss)
    return _trained(
        train(
            state.model,
            state.loaders.train,
            LabelsObjective(loss),
            seed=state.recipe.seed,
            checkpoint=work,
            checkpoint_seconds=10,
            **options,
        )
    )


def _distill(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    options = dict(options)
    floats = [s.model for s in state.stages if quantization(s.model) is None]
    teachers = build_teachers(
        options.pop("teacher", None),
        floats[0],
        floats[-1] if quantization(state.model) is not None else None,
    )
    return _trained(
        run_distillation(
            state.model,
            teachers,
            state.loaders.train,
            label_loss=resolve(state.recipe.loss, LOSSES, "loss"),
            seed=state.recipe.seed,
            checkpoint=work,
            checkpoint_seconds=10,
            **options,
        )
    )


def _quantize(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    limited = options.get("accuracy_drop") is not None
    judged = (
        {
            "validation": state.loaders.validation or state.loaders.calibration,
            "metric": state.recipe.metric,
        }
        if limited
        else {}
    )
    model = quantize(state.model, state.loaders.calibration, **options, **judged)
    described = quantization(model)
    assert described is not None
    timings: dict[str, Any] = {}
    for name in (
        "fallback",
        "timing",
    ):  # what the clock says is no fact, and stays out of the saved network
        if (found := getattr(described, name)) is not None:
            timings[name] = found.milliseconds
            described = replace(described, **{name: replace(found, milliseconds=None)})
    model.meta["quantization"] = described
    kept = (
        "bits",
        "weight_bits",
        "threshold",
        "target",
        "samples",
        "repair",
        "keep",
        "precision",
        "float_operators",
        "fallback",
        "timing",
    )
    facts = {n: v for n, v in described.to_dict().items() if n in kept}
    return Outcome({"quantization": {**facts, "tensors": describe_tensors(model)}}, timings, model)


def _export(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    for stage in state.stages:
        for runtime in options.get("runtimes", ["onnxruntime"]):
            # The original as it is: what was read from its file and written again is another.
            model = state.file if stage is state.stages[0] and state.file else stage.model
            export(model, folder / stage.name / runtime, runtime=runtime, inputs=state.inputs)
    return Outcome()


def _verify(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    found = []
    quantized = next((s for s in reversed(state.stages) if quantization(s.model) is not None), None)
    if quantized is None:
        raise InputError("verify found no quantised network")
    for runtime in state.runtimes:
        artifact = state.artifact(quantized.name, runtime)
        checked = verify(quantized.model, artifact, state.loaders.test, **options)  # type: ignore[arg-type]
        found.append(checked.to_dict())
    return Outcome({"verification": found})


StepFunction = Callable[[State, Mapping[str, Any], Path, Path], Outcome]
STEPS: dict[str, StepFunction] = {
    "prune": _prune,
    "sparsify": _sparsify,
    "fit": _fit,
    "distill": _distill,
    "quantize": _quantize,
    "export": _export,
    "verify": _verify,
}
LABELS = {
    "prune": "pruned",
    "sparsify": "sparsified",
    "fit": "fine-tuned",
    "distill": "distilled",
    "quantize": "quantized",
}


def execute(
    name: str, state: State, options: Mapping[str, Any], folder: Path, work: Path
) -> Outcome:
    """Runs one step; a changed network is saved beside the rest of its output."""
    seed_loaders(state)
    outcome = STEPS[name](state, options, folder, work)
    if outcome.model is not None:
        save(outcome.model, folder / "model")
    return outcome


def seed_loaders(state: State) -> None:
    """What a step draws must not depend on whether the steps before it ran now or long ago."""
    for loader in vars(state.loaders).values():
        seed_epoch(loader, state.recipe.seed)


def measure_all(state: State, folder: Path) -> Outcome:
    """Every stage on every runtime: bytes, accuracy (each sample's score goes into `scores.npz`),
    latency in one alternating run, memory and layers.

    Without an export step the accuracy is that of the networks in PyTorch, and nothing is timed.
    """
    if not state.exported:
        _write_scores(folder, _scores_in_pytorch(state))
        return Outcome({"bytes": {}})
    artifacts = {
        (s.name, r): state.artifact(s.name, r) for s in state.stages for r in state.runtimes
    }
    _write_scores(folder, _scores_of_files(state, artifacts))
    sizes = {f"{s}/{r}": a.bytes for (s, r), a in artifacts.items()}
    return Outcome({"bytes": sizes}, _timings(state, artifacts))


def _scores_in_pytorch(state: State) -> dict[str, np.ndarray]:
    from mirabelle.measurement.accuracy import predictor

    metric = resolve(state.recipe.metric, METRICS, "metric")
    scores = {}
    for stage in state.stages:
        seed_loaders(state)  # the same samples in the same order for each stage
        scores[f"{stage.name}/pytorch"] = sample_scores(
            predictor(stage.model), state.loaders.test, metric, f"{stage.label} in PyTorch"
        )
    return scores


def _scores_of_files(
    state: State, artifacts: Mapping[tuple[str, str], Artifact]
) -> dict[str, np.ndarray]:
    metric = resolve(state.recipe.metric, METRICS, "metric")
    # accuracy is the same with any number of threads; latency is measured with those of the recipe
    cores = min(machine()["cores"], MOST_THREADS)
    scores = {}
    for stage in state.stages:
        for runtime in state.runtimes:
            seed_loaders(state)
            scores[f"{stage.name}/{runtime}"] = sample_scores(
                artifacts[stage.name, runtime].with_threads(cores).predict,
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
        "profile": profiles(artifacts, arrays, ends, state.runtimes),
    }


def _write_scores(folder: Path, scores: dict[str, np.ndarray]) -> None:
    # One .npy a file: the bytes of an .npz hold the time of day.
    for name, values in scores.items():
        path = folder / "scores" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values, allow_pickle=False)


def read_scores(folder: Path, stage: str, runtime: str) -> np.ndarray:
    return np.load(folder / "scores" / stage / f"{runtime}.npy", allow_pickle=False)
