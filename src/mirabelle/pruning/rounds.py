"""Cutting and training in turn, and going on where an interruption left off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import load_state
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.files import content_hash, read_tensors, tensors_hash, write_tensors
from mirabelle.channels.groups import Coupling, analyse
from mirabelle.channels.surgery import remove

Removed = Mapping[str, torch.Tensor]


def in_steps(
    model: nn.Module,
    inputs: Batch,
    fraction: float,
    count: int,
    cut: Callable[[nn.Module, float], tuple[nn.Module, Coupling, Removed]],
    tune: Callable[[nn.Module, Path | None], nn.Module] | None,
    share: Callable[[nn.Module], float],
    keep: Iterable[str],
    checkpoint: str | Path | None,
    settings: Any,
) -> nn.Module:
    """`model` cut to `fraction` in `count` cuts, each by the same factor, with `tune` after each.

    cut: (network, fraction of it that stays) -> what `plan` gives. share: of the original's budget
    that a network still takes. checkpoint: a folder; what is found there of the same network and
    `settings` is not done again. Raises `InputError` where it holds another run's.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    key = content_hash([settings, tensors_hash(model.state_dict())])
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
            current, _, removed = cut(current, asked)
            if files:
                write_tensors(files["cut"], _named(current, removed), {"key": key})
        if tune is None:
            continue
        if files and files["trained"].is_file():
            load_state(current, _read(files["trained"], key)[0])
        else:
            current = tune(current, folder / f"step{step}" if folder else None)
            if files:
                write_tensors(files["trained"], _named(current, {}), {"key": key})
    return current


def _named(model: nn.Module, removed: Removed) -> dict[str, torch.Tensor]:
    return {f"model/{n}": t for n, t in model.state_dict().items()} | {
        f"removed/{g}": torch.as_tensor(c) for g, c in removed.items()
    }


def _read(path: Path, key: str) -> tuple[dict[str, torch.Tensor], Removed]:
    tensors, metadata = read_tensors(path)
    if metadata.get("key") != key:
        raise InputError(
            f"{path} is of another network or of other settings; give another checkpoint "
            "folder, or remove this one"
        )
    state, removed = (
        {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(kind)}
        for kind in ("model/", "removed/")
    )
    return state, removed


def _restored(
    model: nn.Module, inputs: Batch, keep: Iterable[str], path: Path, key: str
) -> nn.Module:
    state, removed = _read(path, key)
    small = remove(model, analyse(model, inputs, keep), removed)
    load_state(small, state)
    return small
