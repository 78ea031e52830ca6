"""Recipes: YAML -> frozen dataclasses, checked whole before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from mirabelle.base.errors import InputError, RecipeError, did_you_mean
from mirabelle.base.names import load
from mirabelle.base.options import Check, Expected, OneOf, options_of, shown
from mirabelle.fitting.gradients import LOSSES
from mirabelle.measurement.accuracy import METRICS
from mirabelle.pipeline.declarations import STEPS
from mirabelle.pipeline.order import check_limits, check_order, check_without_data
from mirabelle.pipeline.yaml_file import read_yaml
from mirabelle.sources.data import check_named as check_data
from mirabelle.sources.networks import check_named as check_network

LIMITS = ("accuracy_drop", "speedup", "size_ratio", "macs")
OPTIONS: dict[str, dict[str, Any]] = {name: options.defaults for name, options in STEPS.items()}


def _check_on_fail(value: Any) -> None:
    if isinstance(value, Mapping):
        _known_keys(value, LIMITS, "limits.on_fail")


@dataclass(frozen=True)
class Limits:
    """What the result must keep. None: no limit.

    on_fail: `stop` ends the run with an error, `warn` only says so; or one of these for each limit
    by its name, as a speed-up depends on the processor. Those not named stop.
    """

    accuracy_drop: Annotated[
        float | None,
        Gt(-1),
        Le(1),
        Doc("at most so much below the original, as a fraction: 0.005 is half a point"),
    ] = None
    speedup: Annotated[
        float | None,
        Gt(0),
        Doc("at least so many times faster than the float original on the same runtime"),
    ] = None
    size_ratio: Annotated[
        float | None, Gt(0), Doc("the file is at least so many times smaller")
    ] = None
    macs: Annotated[
        float | None, Gt(0), Le(1), Doc("at most this fraction of the original's is left")
    ] = None
    on_fail: Annotated[
        Literal["stop", "warn"] | Mapping[str, Literal["stop", "warn"]],
        Check(_check_on_fail),
        Doc("for all limits, or for each, such as {speedup: warn}"),
    ] = "stop"

    def items(self) -> list[tuple[str, float]]:
        return [(n, getattr(self, n)) for n in LIMITS if getattr(self, n) is not None]

    def stops(self, name: str) -> bool:
        """Whether missing this limit ends the run with an error."""
        return (
            self.on_fail if isinstance(self.on_fail, str) else self.on_fail.get(name, "stop")
        ) == "stop"


@dataclass(frozen=True)
class Step:
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _check_step(value: str) -> None:
    load(value, "it")


def _check_load(value: str) -> None:
    if not (Path(value) / "model.json").is_file():
        raise InputError(f"{value} holds no saved network: there is no {value}/model.json")


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was written; `load_recipe` has checked every key and value."""

    model: Annotated[
        str,
        Check(check_network),
        Doc("the trained network: module:callable, .onnx, .pt2, timm:, torchvision: or hf:NAME"),
    ]
    steps: tuple[Step, ...]
    data: Annotated[
        str | Mapping[str, Any] | None,
        Check(check_data),
        Doc("a folder of pictures, .csv, .npz, .npy, module:callable; or {folder: ..., size: ...}"),
    ] = None
    metric: Annotated[
        str,
        OneOf(METRICS, plugin=True),
        Doc("(output, target) -> a score for each sample, or what has update and compute"),
    ] = "top1"
    loss: Annotated[str, OneOf(LOSSES, plugin=True), Doc("(output, target) -> scalar")] = (
        "cross_entropy"
    )
    step: Annotated[
        str | None,
        Check(_check_step),
        Expected("'module:callable'"),
        Doc("module:callable (network, batch) -> scalar, in place of loss"),
    ] = None
    load: Annotated[
        str | None,
        Check(_check_load),
        Expected("a folder that mb.save or a run wrote"),
        Doc("a folder that mb.save or a run wrote: the pruned form of model, from which it starts"),
    ] = None
    seed: Annotated[int, Ge(0), Lt(2**32), Doc("of everything that is random")] = 0
    limits: Limits = Limits()
    version: int = 1
    path: str = "recipe.yaml"

    @property
    def has_data(self) -> bool:
        """Else pictures are made up, of the size and the kind that `data` says, if it says any."""
        return self.data is not None and (isinstance(self.data, str) or "folder" in self.data)

    def to_dict(self) -> dict[str, Any]:
        limits = {k: v for k, v in vars(self.limits).items() if v is not None}
        data = dict(self.data) if isinstance(self.data, Mapping) else self.data
        return {
            "version": self.version,
            "model": self.model,
            **({"data": data} if data is not None else {}),
            "metric": self.metric,
            "loss": self.loss,
            **({"step": self.step} if self.step is not None else {}),
            **({"load": self.load} if self.load is not None else {}),
            "seed": self.seed,
            "limits": limits,
            "steps": [{s.name: dict(s.options)} for s in self.steps],
        }


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Everything that can be known to be wrong without running it raises
    `RecipeError` with the place in the file.
    """
    content = read_yaml(path)
    try:
        return parse(content, str(path))
    except InputError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse(content: Any, path: str = "recipe.yaml") -> Recipe:
    """A `Recipe` from what `yaml.safe_load` gives; see `load_recipe`."""
    if not isinstance(content, dict):
        raise RecipeError(f"a recipe is a mapping of keys, got {type(content).__name__}")
    plain = options_of(Recipe)
    _known_keys(content, ["version", *plain, "limits", "steps"], "the recipe")
    for key in ("version", "model", "steps"):
        if key not in content:
            raise RecipeError(f"the recipe has no {key!r}")
    if content["version"] != 1 or isinstance(content["version"], bool):
        raise RecipeError(f"version is {shown(content['version'])}; this Mirabelle reads version 1")
    given = {k: v for k, v in content.items() if k in plain}
    plain.check(given, recipe=True)
    steps = _steps(content["steps"])
    limits = _limits({} if content.get("limits") is None else content["limits"])
    check_order(steps)
    check_limits(limits, steps)
    recipe = Recipe(**given, steps=steps, limits=limits, path=path)
    if not recipe.has_data:
        check_without_data(limits, steps)
    return recipe


def _known_keys(given: Mapping, known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            raise RecipeError(
                f"{where} has an unknown key {shown(key)}{did_you_mean(str(key), known)}"
            )


def _steps(content: Any) -> tuple[Step, ...]:
    if not isinstance(content, list) or not content:
        raise RecipeError(
            "steps is a list of steps with at least one, such as '- prune: {macs: 0.5}'"
        )
    return tuple(_step(number, item) for number, item in enumerate(content, 1))


def _step(number: int, item: Any) -> Step:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise RecipeError(
            f"step {number} is {shown(item)}; expected one name with its options, such as "
            "'prune: {macs: 0.5}'"
        )
    (name, options), where = next(iter(item.items())), f"step {number}"
    if name not in STEPS:
        raise RecipeError(f"{where} is {shown(name)}{did_you_mean(str(name), STEPS)}")
    where, known = f"{where} ({name})", STEPS[name]
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise RecipeError(f"{where} has options {shown(options)}; expected a mapping")
    _known_keys(options, known, where)
    for key, value in options.items():
        if wrong := known[key].refuse(value, recipe=True):
            if value is None:
                wrong = f"; leave the key out for its default, {known.defaults[key]!r}"
            raise RecipeError(f"{where}, {key}: got {shown(value)}{wrong}")
    try:
        known.check_together(options)
    except InputError as error:
        raise RecipeError(f"{where}: {error}") from None
    return Step(name, options)


def _limits(content: Any) -> Limits:
    if not isinstance(content, dict):
        raise RecipeError(
            f"limits is {shown(content)}; expected a mapping such as {{accuracy_drop: 0.005}}"
        )
    known = options_of(Limits)
    _known_keys(content, known, "limits")
    for key, value in content.items():
        if wrong := known[key].refuse(value, recipe=True):
            raise RecipeError(f"limits.{key} is {shown(value)}{wrong}")
    return Limits(**content)
