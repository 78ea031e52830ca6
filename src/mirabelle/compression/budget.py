"""What the phases of a search take, as the phases before have shown: none begins that is not
expected to end in time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mirabelle.base.checks import clone
from mirabelle.base.data import batches, counted, preserved
from mirabelle.base.errors import InputError
from mirabelle.compression.clock import Clock
from mirabelle.compression.front import Point
from mirabelle.compression.trial import Setting
from mirabelle.measurement.accuracy import as_tensor, predictor

FILES = 3  # that the test data judge at least: the original, the best and another
END = 0.04  # of the time, for what comes after the last trial beside judging
SPARE = 1.15  # so many times what a phase took before
UNKNOWN = 0.3  # of the seconds of the tables, for a trial, as long as none was seen
TIMED = 3.0  # seconds of timing a file, at most
TIMING = 0.01  # of the time
FIXED = 0.3  # of a step's seconds do not become less with fewer multiply-accumulates
QUICK = 1.0  # seconds of a step, up to which it is measured more than once


@dataclass(frozen=True)
class Steps:
    """Seconds of a step of training the original, and of asking the teacher for it."""

    student: float
    teacher: float

    def at(self, macs: float) -> float:
        """macs: the student's, as a share of the original's."""
        return self.teacher + self.student * (FIXED + (1 - FIXED) * macs)


@dataclass(frozen=True)
class Budget:
    """seconds: of the whole. prepared: what the tables took. test: samples of the test data for
    each of the validation data.
    """

    clock: Clock
    seconds: float
    steps: Steps
    prepared: float
    test: float

    def left(self, points: Sequence[Point]) -> float:
        """Seconds until the end must begin."""
        return self.clock.tick() - self.end(points)

    def end(self, points: Sequence[Point]) -> float:
        """What the end takes: timing, the test data, verification and the report."""
        judging = _median([p.took["validate"] for p in points], self.prepared / 10)
        # verification captures and writes the network once more
        writing = _median([p.took["write"] for p in points], self.prepared / 10)
        return END * self.seconds + SPARE * (writing + FILES * judging * self.test)

    def around(self, points: Sequence[Point], cut: bool = True) -> float:
        """What a trial takes beside training."""
        guess = UNKNOWN * self.prepared
        judged = _median([p.took["write"] + p.took["validate"] for p in points], guess)
        cuts = [p.took["cut"] for p in points if p.took.get("cut")]
        # to cut a trained network takes longer than to cut the original: it is scored anew
        return SPARE * (judged + self.timing + (max(cuts, default=guess) if cut else 0.0))

    @property
    def timing(self) -> float:
        """Seconds for timing a file beside the original."""
        return min(TIMED, TIMING * self.seconds)

    def step(self, macs: float, points: Sequence[Point]) -> float:
        """Seconds of a step of training."""
        known = [p for p in points if p.took.get("step")]
        found = [p.took["step"] / self.steps.at(p.costs["macs"]) for p in known[-4:]]
        return self.steps.at(macs) * _median(found, 1.0)


def _median(values: Sequence[float], otherwise: float) -> float:
    return statistics.median(values) if values else otherwise


def measured_steps(setting: Setting) -> Steps:
    """Seconds of a step, from steps on a copy."""
    batch = next(batches(setting.parts.train, 1))
    network, teach = clone(setting.model).train(), predictor(setting.model)
    students, teachers = [], []
    with torch.enable_grad(), preserved(setting.parts.train):
        for _ in range(3):
            start = time.perf_counter()
            as_tensor(network(*batch.args, **batch.kwargs)).square().mean().backward()
            middle = time.perf_counter()
            teach(batch)
            students.append(middle - start)
            teachers.append(time.perf_counter() - middle)
            if students[-1] > QUICK:
                break
    return Steps(min(students), min(teachers))


def share_of_test(setting: Setting) -> float:
    """Samples of the test data for each of the validation data."""
    sizes = []
    for data in (setting.parts.test, setting.parts.validation):
        try:
            with preserved(data):
                first = next(batches(data, 1)).size
                sizes.append(first * counted(data, None))
        except InputError:
            return 1.0
    return sizes[0] / max(1, sizes[1])
