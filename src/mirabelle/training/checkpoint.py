"""Checkpoints of a training run: one safetensors file, no pickle, exact to the bit and to the state
of every random generator.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirabelle.base.checks import load_state, tensors_of
from mirabelle.base.errors import CheckpointError, InputError
from mirabelle.base.files import read_tensors, write_tensors
from mirabelle.base.identity import differences
from mirabelle.training.curve import Curve
from mirabelle.training.state import Best, State


def restore_generators(found: dict[str, Any]) -> None:
    """Back to the state in which a checkpoint was written, in the middle of an epoch."""
    torch.set_rng_state(found["torch"])
    for device, state in found["cuda"].items():
        torch.cuda.set_rng_state(state, int(device))
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = found["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _path(folder: str | Path) -> Path:
    return Path(folder) / "checkpoint.safetensors"


def save_checkpoint(folder: str | Path, state: State, run: dict[str, Any]) -> None:
    """Writes where training stands. run: what tells this run from others."""
    tensors = {f"model/{k}": v for k, v in tensors_of(state.step).items()}
    if state.average is not None:
        tensors |= {f"average/{k}": v for k, v in tensors_of(state.average).items()}
    if state.best.state is not None:
        tensors |= {f"best/{k}": v for k, v in state.best.state.items()}
    numbers: dict[str, dict[str, float]] = {}
    for index, known in state.optimizer.state_dict()["state"].items():
        for key, value in known.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors["generator/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"generator/cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state()
    plain = {
        "done": state.done,
        "history": state.history,
        "best": [state.best.score, state.best.done],
        "checks": state.checks,
        "choices": state.choices,
        "curve": asdict(state.curve),
        "stale": state.stale,
        "totals": state.totals,
        "run": run,
        "scaler": state.scaler.state_dict(),
        "optimizer": numbers,
        "python": random.getstate(),
        "numpy": [str(name), [int(k) for k in keys], *rest],
    }
    text = json.dumps(plain)
    write_tensors(_path(folder), tensors, {"state": text, "sha256": _digest(tensors, text)})


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


def saved_choices(folder: str | Path | None) -> dict[str, Any]:
    """What the training in a checkpoint chose by itself; empty where there is none to read:
    whether it is whole, and this run's, is seen when it is loaded.
    """
    if folder is None or not _path(folder).exists():
        return {}
    try:
        return json.loads(read_tensors(_path(folder))[1]["state"])["choices"]
    except (InputError, KeyError, json.JSONDecodeError):
        return {}


def load_checkpoint(
    folder: str | Path | None, state: State, run: dict[str, Any]
) -> dict[str, Any] | None:
    """Restores all of `state` in place, and returns the generators' states. None where there is no
    checkpoint: a fresh start. A damaged or another run's file: `CheckpointError`.
    """
    if folder is None or not _path(folder).exists():
        return None
    path = _path(folder)
    try:
        tensors, metadata = read_tensors(path)
    except InputError as error:
        raise CheckpointError(f"{error}; remove it to start again") from None
    try:
        if metadata["sha256"] != _digest(tensors, metadata["state"]):
            raise CheckpointError(
                f"{path} is damaged: its content is not what was written; remove it to start again"
            )
        plain, parts = json.loads(metadata["state"]), _parts(tensors)
        if different := differences(plain["run"], run):
            raise CheckpointError(
                f"{path} belongs to another run, which differs in {different}; remove it or choose "
                "another folder"
            )
        _restore(state, plain, parts)
    except (KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} does not fit this run ({str(error).splitlines()[0]}); remove it "
            "or choose another folder"
        ) from error
    cuda = {
        k.removeprefix("cuda/"): v for k, v in parts["generator"].items() if k.startswith("cuda/")
    }
    return {
        "torch": parts["generator"]["torch"],
        "cuda": cuda,
        "python": plain["python"],
        "numpy": plain["numpy"],
    }


def _restore(
    state: State, plain: dict[str, Any], parts: dict[str, dict[str, torch.Tensor]]
) -> None:
    load_state(state.step, parts["model"])
    if state.average is not None:
        load_state(state.average, parts["average"])
    _load_optimizer(state.optimizer, plain["optimizer"], parts.get("optimizer", {}))
    if plain["scaler"]:
        state.scaler.load_state_dict(plain["scaler"])
    state.done, state.history, state.stale = plain["done"], plain["history"], plain["stale"]
    state.totals = plain["totals"]
    state.checks, state.choices = plain["checks"], plain["choices"]
    scores = [(s, v) for s, v in plain["curve"]["scores"]]
    state.curve = Curve(**{**plain["curve"], "scores": scores})
    state.best = Best(plain["best"][0], parts.get("best"), plain["best"][1])


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
    """Restores what the optimizer knows of each parameter: plain numbers, and tensors."""
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain.items()}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optim.load_state_dict({"state": state, "param_groups": optim.state_dict()["param_groups"]})
