"""The end of a search: the best network, its file, what the test data say, and the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import fx, nn

from mirabelle.base.checks import clone
from mirabelle.base.data import batches
from mirabelle.base.files import copy_file, write_json
from mirabelle.compression.clock import timing
from mirabelle.compression.front import Point, front
from mirabelle.compression.limits import DROP, Goal, sure_of
from mirabelle.compression.page import report_of
from mirabelle.compression.recipe import recipe_of, write_recipe
from mirabelle.compression.search import Search
from mirabelle.compression.trial import Setting
from mirabelle.graph.artifacts import time_in_turn
from mirabelle.measurement.accuracy import Scores
from mirabelle.measurement.changed import Album, Watch, described
from mirabelle.measurement.judge import Judge
from mirabelle.measurement.latency import Latency
from mirabelle.quantization.simulation.description import quantization
from mirabelle.report import write
from mirabelle.report.schema import Changed
from mirabelle.runtimes import RUNTIMES, Artifact
from mirabelle.runtimes import load as open_file
from mirabelle.store import FILES, load
from mirabelle.verification.api import verify

MOST = 5  # points of the front that the test data judge
SECONDS = 12.0  # of timing all of them in turn, at most
VERIFIED = 64  # samples
FEW = 4  # samples that are verified first, to see how long it takes
JUDGING, TIMING, VERIFYING = 0.5, 0.2, 0.3  # of the time that is left, at most


@dataclass(frozen=True)
class Tested:
    """One network in the end. latency: timed in turn with all others. scores: on test data.
    drop, interval: on test data, paired.
    """

    artifact: Artifact
    latency: Latency
    scores: Scores
    drop: float
    interval: tuple[float, float]


def finish(search: Search) -> None:
    """Chooses, tests and writes everything."""
    setting, goal, budget = search.setting, search.setting.goal, search.budget
    points = search.study.points()
    left = max(0.0, budget.clock.tick())
    sure = sure_of(goal, points)
    best = goal.best(points, sure)
    judging = budget.test * max(1e-3, best.took["validate"])
    most = min(MOST, max(1, int(JUDGING * left / judging) - 1))
    chosen = _chosen(front(points, goal.quantity), best, most)
    watch = Watch(Album(setting.source.how), not setting.judge.labeled)
    tested = _tested(setting, chosen, watch, min(SECONDS, max(TIMING * left, budget.timing)))
    network = network_of(setting.model, setting.folder, best)
    left = budget.clock.tick()
    verified = _verified(setting, network, tested[best.folder].artifact, VERIFYING * left)
    missed = missed_of(goal, best, points, sure)
    report = report_of(setting, points, chosen, best, tested, network, verified, sure, missed)
    recipe = recipe_of(setting, points, best)
    report = replace(
        report,
        changed=Changed.of(_changed(setting, watch, best)),
        recipe=recipe,
        files=_place(setting, best),
    )
    write_recipe(recipe, setting.folder)
    write(report, setting.folder)
    write_json(
        setting.folder / "result.json",
        {"best": best.to_dict(), "missed": missed, "points": len(points)},
    )


def network_of(model: nn.Module, folder: Path, point: Point) -> nn.Module:
    """The network of a point. model: the original; folder: the study's."""
    return load(folder / point.folder / "network", clone(model))


def file_of(folder: Path, point: Point, runtime: str) -> Path:
    return folder / point.folder / f"model{RUNTIMES[runtime].suffix}"


def _chosen(found: list[Point], best: Point, most: int) -> list[Point]:
    """The best point, and others of the front, spread evenly: at most so many in all."""
    others = [p for p in found if p != best]
    count = min(most - 1, len(others))
    places = np.unique(np.linspace(0, len(others) - 1, count).round().astype(int))
    return [*(others[i] for i in places), best]


def _changed(setting: Setting, watch: Watch, best: Point) -> dict[str, Any] | None:
    """The test pictures whose class the best network changes."""
    found = watch.found.get(f"{best.folder}/")
    if found is None:
        return None
    source = setting.source
    known = source.how is not None
    return described(asdict(found), "compressed", setting.runtime, source.classes, known)


def _tested(
    setting: Setting, chosen: Sequence[Point], watch: Watch, seconds: float
) -> dict[str, Tested]:
    """The original, under '', and the chosen points, by their folders. The test data are read here
    and nowhere else. seconds: of timing.
    """
    files = {"": setting.base}
    files |= {
        p.folder: open_file(file_of(setting.folder, p, setting.runtime), setting.runtime)
        for p in chosen
    }
    with timing():
        times = time_in_turn(files, setting.inputs, seconds)
    test = setting.parts.test
    labeled = next(batches(test, what="the test data")).target is not None
    judge = Judge(setting.model, test, setting.judge.asked, labeled)
    found = {}
    for name, file in files.items():
        scores = judge.of_file(file, "testing", watch, name)
        drop, low, high = judge.drop(scores)
        found[name] = Tested(file, times[name], scores, drop, (low, high))
    return found


def _verified(
    setting: Setting, network: nn.Module, artifact: Artifact, seconds: float
) -> list[dict[str, Any]]:
    """The file against the integer reference, on few samples where more would take longer."""
    if not isinstance(network, fx.GraphModule) or quantization(network) is None:
        return []
    began = time.monotonic()
    found = verify(network, artifact, setting.few, samples=FEW)
    if (time.monotonic() - began) * VERIFIED / FEW <= seconds:
        found = verify(network, artifact, setting.few, samples=VERIFIED)
    return [found.to_dict()]


def missed_of(goal: Goal, best: Point, points: Sequence[Point], sure: bool) -> list[str]:
    """A sentence for each limit that the best point misses: by how much, and what would help."""
    said = []
    for name in goal.missed(best, sure):
        value = best.drop if name == DROP else best.costs[name]
        upper = f" (at most {best.interval[1]:.4f} by its interval)" if name == DROP else ""
        said.append(
            f"{name} is {value:.4f}{upper}, the limit is {goal.limits[name]:g}; "
            f"{_help(goal, name, points)}"
        )
    return said


def _help(goal: Goal, name: str, points: Sequence[Point]) -> str:
    """What would help where a limit binds."""
    if name != DROP:
        least = min(p.costs[name] for p in points)
        return f"the least that was reached is {least:.3f}; raise the limit, or shorten keep"
    reached = [p for p in points if p.drop <= goal.limits[DROP]]
    if reached and goal.costs:
        quantity = goal.quantity
        near = min(p.costs[quantity] for p in reached)
        return f"within the drop {quantity} {near:.3f} was reached; or give more minutes or data"
    return "give more minutes, more data, or a larger drop"


def _place(setting: Setting, best: Point) -> dict[str, list[str]]:
    """Copies the best network and its files to where they are easily found: names, by folder."""
    folder, runtime = setting.folder, setting.runtime
    for name in FILES:
        copy_file(folder / best.folder / "network" / name, folder / "model" / name)
    sources = RUNTIMES[runtime].files(file_of(folder, best, runtime))
    for source in sources:
        copy_file(source, folder / runtime / source.name)
    return {runtime: [s.name for s in sources], "model": list(FILES)}
