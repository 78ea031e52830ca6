"""Cutting and training in turn, and going on where an interruption left off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mirabelle.base.checks import load_state, tensors_of
from mirabelle.base.data import Batch
from mirabelle.base.errors import CheckpointError
from mirabelle.base.files import read_tensors, write_tensors
from mirabelle.base.identity import data_identity, differences, function_identity, network_identity
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.skipping import skip
from mirabelle.channels.surgery import remove

Removed = Mapping[str, torch.Tensor]


class Planned(NamedTuple):
    """One cut: the network, what was found in it once the blocks `skipped` had gone, and the
    channels that were removed of each group.
    """

    network: nn.Module
    coupling: Coupling
    removed: Removed
    skipped: tuple[str, ...] = ()


def in_rounds(
    model: nn.Module,
    inputs: Batch,
    fraction: float,
    count: int,
    cut: Callable[[nn.Module, float], Planned],
    tune: Callable[[nn.Module, Path | None], nn.Module] | None,
    share: Callable[[nn.Module], float],
    keep: Iterable[str],
    checkpoint: str | Path | None,
    settings: Mapping[str, Any],
) -> nn.Module:
    """`model` cut to `fraction` in `count` cuts, each by the same factor, with `tune` after each.

    cut: (network, fraction of it that stays) -> what `plan` gives. share: of the original's budget
    that a network still takes. checkpoint: a folder; what is found there of the same network and
    `settings` is not done again. Raises `CheckpointError` where it holds another run's.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    key = {**settings, **network_identity(model)} if folder else {}
    current = model
    for step in range(1, count + 1):
        files = (
            {part: folder / f"step{step}-{part}.safetensors" for part in ("cut", "trained")}
            if folder
            else {}
        )
        if files and files["cut"].is_file():
            current = _restored(current, inputs, keep, files["cut"], key)
        else:
            asked = min(1.0, fraction ** (step / count) / share(current))
            planned = cut(current, asked)
            current = planned.network
            if files:
                _write(files["cut"], _named(current, planned.removed), key, planned.skipped)
        if tune is None:
            continue
        if files and files["trained"].is_file():
            load_state(current, _read(files["trained"], key)[0])
        else:
            current = tune(current, folder / f"step{step}" if folder else None)
            if files:
                _write(files["trained"], _named(current, {}), key)
    return current


def _named(model: nn.Module, removed: Removed) -> dict[str, torch.Tensor]:
    return {f"model/{n}": t for n, t in tensors_of(model).items()} | {
        f"removed/{g}": torch.as_tensor(c) for g, c in removed.items()
    }


def _write(
    path: Path, tensors: dict[str, torch.Tensor], key: dict[str, Any], skipped: Sequence[str] = ()
) -> None:
    noted = {"key": json.dumps(key, default=str), "skipped": json.dumps(list(skipped))}
    write_tensors(path, tensors, noted)


def _read(path: Path, key: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Removed, list[str]]:
    tensors, metadata = read_tensors(path)
    if different := differences(json.loads(metadata.get("key", "null")), key):
        raise CheckpointError(
            f"{path} belongs to another run, which differs in {different}; give another "
            "checkpoint folder, or remove this one"
        )
    state, removed = (
        {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(kind)}
        for kind in ("model/", "removed/")
    )
    return state, removed, json.loads(metadata.get("skipped", "[]"))


def _restored(
    model: nn.Module, inputs: Batch, keep: Iterable[str], path: Path, key: dict[str, Any]
) -> nn.Module:
    state, removed, skipped = _read(path, key)
    if skipped:
        model = skip(model, inputs, skipped)
    small = remove(model, analyze(model, inputs, keep), removed)
    load_state(small, state)
    return small


def identity_of_training(train: Mapping[str, Any] | Callable | None, seed: int) -> Any:
    """What tells the training of one run from another's, as JSON."""
    if not isinstance(train, Mapping):
        return function_identity(train)
    own = {k: function_identity(v) if callable(v) else v for k, v in train.items()}
    if own.get("validation") is not None:
        own["validation"] = data_identity(own["validation"], seed)
    return own
