"""One network of a search: planned, cut and repaired, trained, made integers, written for the
runtime, timed there and judged.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch, samples, seed_everything
from mirabelle.base.errors import MirabelleWarning
from mirabelle.channels.groups import analyze
from mirabelle.compression.clock import timing
from mirabelle.compression.front import Point
from mirabelle.compression.further import cut_further, further, same
from mirabelle.compression.limits import Goal
from mirabelle.compression.losses import channel_scores, output_loss
from mirabelle.compression.parts import NAMELESS, Parts, Source
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
from mirabelle.training.loop import Trained

SECONDS = 3.0  # of timing a file and the original in turn, at most
STATISTICS = 256  # samples for scores of channels and for least squares
AS_INTEGERS = 0.25  # the share of a training that is spent on integers, where asked
VIEWS = 4  # epochs with augmentation of their own: what the teacher says of them is kept
CALIBRATED = 128  # samples: thresholds of `auto` take as long as there are samples
SLOWER = 10  # so much less is the rate of training integers
KEPT = 4096  # numbers of one output, up to which the teacher's are kept


@dataclass(frozen=True)
class Setting:
    """What all trials of a study share.

    base: the original's file on the runtime. wanted: its outputs on a few samples of `few`.
    losses: of distillation, by what they are called in the knobs. cache: a folder for what the
    teacher says; None where its outputs are large. source: what the user calls network and data.
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
    cache: Path | None = None
    source: Source = NAMELESS

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


@dataclass(frozen=True)
class Proposal:
    """A network to be tried. share: of the cost that plans are made for. seconds: of training, 0 is
    none. start: the point that it goes on from; None is the original. cut: it is cut; else `start`
    is only trained further. knobs: see `search`, with share. why: this one.
    """

    knobs: Mapping[str, Any]
    seconds: float
    start: Point | None
    cut: bool
    why: str

    @property
    def share(self) -> float:
        return float(self.knobs["share"])


