"""Teachers: networks, ONNX files, files of saved outputs; one or an ensemble; frozen, in eval mode,
without a graph.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.checks import check_network, copied, running
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, MirabelleError, did_you_mean
from mirabelle.base.files import sha256
from mirabelle.base.identity import network_identity
from mirabelle.distillation.ensembles import ENSEMBLES, RANDOM
from mirabelle.distillation.outputs import SavedOutputs
from mirabelle.measurement.accuracy import as_tensor
from mirabelle.runtimes import RUNTIMES, load

Member = Callable[[Batch], torch.Tensor]
KINDS = (
    "a torch.nn.Module, the path of an .onnx file, the path of a .safetensors file of saved "
    "outputs, or a list of them"
)


class Teachers:
    """What the student learns from. Not an `nn.Module`, so that no optimizer, checkpoint or wrapper
    takes the teachers for part of the student.

    teachers: see `KINDS`. Networks are frozen views that share their parameters with those given
    wherever these are on `device` already; modes, hooks and buffers are their own, so the networks
    given stay as they are, and one may be the student itself.
    ensemble: a name of `ENSEMBLES`, or `random`. weights: one for each teacher, of any sum; equal
    by default. temperatures: by which each teacher's outputs are divided before they are mixed; 1
    by default.
    """

    def __init__(
        self,
        teachers: nn.Module | str | Path | Sequence[nn.Module | str | Path],
        device: torch.device,
        *,
        ensemble: str = "probabilities",
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        seed: int = 0,
    ):
        if not isinstance(teachers, (nn.Module, str, Path, Sequence)):
            raise InputError(f"teacher is a {type(teachers).__name__}; expected {KINDS}")
        given = (
            list(teachers)
            if isinstance(teachers, Sequence) and not isinstance(teachers, str)
            else [teachers]
        )
        if not given:
            raise InputError("distill needs at least one teacher, got an empty list")
        check_mixture(len(given), ensemble, weights, temperatures)
        self.device, self.ensemble, self.seed = device, ensemble, seed
        self.weights = torch.tensor(
            [float(w) for w in weights or [1.0] * len(given)], dtype=torch.float64
        )
        self.weights /= self.weights.sum()
        self.temperatures = [float(t) for t in temperatures or [1.0] * len(given)]
        self.members: list[Member] = []
        self.networks: list[nn.Module | None] = []
        shared: dict[int, Any] = {}  # a teacher that is given twice is there once
        for i, teacher in enumerate(given):
            network = (
                _frozen(check_network(teacher, f"teacher {i}"), device, shared)
                if isinstance(teacher, nn.Module)
                else None
            )
            self.networks.append(network)
            self.members.append(
                _network(network) if network is not None else _file(teacher, f"teacher {i}", device)
            )
        self.given = given

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the outputs, for caches of them: weights, structure and code of the
        teachers, and how they are mixed.
        """
        members = [
            list(network_identity(n).values())
            if n is not None
            else [Path(str(g)).name, *(sha256(f) for f in teacher_files(Path(str(g))))]
            for n, g in zip(self.networks, self.given)
        ]
        mixture = (
            [self.ensemble, self.weights.tolist(), self.seed if self.ensemble == RANDOM else 0]
            if len(members) > 1
            else []
        )
        return {"members": members, "mixture": mixture, "temperatures": self.temperatures}

    @torch.no_grad()
    def __call__(self, batch: Batch, position: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The teacher's output, or the ensemble's. position: (epoch or view, batch), which with the
        seed decides who answers where `ensemble` is random.
        """
        batch = batch.to(self.device)
        chosen = range(len(self.members))
        if self.ensemble == RANDOM:
            # By the position and not from a running generator: the same in every process, and in a
            # run that was resumed.
            draw = random.Random(f"{self.seed} {position[0]} {position[1]}")
            chosen = draw.choices(chosen, self.weights.tolist())
        with running(batch, "the teacher's batch"):
            outputs = [
                self.members[i](batch) / self.temperatures[i]
                if self.temperatures[i] != 1
                else self.members[i](batch)
                for i in chosen
            ]
        for i, output in zip(chosen, outputs):
            if not bool(torch.isfinite(output).all()):
                bad = int((~torch.isfinite(output)).sum())
                raise MirabelleError(
                    f"{bad} of {output.numel()} outputs of teacher {i} are NaN or infinite in "
                    f"batch {position[1]}; check its weights and its inputs"
                )
        if len(outputs) == 1:
            return outputs[0]
        shapes = {tuple(o.shape) for o in outputs}
        if len(shapes) > 1:
            raise InputError(
                "the teachers give outputs of different shapes: "
                f"{', '.join(map(str, sorted(shapes)))}; an ensemble needs the same classes"
            )
        return ENSEMBLES[self.ensemble](outputs, self.weights)


def check_mixture(
    count: int, ensemble: str, weights: Sequence[float] | None, temperatures: Sequence[float] | None
) -> None:
    """`InputError` for mixtures that do not exist, and lists that do not fit the number of
    teachers; needs no network.
    """
    if ensemble not in ENSEMBLES and ensemble != RANDOM:
        raise InputError(
            f"ensemble is {ensemble!r}{did_you_mean(str(ensemble), [*ENSEMBLES, RANDOM])}"
        )
    for name, values, low in (
        ("weights", weights, -math.inf),
        ("teacher_temperatures", temperatures, 0),
    ):
        if values is None:
            continue
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            raise InputError(
                f"{name} is {values!r}; expected a list of {count} numbers, one for each teacher"
            )
        if any(
            isinstance(v, bool)
            or not isinstance(v, (int, float))
            or not low < v < math.inf
            or math.isnan(v)
            for v in values
        ):
            raise InputError(f"{name} is {values!r}; expected positive numbers")
    if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
        raise InputError(
            f"weights is {list(weights)!r}; expected numbers of at least 0, one of them positive"
        )


def _frozen(model: nn.Module, device: torch.device, shared: dict[int, Any]) -> nn.Module:
    """Modules of its own around the same parameters: a large teacher is in memory once. Buffers are
    copied, as a forward pass may write to them.
    """
    for p in model.parameters():
        if id(p) not in shared:
            shared[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    return copied(model, shared).to(device).eval()


def _network(network: nn.Module) -> Member:
    return lambda batch: as_tensor(batch.run(network))


def teacher_files(path: Path) -> list[Path]:
    """All files of a teacher that is a file: an ONNX file may keep its weights in others."""
    return RUNTIMES["onnxruntime"].files(path) if path.suffix == ".onnx" else [path]


def _file(teacher: Any, argument: str, device: torch.device) -> Member:
    if not isinstance(teacher, (str, Path)):
        raise InputError(f"{argument} is a {type(teacher).__name__}; expected {KINDS}")
    path = Path(teacher)
    if path.suffix == ".safetensors":
        return SavedOutputs(path, device)
    if path.suffix != ".onnx":
        raise InputError(f"{argument} is {str(teacher)!r}; expected {KINDS}")
    return _onnx(path, device)


def _onnx(path: Path, device: torch.device) -> Member:
    """An ONNX file on ONNX Runtime with as many threads as torch has. A file with a fixed batch
    size gets batches of that size, the last one filled up.
    """
    artifact = load(path, "onnxruntime", torch.get_num_threads())
    sizes = {s.shape[0] for s in artifact.inputs if s.shape}
    fixed = next(iter(sizes)) if len(sizes) == 1 else None

    def answer(batch: Batch) -> torch.Tensor:
        batch = batch.map(lambda t: t.detach().cpu())
        if fixed is None or fixed == batch.size:
            return as_tensor(_first(artifact.predict(batch))).to(device)
        parts = []
        for start in range(0, batch.size, fixed):
            places = torch.arange(start, start + fixed).clamp_max(batch.size - 1)
            parts.append(_first(artifact.predict(batch.map(lambda t, places=places: t[places]))))
        return as_tensor(np.concatenate(parts)[: batch.size]).to(device)

    return answer


def _first(outputs: Any) -> np.ndarray:
    return outputs[0] if isinstance(outputs, tuple) else outputs
