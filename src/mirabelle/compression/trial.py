"""One network of a search: planned, cut and repaired, trained in stages, made integers, written for
the runtime, timed there and judged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch, samples, seed_everything
from mirabelle.channels.groups import analyze
from mirabelle.compression.clock import timing
from mirabelle.compression.front import Point
from mirabelle.compression.limits import Goal
from mirabelle.compression.losses import channel_scores, output_loss
from mirabelle.compression.parts import Parts
from mirabelle.compression.plan import Plan, Table, cut
from mirabelle.distillation.api import run as distill
from mirabelle.exporter import export
from mirabelle.graph.artifacts import time_in_turn
from mirabelle.measurement.judge import Judge
from mirabelle.measurement.latency import speedup
from mirabelle.measurement.macs import count_macs
from mirabelle.quantization.api import quantize
from mirabelle.runtimes import Artifact
from mirabelle.store import load, save
from mirabelle.training.curve import joined

SECONDS = 3.0  # of timing a file and the original in turn
STATISTICS = 256  # samples for scores of channels and for least squares
AS_INTEGERS = 0.25  # the share of a stage's steps that are trained as integers, where asked


@dataclass(frozen=True)
class Setting:
    """What all trials of a study share.

    base: the original's file on the runtime. wanted: its outputs on a few samples of `few`.
    losses: of distillation, by what they are called in the knobs.
    """

    model: nn.Module
    parts: Parts
    judge: Judge
    table: Table
    goal: Goal
    runtime: str
    folder: Path
    seed: int
    base: Artifact
    few: list[Batch]
    wanted: list[torch.Tensor]
    losses: Mapping[str, Mapping[str, float] | None]

    @property
    def inputs(self) -> Batch:
        return self.parts.example

    @cached_property
    def macs(self) -> int:
        """The original's."""
        return max(1, count_macs(self.model, self.inputs))

    @property
    def statistics(self) -> list[Batch]:
        return list(samples(self.parts.calibration, STATISTICS))


