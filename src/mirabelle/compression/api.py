"""`mb.compress`: the smallest network that holds the limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import check_float32, check_network
from mirabelle.base.data import preserved
from mirabelle.base.declarations import KeepOption, SeedOption
from mirabelle.base.errors import InputError, LimitError
from mirabelle.base.files import folder_at, read_json
from mirabelle.base.interruption import interruptible
from mirabelle.base.keep import names_of
from mirabelle.base.options import Expected, OneOf, declared
from mirabelle.base.progress import console
from mirabelle.compression.budget import Budget, measured_steps, share_of_test
from mirabelle.compression.clock import Clock, locked
from mirabelle.compression.finish import file_of, finish, network_of
from mirabelle.compression.front import Point, front
from mirabelle.compression.limits import COSTS, DROP, Goal
from mirabelle.compression.parts import Source, parts
from mirabelle.compression.recipe import FILE
from mirabelle.compression.result import Compressed
from mirabelle.compression.search import Search
from mirabelle.compression.setup import check_study, identity, prepared
from mirabelle.compression.study import Study
from mirabelle.graph.quantized import check_float
from mirabelle.measurement.accuracy import MetricOption
from mirabelle.runtimes import check_runs_here
from mirabelle.runtimes import load as open_file
from mirabelle.runtimes.declarations import RuntimeOption
from mirabelle.sources import networks
from mirabelle.sources.check import check as check_pictures
from mirabelle.sources.data import Data, from_any

IDENTITY = "identity"


def _together(options: Mapping[str, Any]) -> None:
    Goal.of(options)


@declared(_together)
def compress(
    model: nn.Module | str | Path,
    data: Any,
    *,
    accuracy_drop: Annotated[
        float | None, Ge(0), Lt(1), Doc("how far the metric may fall, as a fraction")
    ] = None,
    latency: Annotated[
        float | None, Gt(0), Le(1), Doc("the share of the milliseconds that is kept at most")
    ] = None,
    size: Annotated[
        float | None, Gt(0), Le(1), Doc("the share of the file's bytes that is kept at most")
    ] = None,
    macs: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Doc("the share of the multiply-accumulates that is kept at most"),
    ] = None,
    minimize: Annotated[
        str | None,
        OneOf((DROP, *COSTS)),
        Doc("what is made small within the limits; None is latency, or the drop where costs are"),
    ] = None,
    runtime: Annotated[
        RuntimeOption, Doc("what the file is for, and where milliseconds are measured")
    ] = "onnxruntime",
    minutes: Annotated[float, Gt(0), Doc("how long the search takes")] = 30.0,
    metric: MetricOption = "top1",
    keep: Annotated[
        KeepOption, Doc("modules or parameters whose channels and blocks are left alone, by path")
    ] = (),
    folder: Annotated[
        str | Path | None,
        Expected("a folder"),
        Doc("where the search and its result go; None is runs/compress-<its identity>"),
    ] = None,
    seed: SeedOption = 0,
    check: Annotated[bool, Doc("raise LimitError where a limit is missed, at the end")] = True,
) -> Compressed:
    """The smallest network that holds the limits, as a file for `runtime` that was measured there.

    It is pruned, distilled and given integers, as one plan decides.

    - model: the network, which stays as it is and is the teacher; or its name, as in
      `sources.networks.find`.
    - data: an iterable of inputs or (inputs, target); a dict or object with `train` and some of
      `calibration`, `validation` and `test`; or a name, as in `sources.data.read`: a folder of
      pictures, a file of arrays. What is not given is held back from `train`.
    - accuracy_drop: how far the metric may fall, as a fraction. Without labels accuracy is
      agreement with the original's outputs.
    - latency, size, macs: the share of milliseconds, bytes, multiply-accumulates that is kept at
      most.
    - minimize: what is made small within the limits. None is latency, or the drop where costs are
      given.
    - runtime: what the file is for, and where milliseconds are measured; `onnxruntime` by default.
    - minutes: how long the search takes, 30 by default.
    - metric: as for `mb.measure`.
    - keep: modules or parameters, by path, whose channels are left alone.
    - folder: where the search and its result go; None is `runs/compress-` and its identity. A
      search that was interrupted goes on there. The same call in another process, or on another
      machine that shares the folder, joins in.
    - seed: of everything that is random.
    - check: raise `LimitError` where a limit is missed, after everything was written. Then the
      nearest points are in the folder, and `check=False` returns them.

    For each layer there is a menu. What an entry loses is predicted in squared error of the
    network's outputs, what it costs in milliseconds that the runtime's profiler has shown. One
    knapsack chooses from all menus. How deep to cut is searched for: one network at a middle depth
    is trained for long; others close in on the limit, each cut further from a trained one. What is
    left of the time draws other ways of training (Optuna). Choices use training, calibration and
    validation data. The test data are read once, at the end.

    Returns a `Compressed`: `model`, `artifact`, `front`, `report`, `recipe`.
    Raises `InputError` for limits that say nothing, data that cannot be split, and networks
    without a channel to prune, before anything takes long.
    Source: Hassibi and Stork 1993, section 3 (losses); Shen et al. 2022 (HALP: the knapsack over
    milliseconds).

    Example:

        >>> import mirabelle as mb
        >>> from tests import tiny
        >>> best = mb.compress(tiny.model(), tiny.data()[0], macs=0.6, minutes=0.1, check=False)
        >>> best.artifact.path.is_file(), len(best.front) > 0
        (True, True)
    """
    options = dict(locals())
    goal = Goal.of(options)
    network, data, source = _opened(model, data, seed)
    check_float(network, "compress")
    check_float32(network)
    check_runs_here(runtime)
    options["keep"] = tuple(names_of(keep))
    with preserved(), interruptible():
        given = parts(data, seed)
        name = identity(network, given, goal, options, seed)
        where = Path("runs") / f"compress-{name[:8]}" if folder is None else Path(folder)
        result = _searched(network, given, goal, options, where, name, source)
    if result.missed and check:
        raise LimitError(f"{'; '.join(result.missed)}. Everything is kept in {result.folder}")
    return result


def _opened(model: Any, data: Any, seed: int) -> tuple[nn.Module, Any, Source]:
    """The network and the data that are named, or that are given themselves."""
    found, named, given = networks.find(model), None, data
    if isinstance(data, (str, Path)) or (isinstance(data, Mapping) and "folder" in data):
        named = from_any(data, found.how, found.classes or None, seed)
        data = named.loaders
    example = None
    if found.model is None:
        example = parts(data, seed).example
    network = check_network(found.module(example)).eval()
    if named is not None and named.how is not None and named.table is not None:
        console.print(f"{named}; pictures: {named.how}", style="dim")
        for doubt in check_pictures(network, named).warnings:
            console.print(f"warning: {doubt}", style="yellow")
    return network, data, _source(model, given, found, named)


def _source(model: Any, given: Any, found: Any, named: Data | None) -> Source:
    """What the network and the data are called, and how the pictures are shown."""
    name = str(model) if isinstance(model, (str, Path)) else None
    if named is None:
        return Source(name)
    asked = dict(given) if isinstance(given, Mapping) else str(given)
    table = named.table
    return Source(name, asked, named.how, (table.classes if table else ()) or found.classes)


def _searched(
    model: nn.Module,
    given: Any,
    goal: Goal,
    options: Mapping[str, Any],
    folder: Path,
    name: str,
    source: Source,
) -> Compressed:
    """The search of `folder`, from where it stands until its time is over, and its result."""
    folder_at(folder)
    seconds = 60 * options["minutes"]
    clock = Clock(folder, seconds)
    try:
        with locked(folder / "begin.lock"):
            study = Study(folder, options["seed"])
            check_study(name, study.facts.get(IDENTITY), folder)
            study.learn(IDENTITY, name)
        if clock.tick() <= 0 and _is_finished(folder, study):
            return _result(model, goal, options["runtime"], study, folder)
        say_start(given, goal, folder, clock)
        began = time.monotonic()
        setting = prepared(model, given, goal, options, folder, source)
        tables = time.monotonic() - began
        share = share_of_test(setting)
        search = Search(
            setting, study, Budget(clock, seconds, measured_steps(setting), tables, share)
        )
        search.run()
        with locked(folder / "finish.lock"):
            if not _is_finished(folder, study):
                finish(search)
        return _result(model, goal, options["runtime"], study, folder)
    finally:
        clock.close()


def say_start(given: Any, goal: Goal, folder: Path, clock: Clock) -> None:
    """What is going to be done, in two lines."""
    limits = ", ".join(f"{n} at most {v:g}" for n, v in goal.limits.items())
    left = clock.tick() / 60
    console.print(f"compressing: least {goal.minimize} with {limits}; {left:.1f} min, in {folder}")
    console.print("; ".join(f"{n}: {how}" for n, how in given.how.items()), style="dim")


def _is_finished(folder: Path, study: Study) -> bool:
    """Whether the result in the folder is of all points that there are."""
    try:
        return read_json(folder / "result.json").get("points") == len(study.points())
    except (InputError, AttributeError):
        return False


def _result(model: nn.Module, goal: Goal, runtime: str, study: Study, folder: Path) -> Compressed:
    found = read_json(folder / "result.json")
    best, points = Point.of(found["best"]), study.points()
    path = folder / runtime / file_of(folder, best, runtime).name
    return Compressed(
        network_of(model, folder, best),
        open_file(path, runtime),
        best,
        front(points, goal.quantity),
        points,
        folder / "report.html",
        folder / FILE,
        list(found["missed"]),
        read_json(folder / "report.json"),
        folder,
    )
