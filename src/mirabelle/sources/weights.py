"""Weights in files, put into a network: safetensors, or torch's own format without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.files import read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INSIDE = ("state_dict", "model_state_dict", "model", "ema", "net")  # where training keeps them
BEFORE = ("module.", "_orig_mod.", "model.")  # what wrappers put before the names


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name. Only tensors are unpickled: no code of the file runs."""
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.suffix not in SUFFIXES:
        raise InputError(f"weights {path} end in {path.suffix!r}; expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged, and is not unpickled, as that runs "
            "code; where you trust it, load it in Python and write its state_dict() with "
            "safetensors.torch.save_file"
        ) from error
    while isinstance(found, Mapping) and not _are_tensors(found):
        inner = next((found[n] for n in INSIDE if isinstance(found.get(n), Mapping)), None)
        if inner is None:
            raise InputError(
                f"{path} holds {', '.join(map(str, list(found)[:4]))} and no tensors; expected a "
                "state_dict"
            )
        found = inner
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}; expected a state_dict")
    return dict(found)


def _are_tensors(found: Mapping) -> bool:
    return bool(found) and all(isinstance(v, torch.Tensor) for v in found.values())


def fill(model: nn.Module, path: Path, what: str) -> nn.Module:
    """The network with the weights of a file, every one of them. `InputError` names what is missing
    or has another shape.
    """
    tensors = read_weights(path)
    own = model.state_dict()
    if len(set(tensors) & set(own)) < len(own) / 2:
        tensors = _without_wrapper(tensors, own)
    missing = [n for n in own if n not in tensors and not n.endswith("num_batches_tracked")]
    strange = [n for n in tensors if n not in own]
    if missing or strange:
        first = missing[0] if missing else strange[0]
        near = did_you_mean(first, strange if missing else own)
        raise InputError(
            f"{path} does not hold the weights of {what}: {len(missing)} of {len(own)} are "
            f"missing and {len(strange)} are none of its own, such as {first!r}"
            f"{near if near.startswith('; did') else ''}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(tensor.shape)}, and {tuple(own[name].shape)} in {what}; "
                "name the network that was trained, with its number of classes"
            )
    model.load_state_dict({**own, **tensors})
    return model


def _without_wrapper(
    tensors: dict[str, torch.Tensor], own: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    for start in BEFORE:
        cut = {n.removeprefix(start): t for n, t in tensors.items()}
        if len(cut) == len(tensors) and len(set(cut) & set(own)) > len(own) / 2:
            return cut
    return tensors