@dataclass
class Trial:
    """A network under way. steps: of training so far."""

    setting: Setting
    number: int
    knobs: dict[str, Any]
    plan: Plan
    student: nn.Module
    steps: int = 0
    stage: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    milliseconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    curve: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.setting.folder / "trials" / f"{self.number:04d}"

    @classmethod
    def begun(
        cls, setting: Setting, number: int, knobs: Mapping[str, Any], ratio: float = 1.0
    ) -> Trial:
        """Planned, cut and repaired. ratio: measured over predicted cost, as seen before."""
        started = time.monotonic()
        goal, table = setting.goal, setting.table
        limits = {goal.quantity: float(knobs["share"]) / ratio}
        limits |= {q: v for q, v in goal.costs.items() if q != goal.quantity}
        plan = table.plan(limits, bool(knobs["mixed"]))
        student = _cut_in_rounds(setting, plan, int(knobs["rounds"]))
        found = cls(setting, number, dict(knobs), plan, student)
        found.seconds = time.monotonic() - started
        return found

    def train(self, steps: int, rate: float) -> None:
        """So many steps further, at this learning rate."""
        setting, started = self.setting, time.monotonic()
        trained = distill(
            self.student,
            setting.model,
            setting.parts.train,
            losses=setting.losses[self.knobs["losses"]],
            steps=steps,
            lr=rate,
            seed=setting.seed + 1000 * self.number + self.stage,
            progress=f"trial {self.number}",
        )
        self.student = trained.model
        self.history += [{k: float(v) for k, v in h.items()} for h in trained.history]
        self.curve = joined(self.curve, trained.curve) if self.curve else trained.curve
        self.steps, self.stage = self.steps + steps, self.stage + 1
        self.seconds += time.monotonic() - started

    def network(self, steps: int = 0) -> nn.Module:
        """In the form that is written: float, or with integers. steps: of the training before, a
        part of which is spent on the integers.
        """
        setting, plan = self.setting, self.plan
        if plan.floats is None:
            return self.student
        data = setting.parts.calibration
        network = quantize(self.student, data, keep=plan.floats, runtime=setting.runtime)
        count = round(AS_INTEGERS * steps)
        if not self.knobs["integers"] or count < 1:
            return network
        return distill(
            network,
            setting.model,
            setting.parts.train,
            losses=setting.losses[self.knobs["losses"]],
            steps=count,
            lr=float(self.knobs["rate"]) / 10,
            seed=setting.seed + 1000 * self.number + 500 + self.stage,
            progress=f"trial {self.number}, integers",
        ).model

    def judged(self, steps: int = 0) -> Point:
        """Written for the runtime, timed there if it was not, and judged by validation data."""
        setting, started = self.setting, time.monotonic()
        seed_everything(setting.seed)
        network = self.network(steps)
        folder = self.folder / f"stage{self.stage}"
        inputs = setting.inputs
        artifact = export(network, folder, runtime=setting.runtime, inputs=inputs.args or inputs)
        if not self.costs:
            self._measure(artifact)
        scores = setting.judge.of_file(artifact, f"trial {self.number}, validating")
        drop, low, high = setting.judge.drop(scores)
        save(self.student, folder / "student")
        save(network, folder / "network")
        loss = output_loss(network, setting.wanted, setting.few) if self.stage == 0 else None
        self.seconds += time.monotonic() - started
        return Point(
            trial=self.number,
            stage=self.stage,
            steps=self.steps,
            knobs=dict(self.knobs),
            plan=self.plan.to_dict(),
            costs={**self.costs, "size": artifact.bytes / setting.base.bytes},
            milliseconds=self.milliseconds,
            bytes=artifact.bytes,
            macs=round(self.costs["macs"] * setting.macs),
            drop=drop,
            interval=(low, high),
            accuracy=scores.value,
            n=scores.n,
            folder=str(folder.relative_to(setting.folder)),
            loss=loss,
            seconds=self.seconds,
            history=list(self.history),
            curve=dict(self.curve),
        )

    def _measure(self, artifact: Artifact) -> None:
        """What no training changes: its share of the original's time, and of its work."""
        setting = self.setting
        files = {"original": setting.base, "trial": artifact}
        with timing():
            times = time_in_turn(files, setting.inputs, SECONDS)
        share = 1 / speedup(times["original"], times["trial"]).value
        self.milliseconds = times["trial"].p50_ms
        macs = count_macs(self.student, setting.inputs) / setting.macs
        self.costs = {"latency": share, "macs": macs}


def _cut_in_rounds(setting: Setting, plan: Plan, rounds: int) -> nn.Module:
    """The plan's cut; in two rounds half of what goes does so first, and the channels that are left
    are scored anew.
    """
    table, data = setting.table, setting.statistics
    whole = table.coupling.channels
    half = {n: _between(table.widths[n], k, whole[n]) for n, k in plan.kept.items()}
    if rounds == 1 or half == plan.kept or half == whole:
        return cut(table, plan, data)
    first = cut(table, replace(plan, kept=half), data)
    again = analyze(first, table.coupling.inputs)
    if again.channels != half:  # another form of the network, whose groups have other names
        return cut(table, plan, data)
    scores = channel_scores(first, again, data)
    return cut(replace(table, model=first, coupling=again, scores=scores), plan, data)


def _between(widths: Any, kept: int, whole: int) -> int:
    """The allowed width that is nearest to the middle of what is kept and the whole."""
    middle = (kept * whole) ** 0.5
    return min((int(w) for w in widths if w >= kept), key=lambda w: abs(w - middle))


def restored(setting: Setting, point: Point) -> Trial:
    """A trial as it was at a point, to be trained further."""
    student = load(setting.folder / point.folder / "student", clone(setting.model))
    return Trial(
        setting,
        point.trial,
        dict(point.knobs),
        Plan.of(point.plan),
        student,
        point.steps,
        point.stage,
        {q: point.costs[q] for q in ("latency", "macs")},
        point.milliseconds,
        point.seconds,
        list(point.history),
        dict(point.curve),
    )
