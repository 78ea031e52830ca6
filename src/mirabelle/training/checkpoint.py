"""Checkpoints of a training run: one safetensors file, no pickle, exact to the bit and to the state
of every random generator.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.checks import load_state
from mirabelle.base.errors import CheckpointError, InputError
from mirabelle.base.files import read_tensors, write_tensors


@dataclass
class Best:
    score: float | None = None
    state: dict[str, torch.Tensor] | None = None


@dataclass
class Resumed:
    """Where training stands: `done` optimiser steps, and what a new run would count from zero."""

    done: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    stale: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    generators: dict[str, Any] | None = None

    def restore_generators(self) -> None:
        """Back to the state in which the checkpoint was written, in the middle of an epoch."""
        g = self.generators
        if g is None:
            return
        torch.set_rng_state(g["torch"])
        for device, state in g["cuda"].items():
            torch.cuda.set_rng_state(state, int(device))
        version, words, gauss = g["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = g["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _path(folder: str | Path) -> Path:
    return Path(folder) / "checkpoint.safetensors"


def save_checkpoint(
    folder: str | Path,
    module: nn.Module,
    optim: torch.optim.Optimizer,
    average: nn.Module | None,
    scaler: Any,
    done: int,
    history: list,
    best: Best,
    stale: int,
    totals: dict[str, float],
    run: dict[str, Any],
) -> None:
    tensors = {f"model/{k}": v for k, v in module.state_dict().items()}
    if average is not None:
        tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    if best.state is not None:
        tensors |= {f"best/{k}": v for k, v in best.state.items()}
    numbers: dict[str, dict[str, float]] = {}
    for index, state in optim.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors["generator/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"generator/cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state()
    plain = {
        "done": done,
        "history": history,
        "best": best.score,
        "stale": stale,
        "totals": totals,
        "run": run,
        "scaler": scaler.state_dict(),
        "optimizer": numbers,
        "python": random.getstate(),
        "numpy": [str(name), [int(k) for k in keys], *rest],
    }
    state = json.dumps(plain)
    write_tensors(_path(folder), tensors, {"state": state, "sha256": _digest(tensors, state)})


def _digest(tensors: dict[str, torch.Tensor], state: str) -> str:
    """Of everything in a checkpoint: safetensors has no checksum of its own, and a flipped bit
    would go on into the weights.
    """
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name]
            .detach()
            .cpu()
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )
    return digest.hexdigest()


def load_checkpoint(
    folder: str | Path | None,
    module: nn.Module,
    optim: torch.optim.Optimizer,
    average: nn.Module | None,
    scaler: Any,
    run: dict[str, Any],
) -> Resumed:
    """Restores all of it in place, and says where to go on. Nothing there: a fresh start. A damaged
    or another run's file: `CheckpointError`.
    """
    if folder is None or not _path(folder).exists():
        return Resumed()
    try:
        tensors, metadata = read_tensors(_path(folder))
    except InputError as error:
        raise CheckpointError(f"{error}; remove it to start again") from None
    try:
        if metadata["sha256"] != _digest(tensors, metadata["state"]):
            raise CheckpointError(
                f"{_path(folder)} is damaged: its content is not what was written; remove it to "
                "start again"
            )
        plain = json.loads(metadata["state"])
        if plain["run"] != run:
            raise CheckpointError(
                f"{_path(folder)} belongs to another run ({plain['run']}, not {run}); remove it "
                "or choose another folder"
            )
        parts = _parts(tensors)
        load_state(module, parts["model"])
        if average is not None:
            load_state(average, parts["average"])
        _load_optimizer(optim, plain["optimizer"], parts.get("optimizer", {}))
        if plain["scaler"]:
            scaler.load_state_dict(plain["scaler"])
    except (KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{_path(folder)} does not fit this run ({str(error).splitlines()[0]}); remove it "
            "or choose another folder"
        ) from error
    cuda = {
        k.removeprefix("cuda/"): v for k, v in parts["generator"].items() if k.startswith("cuda/")
    }
    generators = {
        "torch": parts["generator"]["torch"],
        "cuda": cuda,
        "python": plain["python"],
        "numpy": plain["numpy"],
    }
    return Resumed(
        plain["done"],
        plain["history"],
        Best(plain["best"], parts.get("best")),
        plain["stale"],
        plain["totals"],
        generators,
    )


def _parts(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a file by what they belong to, the part of their names before the slash."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts


def _load_optimizer(
    optim: torch.optim.Optimizer, plain: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Restores what the optimiser knows of each parameter: plain numbers, and tensors."""
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain.items()}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optim.load_state_dict({"state": state, "param_groups": optim.state_dict()["param_groups"]})
