"""`mb.run`: a recipe's steps in order, each cached, so that a run that was killed goes on where it
stopped.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirabelle.base.checks import clone
from mirabelle.base.data import preserved
from mirabelle.base.errors import CheckpointError, LimitError
from mirabelle.base.files import content_hash, copy_file
from mirabelle.base.interruption import check as check_interrupted
from mirabelle.base.interruption import interruptible
from mirabelle.base.progress import console
from mirabelle.measurement.macs import count_macs
from mirabelle.pipeline.facts import check_fit, depends, root_facts
from mirabelle.pipeline.grids import grids_of
from mirabelle.pipeline.inputs import check as opened
from mirabelle.pipeline.inputs import check_pictures, class_names, described
from mirabelle.pipeline.looks import Looks, hold_back, hopeless, said
from mirabelle.pipeline.measuring import measure_all
from mirabelle.pipeline.recipe import Recipe, Step, load_recipe
from mirabelle.pipeline.state import Outcome, Stage, State
from mirabelle.pipeline.steps import LABELS, execute
from mirabelle.pipeline.summary import missed, summarize
from mirabelle.pipeline.workspace import Workspace, chain
from mirabelle.report import write
from mirabelle.report.schema import Data, Report
from mirabelle.runtimes import RUNTIMES
from mirabelle.store import FILES, load


@dataclass(frozen=True)
class Run:
    """A finished run. report: every number, as `report.json` has it. folder: `report.html`,
    `report.json`, and the result: `model/` and a folder for each runtime.

    missed, warnings: a sentence for each limit that was missed, those that stop a run and those
    that only warn; for each runtime that has no file, and why a run stopped early, among `missed`.
    """

    report: dict[str, Any]
    folder: Path
    missed: list[str]
    warnings: list[str]

    @property
    def files(self) -> list[Path]:
        """The exported files of the result, one for each runtime."""
        return [
            f
            for name, runtime in RUNTIMES.items()
            for f in sorted((self.folder / name).glob(f"*{runtime.suffix}"))
        ]

    def shortfall(self) -> str:
        """Which limits were missed that stop a run, by how much, and where the files are; empty
        where none was.
        """
        return (
            "; ".join(self.missed) + f". Everything is kept in {self.folder}" if self.missed else ""
        )


@preserved()
def run(
    recipe: str | Path | Recipe,
    *,
    resume: bool = False,
    folder: str | Path | None = None,
    check: bool = True,
    stop_early: bool = True,
) -> Run:
    """Carries out a recipe and writes its report.

    - recipe: a YAML file, or a `Recipe`.
    - resume: steps that are finished are taken from the folder; otherwise all are done anew.
    - folder: where everything goes, `runs/<recipe's name>` by default.
    - check: raise `LimitError` where a limit with `on_fail: stop` is missed, after everything has
      been written.
    - stop_early: leave out the steps that follow one by which such a limit has become hopeless.
      What is there is measured and reported.

    After each step it is said what accuracy is left: on the validation data, else on a tenth of
    the training data, at most 512 samples, that no step sees. These also choose the file that is
    recommended, over all stages and runtimes. The test data give the last figures alone.

    Returns a `Run`: the report, the folder, what was missed.
    Raises `RecipeError` for anything that is wrong with the recipe, the network, the data or the
    metric, before the first step.

    Example:

        >>> import mirabelle as mb
        >>> from pathlib import Path
        >>> steps = "steps: [prune: {macs: 0.7}, export: {runtimes: [onnxruntime]}]"
        >>> names = ["version: 1", "model: tests.tiny:model", "data: tests.tiny:data", steps]
        >>> _ = Path("tiny.yaml").write_text(chr(10).join(names))
        >>> found = mb.run("tiny.yaml")
        >>> [file.name for file in found.files], found.missed
        (['model.onnx'], [])
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    named = opened(recipe)
    recipe, model, loaders = named.recipe, named.model, named.loaders
    example = check_fit(recipe, model, loaders)
    checked = check_pictures(named)
    for doubt in checked.warnings:
        console.print(f"warning: {doubt}", style="yellow")
    workspace = Workspace(
        Path(folder) if folder is not None else Path("runs") / Path(recipe.path).stem, resume
    )
    inputs = root_facts(recipe, model, loaders)
    held = hold_back(recipe, loaders)
    looks = Looks(recipe, held, model, held is not loaders)
    with interruptible(), workspace.lock():
        workspace.sweep()
        original = Stage("original", "original", model)
        source = named.found.file if recipe.load is None else None
        state = State(
            recipe, held, example, [original], looks, source=source, unpruned=named.unpruned
        )
        state.how, state.classes = named.data.how, class_names(named)
        report = _steps(state, workspace, content_hash(inputs), stop_early)
        about = Data.of(described(named, checked))
        report = replace(report, inputs=inputs, files=_delivered(state), data=about)
        write(report, workspace.folder)
        _collect(state, workspace.folder)
    stops, warns = missed(report, "stop"), missed(report, "warn")
    finished = Run(report.to_dict(), workspace.folder, stops, warns)
    if finished.missed and check:
        raise LimitError(finished.shortfall())
    return finished


