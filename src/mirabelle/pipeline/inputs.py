"""The network and the data that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_network
from mirabelle.base.data import Batch, batches
from mirabelle.base.errors import InputError
from mirabelle.base.files import content_hash, sha256
from mirabelle.base.progress import console
from mirabelle.measurement.agreement import METRIC, Answered
from mirabelle.pipeline.recipe import Recipe
from mirabelle.pipeline.sources import code_hash
from mirabelle.quantization.simulation.description import quantization
from mirabelle.sources import data as data_sources
from mirabelle.sources import networks
from mirabelle.sources.callables import Loaders
from mirabelle.sources.check import Checked
from mirabelle.sources.check import check as check_preprocessing
from mirabelle.sources.data import Data
from mirabelle.sources.networks import Found
from mirabelle.sources.preprocessing import given
from mirabelle.sources.sheet import described as contact_sheet
from mirabelle.sources.synthetic import pictures_for
from mirabelle.store import load

WHOLE = 2**24  # bytes up to which a file of data is known by its content


@dataclass(frozen=True)
class Opened:
    """recipe: with the metric that is measured. loaders: as steps read them. model: the network
    that the run starts from; unpruned: as its name says, to which saved networks belong.
    """

    recipe: Recipe
    model: nn.Module
    unpruned: nn.Module
    loaders: Loaders
    found: Found
    data: Data


def opened(recipe: Recipe) -> Opened:
    """What a recipe names. Without labels of the test data their targets are the original's
    outputs, and the metric is the agreement with these: it is said. Raises `InputError`.
    """
    found = networks.find(recipe.model)
    if recipe.data is None or not recipe.has_data:
        return _without_data(recipe, found)
    data = data_sources.from_any(recipe.data, found.how, found.classes or None, recipe.seed)
    loaders = data.loaders
    unpruned = check_network(found.module(_example(found, loaders)), recipe.model).eval()
    model = unpruned if recipe.load is None else _loaded(recipe.load, found, unpruned)
    if data.table is not None:
        console.print(str(data), style="dim")
    if data.how is not None:
        console.print(f"pictures: {data.how}", style="dim")
    if _labeled(loaders.test):
        return Opened(recipe, model, unpruned, loaders, found, data)
    console.print(
        "the test data have no labels: what is measured is how often the outputs agree with the "
        "original's",
        style="dim",
    )
    answered = Answered(loaders.test, model)
    judged = None if loaders.validation is None else Answered(loaders.validation, model)
    loaders = replace(loaders, test=answered, validation=judged)
    return Opened(replace(recipe, metric=METRIC), model, unpruned, loaders, found, data)


def _without_data(recipe: Recipe, found: Found) -> Opened:
    """Synthetic pictures in the place of data, or an example of what the network takes; it is said.
    What is known of pictures is what the network says, with what the recipe says in its place.
    """
    told = dict(recipe.data or {}) if not isinstance(recipe.data, str) else {}
    how, example = found.how, found.example
    if told or example is None:
        how = given(how, told)
        example = Batch((torch.zeros(1, *how.shape, dtype=getattr(torch, how.dtype)),), {}, None)
    unpruned = check_network(found.module(example), recipe.model).eval()
    model = unpruned if recipe.load is None else _loaded(recipe.load, found, unpruned)
    pictures, scale = pictures_for(model, example, recipe.seed, how=how)
    stand = "the network takes none that can be made up"
    if pictures:
        stand = f"{sum(b.size for b in pictures)} synthetic pictures ({scale}) stand for them"
    made_up = (
        f"no data were given: {stand}, and accuracy is unknown. With some hundred real inputs as "
        "data, without labels, the network would be better, and how often it agrees with the "
        "original be known"
    )
    console.print(made_up, style="yellow")
    loaders = Loaders(*[pictures or [example]] * 3)
    data = Data(loaders, "none", how, made_up=made_up)
    return Opened(recipe, model, unpruned, loaders, found, data)


def _loaded(folder: str, found: Found, unpruned: nn.Module) -> nn.Module:
    """The float network that a folder holds."""
    model = load(folder, unpruned if found.file is None else found.file)
    if quantization(model) is not None:
        raise InputError(
            f"load is {folder}, which holds a quantized network; a run starts from the float one, "
            "and quantizes it again"
        )
    return model


def _example(found: Found, loaders: Loaders) -> Batch | None:
    """Of the data, for files whose sizes may be open."""
    if found.file is None:
        return None
    return next(batches(loaders.calibration, 1))._replace(target=None)


def _labeled(loader: Iterable) -> bool:
    return next(batches(loader, 1, what="the test loader")).target is not None


def check_pictures(opened_: Opened) -> Checked:
    """Whether pictures are brought to the network as it knows them, where there are any."""
    return check_preprocessing(opened_.model, opened_.data)


def class_names(named: Opened) -> tuple[str, ...]:
    """Of the data, else of the network; empty where neither knows them."""
    table = named.data.table
    return (() if table is None else table.classes) or named.found.classes


def described(named: Opened, checked: Checked) -> dict[str, Any]:
    """What the report says of the data."""
    made_up = named.data.made_up
    return {
        "name": named.data.name,
        "text": str(named.data),
        "made_up": made_up or None,
        "preprocessing": None if named.data.how is None else named.data.how.to_dict(),
        "pictures": None if named.data.how is None or made_up else str(named.data.how),
        "check": asdict(checked),
        "sheet": contact_sheet(named.data),
    }


def network_key(recipe: Recipe) -> list[Any]:
    """What the network depends on besides its weights: its name, code and files."""
    code, files = networks.identity(recipe.model)
    if recipe.load is not None:
        files = [*files, *(Path(recipe.load) / n for n in ("model.json", "model.safetensors"))]
    return [recipe.model, None if code is None else code_hash(code), [sha256(f) for f in files]]


def data_key(recipe: Recipe) -> list[Any]:
    """What the data depend on besides their first batches: names, code, and the sizes of files, of
    small ones the content.
    """
    if recipe.data is None or not recipe.has_data:
        return [recipe.data]
    code = data_sources.code_of(recipe.data)
    if code is not None:
        return [recipe.data, code_hash(code)]
    return [recipe.data, content_hash([_file(f) for f in data_sources.files_of(recipe.data)])]


def _file(path: Path) -> list[Any]:
    size = path.stat().st_size
    return [str(path), size, sha256(path) if size <= WHOLE and path.suffix == ".csv" else None]


def check(recipe: Recipe) -> Opened:
    """`opened`, with the recipe's path before what is wrong."""
    from mirabelle.base.errors import RecipeError

    try:
        return opened(recipe)
    except InputError as error:
        raise RecipeError(f"{recipe.path}: {error}") from error
