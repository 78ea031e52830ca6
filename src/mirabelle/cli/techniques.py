"""The commands that change a network: prune, factorize, distill, quantize. Each is a recipe with
one step, and an export after it, and leaves what a run leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mirabelle.base.errors import InputError
from mirabelle.base.options import options_of
from mirabelle.cli.common import (
    DATA,
    FLAG,
    LOAD,
    MODEL,
    RUNTIMES,
    WEIGHTS,
    Common,
    target_for,
    weighted,
)
from mirabelle.cli.options import closed, only_given, taking
from mirabelle.cli.plans import dry_run
from mirabelle.cli.recipes import carried_out
from mirabelle.pipeline.declarations import STEPS
from mirabelle.pipeline.recipe import Recipe, parse
from mirabelle.sources.data import read

NO_DATA = Parameter(
    help=f"{DATA.help}; prune and quantize do without: they make pictures up, which keeps less"
)
FOLDER = Parameter(help="where everything goes: the files, the network, report.html, recipe.yaml")
DRY = Parameter(help="only say what would be done, and roughly how long it takes")
RESUME = Parameter(help="take finished steps from the folder instead of doing them again")

_DATA = options_of(read).in_recipes
_RECIPE = options_of(Recipe)


def _technique(name: str, summary: str, leave: tuple[str, ...] = ()) -> Callable[..., int]:
    """The command of one step."""
    known = STEPS[name].without("runtime", *leave)

    @taking(_RECIPE, "metric", "loss", "seed")
    @taking(_DATA)
    @taking(known)
    def command(
        model: Annotated[str, MODEL],
        /,
        *,
        data: Annotated[str | None, NO_DATA] = None,
        weights: Annotated[str | None, WEIGHTS] = None,
        load: Annotated[str | None, LOAD] = None,
        runtime: Annotated[list[str] | None, RUNTIMES] = None,
        folder: Annotated[str | None, FOLDER] = None,
        resume: Annotated[bool, FLAG, RESUME] = False,
        dry_run: Annotated[bool, FLAG, DRY] = False,
        common: Common = Common(),  # noqa: B008
        **options: Any,
    ) -> int:
        network = {"model": weighted(model, weights)} | ({"load": load} if load else {})
        recipe = _recipe(name, network, data, runtime or ["onnxruntime"], options)
        where = Path(folder or f"runs/{name}")
        return _done(recipe, where, resume, dry_run, common)

    command.__doc__ = summary
    return closed(command)


def _recipe(
    name: str,
    network: dict[str, str],
    data: str | None,
    runtimes: list[str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe, as it could stand in a file."""
    own = only_given(options, STEPS[name])
    if "runtime" in STEPS[name] and runtimes[0] != STEPS[name].defaults["runtime"]:
        own["runtime"] = runtimes[0]
    target = target_for(runtimes)
    if name == "quantize" and target is not None and "target" not in own:
        own["target"] = target
    pictures = only_given(options, _DATA)
    steps: list[Any] = [{name: own} if own else name, {"export": {"runtimes": runtimes}}]
    if name == "quantize":
        steps.append("verify")
    named = {} if data is None else {"folder": data}
    known = {**named, **pictures} if pictures or data is None else data
    return {
        "version": 1,
        **network,
        **({"data": known} if known else {}),
        **only_given(options, _RECIPE),
        "steps": steps,
    }


def _done(
    content: dict[str, Any], folder: Path, resume: bool, only_say: bool, common: Common
) -> int:
    recipe = parse(content, str(folder / "recipe.yaml"))
    if only_say:
        return dry_run(recipe, folder, common)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder")
    return carried_out(recipe, resume, str(folder), common, content)


prune = _technique("prune", "Remove the least important channels of a network.")
factorize = _technique("factorize", "Make two thin layers of each layer of low rank.")
distill = _technique("distill", "Train a network on what another says of the data.", ("weights",))
quantize = _technique("quantize", "Make a network compute with integers, verified on the runtime.")