def _steps(state: State, workspace: Workspace, key: str, stop_early: bool) -> Report:
    """The report, after all steps, or all until no limit can be met any more."""
    records: list[dict[str, Any]] = []
    steps = state.recipe.steps
    for number, step in enumerate(steps, 1):
        references = depends(step)
        if step.name == "quantize":
            references["grids"] = [[w.runtimes, w.options] for w in grids_of(steps)]
        key = chain(key, step=step.name, options=dict(step.options), references=references)
        record = _cached(
            state,
            workspace,
            number,
            len(steps),
            step.name,
            key,
            lambda folder, work, s=step: execute(s.name, state, s.options, folder, work),
        )
        records.append(record)
        _take(state, workspace.path(number, step.name, key), step, number, record["facts"])
        if stop_early and number < len(steps):
            state.stopped = hopeless(
                state.recipe,
                list(steps[number:]),
                record["facts"].get("look"),
                _share_of_macs(state),
            )
        if state.stopped:
            console.print(f"stopped after step {number}: {state.stopped}", style="yellow")
            break
    key = chain(key, step="measure")
    number = len(steps) + 1
    measured = _cached(
        state,
        workspace,
        number,
        number,
        "measure",
        key,
        lambda folder, work: measure_all(state, folder),
    )
    folder = workspace.path(number, "measure", key)
    return summarize(state, [*records, measured], measured, folder, workspace.folder)


def _take(state: State, path: Path, step: Step, number: int, facts: dict[str, Any]) -> None:
    """What a step has left in its folder becomes the state of the next one."""
    if (path / "model").is_dir():
        # From the disk even when it was just made: a resumed run sees the same.
        state.saved = path / "model"
        taken = any(s.name == step.name for s in state.stages)
        name = f"{step.name}{number}" if taken else step.name
        original = state.stages[0].model if state.unpruned is None else state.unpruned
        others: dict[str, Any] = {}
        if step.name == "quantize":
            for i, way in enumerate(grids_of(state.recipe.steps)[1:], 1):
                other = load(path / "grids" / str(i), clone(original))
                others |= dict.fromkeys(way.runtimes, other)
        model = load(path / "model", clone(original))
        state.stages.append(Stage(name, LABELS[step.name], model, others))
    if step.name == "export":
        state.exported, state.threads = path, step.options.get("threads", 1)
        state.failed = dict(facts.get("failed", {}))
        asked = step.options.get("runtimes", ["onnxruntime"])
        state.runtimes = [r for r in asked if r not in state.failed]


def _share_of_macs(state: State) -> float | None:
    """What is left of the original's, where a limit asks for it."""
    if state.recipe.limits.macs is None or len(state.stages) < 2:
        return None
    first, last = (count_macs(s.model, state.inputs) for s in (state.stages[0], state.stages[-1]))
    return last / first


def _cached(
    state: State,
    workspace: Workspace,
    number: int,
    count: int,
    name: str,
    key: str,
    execute_into: Any,
) -> dict[str, Any]:
    check_interrupted()
    record = workspace.finished(number, name, key)
    if record is not None:
        console.print(_line(f"{number}/{count} {name}: done before", record), style="dim")
        return record
    written = workspace.begin(number, name, key)
    begun = time.monotonic()
    work = workspace.work(number, name, key)
    try:
        try:
            outcome: Outcome = execute_into(written, work)
        except CheckpointError as error:
            console.print(
                f"{number}/{count} {name}: its checkpoint cannot be used, it starts from the "
                f"beginning: {error}",
                style="yellow",
            )
            shutil.rmtree(work)
            outcome = execute_into(written, work)
        seconds = time.monotonic() - begun
        record = workspace.finish(
            number, name, key, written, outcome.facts, {**outcome.timings, "wall": seconds}
        )
    finally:
        shutil.rmtree(written, ignore_errors=True)
    console.print(_line(f"{number}/{count} {name}: {seconds:.1f} s", record))
    return record


def _line(text: str, record: dict[str, Any]) -> str:
    """With what accuracy is left after the step."""
    left = said(record["facts"].get("look"))
    return f"{text}; {left}" if left else text


def _delivered(state: State) -> dict[str, list[str]]:
    """By folder, the files of the last stage that `_collect` puts into the run's folder."""
    found = {} if state.saved is None else {"model": list(FILES)}
    for runtime in state.runtimes:
        path = state.artifact(state.stages[-1].name, runtime).path
        found[runtime] = [f.name for f in RUNTIMES[runtime].files(path)]
    return found


def _collect(state: State, folder: Path) -> None:
    """Copies the last stage's files to where they are easily found."""
    if state.saved is not None:
        for name in FILES:
            copy_file(state.saved / name, folder / "model" / name)
    last = state.stages[-1].name
    for runtime in state.runtimes:
        for source in RUNTIMES[runtime].files(state.artifact(last, runtime).path):
            copy_file(source, folder / runtime / source.name)