@dataclass
class Trial:
    """A network under way. rate: None is chosen by a short trial. timing: seconds of it, at most.
    steps: of training, with those of its starts; own: its own. took: seconds, by phase.
    """

    setting: Setting
    number: int
    proposal: Proposal
    plan: Plan
    student: nn.Module
    rate: float | None
    timing: float
    loss: float | None = None
    steps: int = 0
    own: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    curve: dict[str, Any] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return self.setting.folder / "trials" / f"{self.number:05d}"

    @property
    def macs(self) -> float:
        """Its share of the original's."""
        return count_macs(self.student, self.setting.inputs) / self.setting.macs

    @classmethod
    def begin(
        cls,
        setting: Setting,
        number: int,
        proposal: Proposal,
        ratio: float,
        rate: float | None,
        timing: float,
    ) -> Trial:
        """The cut network. ratio: of measured cost over predicted, as trials before have shown."""
        began, start = time.monotonic(), proposal.start
        plan, student, further = _cut(setting, proposal, ratio)
        if not further:
            start, proposal = None, replace(proposal, start=None)
        found = cls(setting, number, proposal, plan, student, rate, timing, begun=began)
        if start is not None:
            found.steps, found.history = start.steps, list(start.history)
            found.curve = dict(start.curve)
        if plan.loss > 0 and proposal.cut:
            found.took["cut"] = time.monotonic() - began
        return found

    def train(self, seconds: float, most: int) -> None:
        """For so many seconds, or `most` steps; integers get their part of it where asked."""
        began = time.monotonic()
        part = 1 - AS_INTEGERS if self._as_integers else 1.0
        trained = self._distilled(self.student, part * seconds, max(1, round(part * most)))
        self.student = trained.model
        self.rate = self.rate or float(trained.choices["lr"])
        self.history += [{k: float(v) for k, v in h.items()} for h in trained.history]
        self.curve = joined(self.curve, trained.curve) if self.curve else trained.curve
        self.steps, self.own = self.steps + trained.steps, trained.steps
        self.took["train"] = time.monotonic() - began
        self.took["step"] = trained.seconds / max(1, trained.steps)

    @property
    def _as_integers(self) -> bool:
        return bool(self.proposal.knobs["integers"]) and self.plan.floats is not None

    def _distilled(
        self, student: nn.Module, seconds: float, steps: int, name: str = "", slower: float = 1.0
    ) -> Trained:
        """Trained for the time, or the steps. All trainings read the same data in the same order,
        so that the cache knows what the teacher says of them: to ask it takes longer than to train
        a network that is cut deeply.
        """
        setting = self.setting
        with warnings.catch_warnings():
            # That training gained nothing is what a trial is to find out.
            warnings.simplefilter("ignore", MirabelleWarning)
            return distill(
                student,
                setting.model,
                setting.parts.train,
                losses=setting.losses[self.proposal.knobs["losses"]],
                steps=steps,
                seconds=seconds,
                lr=None if self.rate is None else self.rate / slower,
                seed=setting.seed,
                cache=setting.cache,
                views=VIEWS,
                progress=f"trial {self.number}{name}",
            )

    def network(self) -> nn.Module:
        """In the form that is written: float, or with integers."""
        setting, plan = self.setting, self.plan
        if plan.floats is None:
            return self.student
        data = setting.parts.calibration
        network = quantize(
            self.student, data, keep=plan.floats, runtime=setting.runtime, samples=CALIBRATED
        )
        if not self._as_integers or not self.own:
            return network
        share = AS_INTEGERS / (1 - AS_INTEGERS)
        seconds, steps = share * self.took["train"], max(1, round(share * self.own))
        return self._distilled(network, seconds, steps, ", integers", slower=SLOWER).model

    def measure_loss(self) -> None:
        """What the outputs have lost by the cut and the integers, before training."""
        setting = self.setting
        self.loss = output_loss(self.network(), setting.wanted, setting.few)

    def judged(self) -> Point:
        """Written for the runtime, timed there and judged by validation data."""
        setting, began = self.setting, time.monotonic()
        seed_everything(setting.seed)
        network = self.network()
        inputs = setting.inputs
        artifact = export(
            network, self.folder, runtime=setting.runtime, inputs=inputs.args or inputs
        )
        save(self.student, self.folder / "student")
        save(network, self.folder / "network")
        self.took["write"] = time.monotonic() - began
        latency, milliseconds = self._timed(artifact)
        began = time.monotonic()
        scores = setting.judge.of_file(artifact, f"trial {self.number}, validating")
        self.took["validate"] = time.monotonic() - began
        drop, low, high = setting.judge.drop(scores)
        start, macs = self.proposal.start, count_macs(self.student, inputs)
        return Point(
            trial=self.number,
            steps=self.steps,
            knobs={**self.proposal.knobs, "rate": self.rate},
            plan=self.plan.to_dict(),
            costs={
                "latency": latency,
                "macs": macs / setting.macs,
                "size": artifact.bytes / setting.base.bytes,
            },
            milliseconds=milliseconds,
            bytes=artifact.bytes,
            macs=macs,
            drop=drop,
            interval=(low, high),
            accuracy=scores.value,
            n=scores.n,
            folder=str(self.folder.relative_to(setting.folder)),
            loss=self.loss,
            start="" if start is None else start.folder,
            own=self.own,
            why=self.proposal.why,
            seconds=time.monotonic() - self.begun,
            took=dict(self.took),
            history=list(self.history),
            curve=dict(self.curve),
        )

    def _timed(self, artifact: Artifact) -> tuple[float, float]:
        """Its share of the original's milliseconds, and its own."""
        setting, began = self.setting, time.monotonic()
        files = {"original": setting.base, "trial": artifact}
        with timing():
            times = time_in_turn(files, setting.inputs, min(SECONDS, self.timing))
        self.took["time"] = time.monotonic() - began
        share = 1 / speedup(times["original"], times["trial"]).value
        return share, times["trial"].p50_ms


def _cut(setting: Setting, proposal: Proposal, ratio: float) -> tuple[Plan, nn.Module, bool]:
    """The plan, the network that it makes of the start, and whether it goes on from there: where it
    cannot, the original is cut.
    """
    goal, table, start = setting.goal, setting.table, proposal.start
    limits = {goal.quantity: proposal.share / ratio}
    limits |= {q: v for q, v in goal.costs.items() if q != goal.quantity}
    mixed, data = bool(proposal.knobs["mixed"]), setting.statistics
    if start is not None:
        student = load(setting.folder / start.folder / "student", clone(setting.model))
        before = Plan.of(start.plan)
        if not proposal.cut:
            return before, student, True
        known = None if _is_whole(table, before) else further(table, before, student, data)
        if known is not None:
            plan = known.table.plan(limits, mixed)
            if not same(plan, start.plan):
                student = cut_further(known, plan, data)
            return plan, student, True
    plan = table.plan(limits, mixed)
    if _is_whole(table, plan):
        return plan, clone(setting.model), False
    return plan, _cut_in_rounds(setting, plan, int(proposal.knobs["rounds"])), False


def _is_whole(table: Table, plan: Plan) -> bool:
    """Whether a plan cuts nothing."""
    return not plan.skipped and plan.kept == table.coupling.channels


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
    again = analyze(first, table.coupling.inputs, any_batch=True)
    if again.channels != half:  # another form of the network, whose groups have other names
        return cut(table, plan, data)
    scores = channel_scores(first, again, data)
    return cut(replace(table, model=first, coupling=again, scores=scores), plan, data)


def _between(widths: Any, kept: int, whole: int) -> int:
    """The allowed width that is nearest to the middle of what is kept and the whole."""
    middle = (kept * whole) ** 0.5
    return min((int(w) for w in widths if w >= kept), key=lambda w: abs(w - middle))
