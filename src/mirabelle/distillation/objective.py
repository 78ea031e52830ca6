"""What is minimized: the losses between student and teacher, weighed and summed, as an objective of
the training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.identity import function_identity, network_identity
from mirabelle.base.names import resolve
from mirabelle.distillation.features import FEATURE_LOSSES, FEATURES_ACROSS_SAMPLES, Hints, Taps
from mirabelle.distillation.losses import (
    ACROSS_SAMPLES,
    ANY_WIDTH,
    LOSSES,
    PROJECTED,
    TAKES_TARGET,
    kd,
)
from mirabelle.distillation.teachers import Teachers
from mirabelle.fitting.gradients import StepLoss, check_loss, evaluated
from mirabelle.measurement.accuracy import as_tensor
from mirabelle.training.distributed import gather

HEAD = ("head", "head_labels")
OTHERS = (*FEATURE_LOSSES, *HEAD, "labels")  # losses that are not functions of the outputs alone
Teach = Callable[[Batch, tuple[int, int]], torch.Tensor]


class Extra(nn.Module):
    """What is trained along with the student and thrown away: projections of layers and of the
    output.
    """

    def __init__(self, hints: Hints | None, widths: Mapping[str, tuple[int, int]]):
        super().__init__()
        self.hints = hints
        self.outputs = nn.ModuleDict(
            {name: nn.Linear(a, b, bias=False) for name, (a, b) in widths.items()}
        )

    @property
    def used(self) -> bool:
        """Whether there is anything in it."""
        return self.hints is not None or any(True for _ in self.parameters())

    def project(self, name: str, output: torch.Tensor) -> torch.Tensor:
        return self.outputs[name](output.float().flatten(1)) if name in self.outputs else output


class Distillation:
    """The objective of a distillation. Built on the first batch, so that all that cannot work
    raises `InputError` before training.

    weights: of the losses, by name. teach: the teachers, or a cache of theirs; called with the
    batch and `position()`. head: a frozen classifier of embeddings. step: the loss behind `labels`,
    of network and batch, in place of `hard`.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        first: Batch,
        weights: Mapping[str, float],
        temperature: float,
        features: Mapping[str, str] | None,
        hard: Callable | None,
        head: nn.Module | None,
        step: StepLoss | None = None,
    ):
        self.step = step
        self.weights = {n: w for n, w in weights.items() if w}
        self.temperature, self.hard, self.features = temperature, hard, dict(features or {})
        self.functions = {n: resolve(n, LOSSES, "loss") for n in self.weights if n not in OTHERS}
        self.head = (
            clone(head).to(teachers.device).eval().requires_grad_(False)
            if head is not None
            else None
        )
        self.teachers = teachers
        self._scored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.teach: Teach = teachers
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.needs_teacher = bool(set(self.weights) - {"labels", "head_labels"})
        self.theirs: Taps | None = None
        few = first.map(lambda t: t[:2].to(teachers.device))
        hints = self._hints(student, teachers, first.to(teachers.device)) if self.features else None
        self.extra = Extra(hints, self._check_outputs(student, teachers, few))
        self.extra.to(teachers.device)
        self._check_values(student, teachers, few, first)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this lesson from others, for checkpoints, as JSON."""
        return {
            "losses": {n: [w, self._source(n)] for n, w in self.weights.items()},
            "temperature": self.temperature,
            "features": self.features,
            "label loss": function_identity(self.step.step if self.step else self.hard),
            "head": None if self.head is None else network_identity(self.head),
            "teacher": self.teachers.identity,
        }

    def _source(self, name: str) -> Any:
        return None if name in LOSSES else function_identity(self.functions.get(name))

    def close(self) -> None:
        if self.theirs is not None:
            self.theirs.close()

    def _hints(self, student: nn.Module, teachers: Teachers, first: Batch) -> Hints:
        """Opens the teacher's taps, which stay for the training; makes the projections."""
        if len(teachers.networks) > 1:
            raise InputError(
                "features needs a single teacher; of an ensemble it is not clear which layer is "
                "meant"
            )
        if (network := teachers.networks[0]) is None:
            raise InputError(
                "features needs a teacher that is a network; a file has no layers to read"
            )
        mine = Taps(student, list(self.features), "student")
        try:
            check_runs(student, first, "the first training batch")
            mine.check()
        finally:
            mine.close()
        self.theirs = Taps(network, list(self.features.values()), "teacher")
        try:
            teachers(first)
            self.theirs.check()
            return Hints(
                self.features,
                mine.seen,
                self.theirs.seen,
                [n for n in FEATURE_LOSSES if n in self.weights],
            )
        except BaseException:
            self.theirs.close()
            raise

    def _check_outputs(
        self, student: nn.Module, teachers: Teachers, few: Batch
    ) -> dict[str, tuple[int, int]]:
        """The widths of the projections of the output: (student's, teacher's) by loss."""
        output = as_tensor(check_runs(student, few, "the first training batch"))
        if not self.needs_teacher and self.head is None:
            return {}
        taught = teachers(few) if self.needs_teacher else output
        shapes = f"the student gives {tuple(output.shape)} and the teacher {tuple(taught.shape)}"
        if output.shape[:1] != taught.shape[:1]:
            raise InputError(f"{shapes}; both must have one row for each sample")
        widths: dict[str, tuple[int, int]] = {}
        for name in self.functions:
            if output.shape == taught.shape or name in ANY_WIDTH:
                continue
            if name not in PROJECTED or output.ndim != 2 or taught.ndim != 2:
                raise InputError(f"{shapes}; their outputs must have the same shape for {name!r}")
            widths[name] = (output.shape[1], taught.shape[1])
        if self.head is not None:
            wanted = self._head_width()
            if output.ndim != 2:
                raise InputError(
                    f"head reads embeddings (N, D), and the student gives {tuple(output.shape)}"
                )
            if output.shape[1] != wanted:
                widths["head"] = (output.shape[1], wanted)
            if self.needs_teacher and "head" in self.weights:
                if taught.ndim != 2:
                    raise InputError(
                        f"head reads embeddings (N, D), and the teacher gives {tuple(taught.shape)}"
                    )
                scores = self.head(torch.zeros(len(output), wanted, device=output.device))
                if taught.shape[1] not in (wanted, scores.shape[1]):
                    raise InputError(
                        f"the teacher gives {tuple(taught.shape)}; the loss 'head' needs its "
                        f"embeddings, of width {wanted}, or its scores, of width "
                        f"{scores.shape[1]}"
                    )
        return widths

    def _head_width(self) -> int:
        """The width of the embeddings that the head reads: that of its first matrix."""
        assert self.head is not None
        matrix = next((p for p in self.head.parameters() if p.ndim == 2), None)
        if matrix is None:
            raise InputError(
                "head has no matrix (C, D), so it is no classifier of embeddings; give for "
                "example the teacher's last linear layer"
            )
        return matrix.shape[1]

    def _check_values(
        self, student: nn.Module, teachers: Teachers, few: Batch, first: Batch
    ) -> None:
        """Every loss once: what it gives must be a scalar, and a loss that cannot take the outputs
        says so now.
        """
        output = as_tensor(check_runs(student, few, "the first training batch"))
        taught = teachers(few) if self.needs_teacher else output
        target = (
            first.target[:2].to(output.device) if isinstance(first.target, torch.Tensor) else None
        )
        with torch.no_grad():
            for name in self.functions:
                try:
                    value = self._loss(name, output, taught, target)
                except InputError:
                    raise
                except Exception as error:
                    raise InputError(
                        f"loss {name!r} does not take outputs {tuple(output.shape)} and "
                        f"{tuple(taught.shape)}: {type(error).__name__}: {error}"
                    ) from error
                if value.shape != ():
                    raise InputError(
                        f"loss {name!r} gave a tensor of shape {tuple(value.shape)}; expected a "
                        "scalar"
                    )

    def _loss(
        self, name: str, output: torch.Tensor, taught: torch.Tensor, target: torch.Tensor | None
    ) -> torch.Tensor:
        function = self.functions[name]
        output = self.extra.project(name, output)
        if name in ACROSS_SAMPLES:
            output, taught = gather(output), gather(taught)
        return (
            function(output, taught, self.temperature, target=target)
            if name in TAKES_TARGET
            else function(output, taught, self.temperature)
        )

    def _through_head(self, embedding: torch.Tensor) -> torch.Tensor:
        assert self.head is not None
        return as_tensor(self.head(embedding.float()))

    def _against_head(self, scores: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """`kd` of what the teacher's frozen classifier makes of both embeddings. SimKD, Chen et al.
        2022, reuses the classifier in the same way.
        """
        if taught.shape != scores.shape:
            with torch.no_grad():
                taught = self._through_head(taught)
        return kd(scores, taught, self.temperature)

    def _taught(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """What the teacher says. Where a network is only scored, batches come back as the same
        tensors: then the same teacher of an ensemble answers, and only once.
        """
        if network.training:
            return self.teach(batch, self.position())
        if self.features:
            return self.teach(batch, (0, 0))
        key = id(batch.tensors[0])
        if key not in self._scored:
            self._scored[key] = batch.tensors[0], self.teach(batch, (0, 0))
        return self._scored[key][1]

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        taught = self._taught(network, batch) if self.needs_teacher else None
        taps = Taps(network, list(self.features), "student") if self.features else None
        try:
            output = as_tensor(batch.run(network))
        finally:
            if taps is not None:
                taps.close()
        own = self._own(network, batch) if self.step and "labels" in self.weights else None
        # Sums over classes and samples are not for half precision, in which the networks may run.
        with torch.autocast(output.device.type, enabled=False):
            return self._parts(output, taught, batch, taps, own)

    def _own(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss that the network computes itself, which may need training mode."""
        assert self.step is not None
        if network.training:
            return self.step(network, batch)
        with evaluated(network, self.step):
            return self.step(network, batch)

    def of(self, output: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The parts for what a student gave of a batch somewhere else, in a training that is not
        ours. Losses of layers need `__call__`.
        """
        taught = self.teach(batch, self.position()) if self.needs_teacher else None
        given = as_tensor(output)
        with torch.autocast(given.device.type, enabled=False):
            return self._parts(given, taught, batch, None)

    def _parts(
        self,
        output: torch.Tensor,
        taught: torch.Tensor | None,
        batch: Batch,
        taps: Taps | None,
        own: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        parts: dict[str, torch.Tensor] = {}
        target = batch.target if isinstance(batch.target, torch.Tensor) else None
        if taught is not None:
            parts = {n: self._loss(n, output, taught, target) for n in self.functions}
        if self.extra.hints is not None and taps is not None and self.theirs is not None:
            mine, theirs = taps.seen, self.theirs.seen
            if FEATURES_ACROSS_SAMPLES & set(self.weights):
                mine, theirs = ({k: gather(v) for k, v in seen.items()} for seen in (mine, theirs))
            parts |= self.extra.hints(mine, theirs)
        if self.head is not None and set(HEAD) & set(self.weights):
            scores = self._through_head(self.extra.project("head", output))
            if "head" in self.weights and taught is not None:
                parts["head"] = self._against_head(scores, taught)
            if "head_labels" in self.weights and self.hard is not None:
                parts["head_labels"] = check_loss(self.hard(scores, batch.target))
        if own is not None:
            parts["labels"] = own.float()
        elif "labels" in self.weights and self.hard is not None:
            parts["labels"] = check_loss(self.hard(output, batch.target))
        parts = {n: self.weights[n] * v for n, v in parts.items()}
        if not set(parts) - set(FEATURE_LOSSES):
            # Layers after the compared ones get gradients of zero: DistributedDataParallel waits
            # for every parameter's.
            name = next(iter(parts))
            parts[name] = parts[name] + output.float().flatten()[:0].sum()
        return parts
