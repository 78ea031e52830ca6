"""The steps. Each takes the state that the steps before it left, writes its output into a folder,
and says what is to be known of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mirabelle.base.errors import InputError
from mirabelle.base.names import load, resolve
from mirabelle.base.progress import console, track
from mirabelle.distillation.api import run as run_distillation
from mirabelle.exporter import OnnxFiles, export
from mirabelle.fitting.gradients import LOSSES
from mirabelle.measurement.accuracy import METRICS, predictor
from mirabelle.pipeline.facts import build_teachers, loss_in
from mirabelle.pipeline.grids import grids_of
from mirabelle.pipeline.state import Outcome, State, seed_loaders
from mirabelle.pruning.api import prune
from mirabelle.pruning.factorization import factorize
from mirabelle.quantization.api import quantize
from mirabelle.quantization.simulation.description import describe, quantization
from mirabelle.quantization.simulation.tensors import describe_tensors
from mirabelle.sources.networks import Found
from mirabelle.sparsity.api import sparsify
from mirabelle.store import save
from mirabelle.training.api import LabelsObjective, train, with_loss
from mirabelle.training.loop import Trained
from mirabelle.verification.api import verify


def _prune(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    return Outcome(
        model=prune(
            state.model,
            state.inputs,
            data=state.data,
            loss=loss_in(state.recipe),
            seed=state.recipe.seed,
            checkpoint=work,
            **options,
        )
    )


def _factorize(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    data = state.loaders.train
    return Outcome(model=factorize(state.model, state.inputs, data=data, **options))


def _sparsify(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    return Outcome(
        model=sparsify(
            state.model,
            data=state.loaders.train,
            loss=loss_in(state.recipe),
            seed=state.recipe.seed,
            **options,
        )
    )


def _trained(trained: Trained) -> Outcome:
    facts = {"history": trained.history, "choices": trained.choices, "curve": trained.curve}
    return Outcome(facts, {"training": trained.seconds}, trained.model)


def _fit(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    loss = loss_in(state.recipe)
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
    if state.recipe.step is not None and (options.get("losses") or {}).get("labels"):
        options["step"] = load(state.recipe.step, "step")
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
    judged: dict[str, Any] = {}
    if options.get("accuracy_drop") is not None:
        judged["validation"] = state.loaders.validation or state.loaders.calibration
        judged["metric"] = resolve(state.recipe.metric, METRICS, "metric")
    facts, timings, models = [], [], []
    ways = grids_of(state.recipe.steps)
    for way in ways:
        seed_loaders(state)
        own = {**options, **way.options, **judged}
        if state.recipe.has_data:
            model = quantize(state.model, state.loaders.calibration, **own)
        else:  # an example that was made up says nothing of black and white, and zeros say so
            known = Found(state.recipe.model, state.model, how=state.how)
            inputs = state.example.map(torch.zeros_like)
            model = quantize(known, inputs=inputs.kwargs or inputs.args, **own)
        fact, timing = _described(model)
        facts.append(fact)
        timings.append(timing)
        models.append(model)
    shown = {**facts[0], "tensors": describe_tensors(models[0])}
    shown["grids"] = [
        {"runtimes": list(w.runtimes), "target": f["target"]} for w, f in zip(ways, facts)
    ]
    return Outcome({"quantization": shown}, timings[0], models[0], models[1:])


def _described(model: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is to be known of a quantized network, and what the clock said of it: that is no fact,
    and stays out of the saved network.
    """
    described = quantization(model)
    assert described is not None
    timings: dict[str, Any] = {}
    for name in ("fallback", "timing"):
        if (found := getattr(described, name)) is not None:
            timings[name] = found.milliseconds
            described = replace(described, **{name: replace(found, milliseconds=None)})
    describe(model, described)
    kept = (
        "bits weight_bits threshold target samples repair keep precision float_operators fallback "
        "timing"
    )
    return {n: v for n, v in described.to_dict().items() if n in kept.split()}, timings


def _export(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    """A runtime that fails leaves the files of the others."""
    runtimes = options.get("runtimes", ["onnxruntime"])
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        written = OnnxFiles(Path(temporary))
        for runtime in track(runtimes, "exporting"):
            try:
                for stage in state.stages:
                    place = folder / stage.name / runtime
                    # The original as it is: read from its file and written again it is another.
                    whole = state.source if stage is state.stages[0] else None
                    model = written.source(whole or stage.on(runtime), runtime, state.inputs)
                    export(model, place, runtime=runtime, inputs=state.inputs)
            except Exception as error:  # of a converter, too
                failed[runtime] = f"{type(error).__name__}: {error}"
                console.print(f"{runtime}: no file: {error}", style="yellow")
                for stage in state.stages:
                    shutil.rmtree(folder / stage.name / runtime, ignore_errors=True)
                if len(failed) == len(runtimes):
                    raise
    return Outcome({"failed": failed})


def _verify(state: State, options: Mapping[str, Any], folder: Path, work: Path) -> Outcome:
    found = []
    quantized = next((s for s in reversed(state.stages) if quantization(s.model) is not None), None)
    if quantized is None:
        raise InputError("verify found no quantized network")
    for runtime in state.runtimes:
        artifact = state.artifact(quantized.name, runtime)
        checked = verify(quantized.on(runtime), artifact, state.loaders.test, **options)  # type: ignore[arg-type]
        found.append(checked.to_dict())
    return Outcome({"verification": found})


StepFunction = Callable[[State, Mapping[str, Any], Path, Path], Outcome]
STEPS: dict[str, StepFunction] = {
    "prune": _prune,
    "factorize": _factorize,
    "sparsify": _sparsify,
    "fit": _fit,
    "distill": _distill,
    "quantize": _quantize,
    "export": _export,
    "verify": _verify,
}
LABELS = {
    "prune": "pruned",
    "factorize": "factorized",
    "sparsify": "sparsified",
    "fit": "fine-tuned",
    "distill": "distilled",
    "quantize": "quantized",
}


def execute(
    name: str, state: State, options: Mapping[str, Any], folder: Path, work: Path
) -> Outcome:
    """Runs one step; a changed network is saved beside the rest of its output, and what accuracy it
    has left is a fact of the step.
    """
    seed_loaders(state)
    outcome = STEPS[name](state, options, folder, work)
    if outcome.model is not None:
        save(outcome.model, folder / "model")
        for number, other in enumerate(outcome.others, 1):
            save(other, folder / "grids" / str(number))
        outcome.facts["look"] = state.looks.fact(predictor(outcome.model))
    return outcome
