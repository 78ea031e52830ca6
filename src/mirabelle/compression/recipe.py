"""The recipe that makes the best network again, without the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirabelle.base.files import atomic
from mirabelle.channels.groups import analyze
from mirabelle.channels.skipping import skip
from mirabelle.compression.front import Point
from mirabelle.compression.plan import Table, same_groups
from mirabelle.compression.trial import AS_INTEGERS, CALIBRATED, SLOWER, STATISTICS, Setting
from mirabelle.report.sections.recipe import as_yaml

FILE = "recipe.yaml"
UNNAMED = "module:callable"  # what stands for a network, or for data, that was not named
HEAD = "# the best network of a search, made again: mirabelle run recipe.yaml\n"
NAMES = (
    "# The network or the data were given as objects: write module:callable for what builds them.\n"
)


def chain(points: Sequence[Point], best: Point) -> list[Point]:
    """The best point after those that it goes on from, the first one first."""
    by_folder, found = {p.folder: p for p in points}, [best]
    while found[0].start in by_folder:
        found.insert(0, by_folder[found[0].start])
    return found


def recipe_of(setting: Setting, points: Sequence[Point], best: Point) -> dict[str, Any]:
    """The recipe, as JSON: each cut with its widths, each training with its steps, the integers.

    The same data choose the channels, so that the network has the same structure. Its weights
    differ in what rounding and the splits of the data change.
    """
    source, steps, before = setting.source, [], None
    for point in chain(points, best):
        if (cut := _cut(setting, point, before)) is not None:
            steps.append({"prune": cut})
        if point.own:
            steps.append({"distill": _training(setting, point)})
        before = point
    if best.plan["floats"] is not None:
        floats = list(best.plan["floats"])
        own = {"samples": CALIBRATED} | ({"keep": floats} if floats else {})
        steps.append({"quantize": own})
        if best.own and best.knobs["integers"]:
            share = AS_INTEGERS / (1 - AS_INTEGERS)
            own = _training(setting, best)
            rate, count = own["lr"] / SLOWER, max(1, round(share * best.own))
            steps.append({"distill": {**own, "lr": rate, "steps": count}})
    steps.append({"export": {"runtimes": [setting.runtime]}})
    if best.plan["floats"] is not None:
        steps.append("verify")
    metric = setting.judge.asked
    return {
        "version": 1,
        "model": source.model or UNNAMED,
        "data": source.data or UNNAMED,
        **({"metric": metric} if isinstance(metric, str) else {}),
        "seed": setting.seed,
        "steps": steps,
    }


def write_recipe(recipe: Mapping[str, Any], folder: Path) -> Path:
    """`folder/recipe.yaml`, for `mirabelle run`."""
    unnamed = UNNAMED in (recipe["model"], recipe["data"])
    with atomic(folder / FILE) as temporary:
        text = f"{HEAD}{NAMES if unnamed else ''}{as_yaml(dict(recipe))}\n"
        temporary.write_text(text, encoding="utf-8")
    return folder / FILE


def _training(setting: Setting, point: Point) -> dict[str, Any]:
    losses = setting.losses[point.knobs["losses"]]
    return {
        "teacher": "original",
        **({} if losses is None else {"losses": dict(losses)}),
        "steps": point.own,
        "lr": float(f"{point.knobs['rate']:.4g}"),
    }


def _cut(setting: Setting, point: Point, before: Point | None) -> dict[str, Any] | None:
    """The options of `prune` from the point before, or from the original; None without a cut."""
    table: Table = setting.table
    skipped = list(point.plan["skipped"])
    widths = {n: int(k) for n, k in point.plan["kept"].items() if k < table.coupling.channels[n]}
    if skipped:
        inputs = table.coupling.inputs
        coupling = analyze(skip(table.model, inputs, skipped), inputs)
        known = same_groups(coupling, table.coupling)
        widths = {n: widths[old] for n, old in known.items() if old in widths}
    if before is not None:
        skipped = [n for n in skipped if n not in before.plan["skipped"]]
        widths = {n: k for n, k in widths.items() if k < before.plan["kept"].get(n, k + 1)}
    if not widths and not skipped:
        return None
    found: dict[str, Any] = {"widths": widths, "samples": STATISTICS}
    return {**found, "skip": skipped} if skipped else found
