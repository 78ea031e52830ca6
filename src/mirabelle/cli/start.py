"""`mirabelle init`: a look at network and data, and a recipe with comments that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mirabelle.base.data import batches
from mirabelle.base.errors import InputError
from mirabelle.base.files import write_text
from mirabelle.base.options import options_of
from mirabelle.cli.common import (
    DATA,
    FLAG,
    MODEL,
    RUNTIMES,
    WEIGHTS,
    Common,
    say,
    target_for,
    weighted,
)
from mirabelle.cli.options import closed, taking
from mirabelle.measurement.agreement import METRIC
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.pipeline.facts import check_fit
from mirabelle.pipeline.inputs import Opened, check, check_pictures
from mirabelle.pipeline.recipe import parse
from mirabelle.runtimes import RUNTIMES as ALL
from mirabelle.sources.data import read

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@closed
@taking(options_of(read).in_recipes)
def init(
    model: Annotated[str, MODEL],
    /,
    *,
    data: Annotated[str, DATA],
    weights: Annotated[str | None, WEIGHTS] = None,
    runtime: Annotated[list[str] | None, RUNTIMES] = None,
    output: Annotated[str, Parameter(help="the recipe that is written")] = "recipe.yaml",
    force: Annotated[bool, FLAG, Parameter(help="write over a recipe that is there")] = False,
    common: Common = Common(),  # noqa: B008
    **options: Any,
) -> int:
    """Look at network and data, and write a commented recipe that runs."""
    path, runtimes = Path(output), runtime or ["onnxruntime"]
    if path.exists() and not force:
        raise InputError(f"{path} is there; choose another --output, or write over it with --force")
    content = {
        "version": 1,
        "model": weighted(model, weights),
        "data": {"folder": data, **options} if options else data,
        "steps": [{"export": {"runtimes": runtimes}}],
    }
    named = check(parse(content, output))
    check_fit(named.recipe, named.model, named.loaders)
    doubts = check_pictures(named).warnings
    text = recipe_text(content, named, runtimes, doubts)
    write_text(path, text)
    shown = [*(f"warning: {d}" for d in doubts), f"{path}; next: mirabelle run {path} --dry-run"]
    return say({"recipe": str(path), "warnings": doubts}, common.json, "\n".join(shown))


def recipe_text(
    content: dict[str, Any], named: Opened, runtimes: list[str], doubts: list[str]
) -> str:
    """The recipe as YAML, with what was found as comments."""
    import yaml

    def line(value: Any) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
        return text.removesuffix("...").strip()

    labeled = named.recipe.metric != METRIC
    int8 = all(ALL[r].int8 for r in runtimes)
    lines = [
        f"# {_network(named)}",
        f"# {named.data}",
        *([f"# pictures: {named.data.how}"] if named.data.how else []),
        *(f"# look at this: {d}" for d in doubts),
        "version: 1",
        f"model: {line(content['model'])}",
        f"data: {line(content['data'])}",
    ]
    if labeled:
        lines += [f"metric: {named.recipe.metric}"]
    else:
        lines += ["# Without labels: how often the outputs agree with the original's is measured."]
    lines += [
        "# What the result must keep. on_fail: warn says so, stop ends with exit code 3.",
        f"limits: {{accuracy_drop: {'0.01' if labeled else '0.05'}, on_fail: warn}}",
        "steps:",
        *_steps(named, labeled, int8, target_for(runtimes)),
        f"  - export: {{runtimes: [{', '.join(runtimes)}]}}",
    ]
    if int8:
        lines += [
            "  # The file on its runtime against an integer reference, layer by layer.",
            "  - verify",
        ]
    return "\n".join(lines) + "\n"


def _network(named: Opened) -> str:
    example = next(batches(named.loaders.calibration, 1)).head(1)
    macs = count_macs(named.model, example.args or example.kwargs)
    size = count_parameters(named.model)
    return f"{named.found.name}: {size / 1e6:.2f} M parameters, {macs / 1e6:.0f} M MACs a sample"


def _steps(named: Opened, labeled: bool, int8: bool, target: str | None) -> list[str]:
    kinds = {type(m).__name__ for m in named.model.modules()}
    prunable = bool(kinds & {*CONVOLUTIONS, "Linear"}) and named.found.file is None
    lines = []
    if prunable:
        lines += [
            "  # Channels: half of the multiply-accumulates stay. Remove the # to cut, and to",
            "  # train the rest on what the original says of the training data.",
            "  # - prune: {macs: 0.5}",
            "  # - distill: {teacher: original, epochs: 3}",
        ]
    if int8:
        judged = "accuracy" if labeled else "agreement"
        options = f"samples: 512{f', target: {target}' if target else ''}"
        lines += [
            "  # Integers of 8 bits. accuracy_drop: 0.01 would let layers fall back to float",
            f"  # until {judged} has fallen by at most one point.",
            f"  - quantize: {{{options}}}",
        ]
    return lines
