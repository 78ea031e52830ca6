"""Networks of packages: `timm:NAME`, `torchvision:NAME`, `hf:ORG/NAME`.

A hub is asked only where a name is given without a file of weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mirabelle.base.errors import InputError, MissingRuntimeError, did_you_mean
from mirabelle.base.files import read_json
from mirabelle.base.progress import say
from mirabelle.runtimes.artifact import require
from mirabelle.sources import preprocessing, weights
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.torchvision import torchvision

UNTRAINED = "none"  # in the place of a file of weights


class Built(NamedTuple):
    """A network, and what its package says of it."""

    model: nn.Module
    how: Preprocessing | None
    classes: tuple[str, ...] = ()
    inputs: Mapping[str, torch.Tensor] | None = None


def _fetched(build: Callable[[], nn.Module], what: str) -> nn.Module:
    """A network whose weights come from a hub."""
    say(f"{what}: its weights come from a hub, unless they are in its cache")
    try:
        return build()
    except Exception as error:  # of half a dozen libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{what}: the weights could not be had ({type(error).__name__}: {first[:200]}); give "
            f"them as --weights FILE.safetensors (in Python and recipes {what}@FILE.safetensors), "
            f"or --weights {UNTRAINED} for an untrained network"
        ) from error


def _filled(
    build: Callable[..., nn.Module], file: str, what: str, classes: Callable[[int], Any]
) -> nn.Module:
    """A network with the weights of a file, and with as many classes as these have."""
    if file == UNTRAINED:
        return build()
    path = Path(file)
    tensors, model = weights.read_weights(path), build()
    own = model.state_dict()
    other = {
        tensors[n].shape[0]
        for n in own
        if n in tensors
        and tensors[n].shape != own[n].shape
        and tensors[n].shape[1:] == own[n].shape[1:]
    }
    if len(other) == 1:
        with contextlib.suppress(Exception):  # networks without such an option say what differs
            model = build(**classes(other.pop()))
    return weights.fill(model, path, what)


def timm(name: str, file: str | None) -> Built:
    """A network of timm, by the name in `timm.list_models()`, with or without a tag of weights."""
    if importlib.util.find_spec("timm") is not None:
        torchvision()  # which timm imports
    package = require("timm", "timm")
    base, known = name.partition(".")[0], package.list_models()
    if base not in known:
        raise InputError(f"timm has no network {name!r}{did_you_mean(base, known)}")
    what = f"timm:{name}"
    if file is None:
        model = _fetched(lambda: package.create_model(name, pretrained=True), what)
    else:
        model = _filled(
            lambda **more: package.create_model(name, pretrained=False, **more),
            file,
            what,
            lambda n: {"num_classes": n},
        )
    return Built(model.eval(), preprocessing.from_timm(model.pretrained_cfg))  # pyright: ignore


def of_torchvision(name: str, file: str | None) -> Built:
    """A network of torchvision, by the name in `torchvision.models.list_models()`."""
    torchvision()
    models = require("torchvision.models", "torchvision")
    known = models.list_models()
    if name not in known:
        raise InputError(f"torchvision has no network {name!r}{did_you_mean(name, known)}")
    what = f"torchvision:{name}"
    try:
        trained = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        trained = None

    def build(**more: Any) -> nn.Module:
        if trained is not None and "num_classes" not in more:
            more["num_classes"] = len(trained.meta.get("categories", ())) or None
        more = {k: v for k, v in more.items() if v is not None}
        plain = {"weights": None, **more}
        if "segmentation" in str(getattr(models.get_model_builder(name), "__module__", "")):
            plain["weights_backbone"] = None
            plain["aux_loss"] = True
        if name in ("googlenet", "inception_v3"):
            plain |= {"init_weights": False, "aux_logits": True}
        return models.get_model(name, **plain)

    if file is not None:
        model = _filled(build, file, what, lambda n: {"num_classes": n})
    elif trained is None:
        raise InputError(f"{what} has no weights; give --weights FILE, or --weights {UNTRAINED}")
    else:
        model = _fetched(lambda: _from_hub(build(), trained), what)
    how = None if trained is None else preprocessing.from_torchvision(trained.transforms())
    names = () if trained is None else tuple(trained.meta.get("categories", ()))
    return Built(model.eval(), how, names)


def _from_hub(model: nn.Module, trained: Any) -> nn.Module:
    tensors = trained.get_state_dict(progress=False, check_hash=True, weights_only=True)
    model.load_state_dict(tensors)
    return model


def hugging_face(name: str, file: str | None) -> Built:
    """A network of Hugging Face's hub, ORG/NAME, or of a file of weights with `config.json` beside
    it. No code of the hub's is run (`trust_remote_code`), and no pickle read.
    """
    with contextlib.suppress(MissingRuntimeError):  # it imports that, where it is installed
        torchvision()
    package = require("transformers", "transformers")
    what = f"hf:{name}"
    if file is None:
        if name.count("/") != 1 or not all(name.split("/")):
            raise InputError(f"{what}: expected ORG/NAME, such as hf:microsoft/resnet-18")
        config = _fetched(lambda: package.AutoConfig.from_pretrained(name), what)
        kind = _class_of(package, config, what)
        model = _fetched(lambda: kind.from_pretrained(name, use_safetensors=True), what)
        return _of_transformers(model, _processor(package, name))
    folder = Path(file).parent if file != UNTRAINED else Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{what}: there is no config.json in {folder}; it belongs beside the weights"
        )
    config = package.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    model = _class_of(package, config, what)._from_config(config)
    if file != UNTRAINED:
        weights.fill(model, Path(file), what)
    described = folder / "preprocessor_config.json"
    return _of_transformers(model, read_json(described) if described.is_file() else {})


def _class_of(package: Any, config: Any, what: str) -> Any:
    named = (getattr(config, "architectures", None) or [None])[0]
    found = getattr(package, named, None) if named else None
    if found is None:
        raise InputError(
            f"{what}: transformers has no class {named!r}, which config.json names; it may need "
            "another version, or code of its own, which is not run"
        )
    return found


def _processor(package: Any, name: str) -> Mapping[str, Any]:
    try:
        return package.AutoImageProcessor.from_pretrained(name).to_dict()
    except Exception:  # there is none, or it is none of images
        return {}


def _of_transformers(model: Any, config: Mapping[str, Any]) -> Built:
    how = preprocessing.from_processor(config) if config else None
    labels = getattr(model.config, "id2label", None) or {}
    names = tuple(str(labels[i]) for i in sorted(labels)) if how is not None else ()
    inputs = None
    if how is None:
        with contextlib.suppress(Exception):
            made = model.dummy_inputs
            inputs = {k: v for k, v in made.items() if isinstance(v, torch.Tensor)}
    return Built(model.eval(), how, names, inputs)
