"""What `verify` found, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from mirabelle.base.terminal import drawn, plain, width
from mirabelle.measurement.accuracy import Score


@dataclass
class Comparison:
    """Integers against integers, over all samples. off_by: the largest difference in steps. exact:
    the share of equal integers.

    sqnr_db: the first one's signal to the difference, in decibels; None where they are equal.
    """

    off_by: int = 0
    count: int = field(default=0, repr=False)
    equal: int = field(default=0, repr=False)
    signal: float = field(default=0.0, repr=False)
    noise: float = field(default=0.0, repr=False)

    def add(self, one: np.ndarray, other: np.ndarray, zero_point: float = 0) -> None:
        off = np.abs(one - other)
        self.off_by = max(self.off_by, int(off.max(initial=0)))
        self.count += off.size
        self.equal += int((off == 0).sum())
        self.signal += float(np.square(one - np.float64(zero_point)).sum())
        self.noise += float(np.square(off, dtype=np.float64).sum())

    @property
    def exact(self) -> float:
        return self.equal / self.count if self.count else 1.0

    @property
    def sqnr_db(self) -> float | None:
        return (
            None
            if self.noise == 0 or self.signal == 0
            else 10 * float(np.log10(self.signal / self.noise))
        )


@dataclass(frozen=True)
class LayerCheck:
    """One quantized layer in all of its four forms.

    max_off_by, exact, sqnr_db: the runtime against the integer reference: the largest difference in
    integer steps, the share of equal integers, signal to difference in decibels (None where they
    are equal). simulation_off_by, simulation_exact: the reference against the simulation.
    float_sqnr_db: the simulation against the same network without rounding. cause, note: what
    explains a difference of the runtime, and the evidence.
    """

    layer: str
    max_off_by: int
    exact: float
    sqnr_db: float | None
    note: str = ""
    cause: str = ""
    simulation_off_by: int = 0
    simulation_exact: float = 1.0
    float_sqnr_db: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    agreement: the share of samples to which runtime and reference give the same class; ties: how
    many of the others have two best logits within one step, which is the largest logit's share of
    127. sqnr_db: of the runtime's output against the reference's; simulation_sqnr_db: of the
    simulation's. float_sqnr_db and
    float_agreement: of the runtime against the network in float. float_operators: what the
    reference ran in float for want of an integer form.
    shipped: where the outputs of the file as it is differ from those of the copy that shows all
    layers, the first layer that does, and why.
    note: where the layers' values come from, if not from the file itself, and which layers are not
    in it.
    saturated: the layers, in order of execution, that lost something because this processor's
    kernels clip pairs of products at 16 bits, and the share of their sums that did. The reference
    clips them, too.
    """

    runtime: str
    samples: int
    layers: list[LayerCheck]
    agreement: Score
    ties: int
    sqnr_db: float | None
    simulation_sqnr_db: float | None
    float_sqnr_db: float | None
    float_agreement: Score
    simulation_agreement: Score
    float_operators: list[str]
    shipped: dict[str, str] | None = None
    note: str = ""
    saturated: dict[str, float] = field(default_factory=dict)

    @property
    def first_departure(self) -> LayerCheck | None:
        """The first layer off by more than one step, in order of execution: earlier ones differ by
        rounding alone.
        """
        return next((c for c in self.layers if c.max_off_by > 1), None)

    @property
    def first_difference(self) -> LayerCheck | None:
        """The first layer where any integer differs."""
        return next((c for c in self.layers if c.max_off_by > 0), None)

    def to_dict(self) -> dict[str, Any]:
        first = self.first_departure
        return {
            **asdict(self),
            "first_departure": None if first is None else {"layer": first.layer, "why": first.note},
        }

    def __str__(self) -> str:
        return drawn(self._table(), *self._lines(), most=160) + "\n"

    def _table(self) -> Table:
        """Layer by layer. On a narrow terminal the reasons stand below the layers."""
        title = f"{self.runtime} against the integer reference, n = {self.samples}"
        narrow = width(160) < 120
        table = Table(
            title=title,
            title_justify="left",
            box=None if narrow or plain() else box.HEAVY_HEAD,
            padding=(0, 1, 0, 0) if narrow else (0, 1),
        )
        table.add_column("layer", overflow="fold")
        for name in (
            "float to\nsim., dB" if narrow else "float to\nsimulation, dB",
            "sim.\noff by" if narrow else "simulation\noff by",
            "reference\nexact",
            "runtime\noff by",
            "exact",
            "SQNR, dB",
        ):
            table.add_column(name, no_wrap=True)
        if not narrow:
            table.add_column("why")
        for c in self.layers:
            table.add_row(
                c.layer,
                _decibels(c.float_sqnr_db),
                str(c.simulation_off_by),
                _share(c.simulation_exact),
                str(c.max_off_by),
                _share(c.exact),
                _decibels(c.sqnr_db),
                *([] if narrow else [c.note]),
            )
        return table

    def _lines(self) -> list[str]:
        """What is said below the table."""
        reasons = [f"{c.layer}: {c.note}" for c in self.layers if c.note]
        first = self.first_departure
        lines = [
            *(reasons if width(160) < 120 else []),
            f"same class as the reference: {self.agreement}, {self.ties} of the others tie "
            f"within one step; output SQNR {_decibels(self.sqnr_db)} dB",
            f"same class as in float: runtime {self.float_agreement}; simulation "
            f"{self.simulation_agreement}; "
            f"runtime's output SQNR against float {_decibels(self.float_sqnr_db)} dB",
            f"first departure: {first.layer}: {first.note}"
            if first
            else "no layer is off by more than one step",
        ]
        if found := self.saturated:
            lines.append(
                "saturation: this processor's kernels clip pairs of products at 16 bits in "
                f"{len(found)} layer{'s' * (len(found) > 1)}, first in {next(iter(found))}, "
                f"most in {max(found, key=found.__getitem__)} ({_share(max(found.values()))} of "
                "its sums); quantize with target='x86'"
            )
        if self.note:
            lines.append(self.note)
        if self.shipped:
            lines.append(
                "the file as it is, without the layers' values among its outputs, departs "
                f"first at {self.shipped['layer']}: {self.shipped['why']}"
            )
        return lines


def _decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1f}"


def _share(value: float) -> str:
    return f"{100 * value:.3f} %"


def sqnr(reference: np.ndarray, other: np.ndarray) -> float | None:
    """10 log10 of signal power over noise power; None where the two are equal or the reference is
    zero.
    """
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise))
