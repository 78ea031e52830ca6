"""What a measurement found, as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mirabelle.base.terminal import drawn
from mirabelle.measurement.latency import Latency, Speedup
from mirabelle.measurement.layers import LayerRow
from mirabelle.measurement.memory import PeakMemory

if TYPE_CHECKING:
    from mirabelle.devices.arm64 import Instructions
    from mirabelle.measurement.accuracy import Score
    from mirabelle.measurement.breakeven import BreakEven
    from mirabelle.runtimes.sparse import Choice


@dataclass(frozen=True)
class Measurement:
    """One network on one device. None stands for what was not, or cannot be, measured; `to_dict()`
    is the JSON of it.

    bytes: of its files, or of a module's parameters and buffers. macs, parameters: of one sample;
    None for files that do not tell.
    uncounted: the operators that `macs` leaves out. inputs: the shapes that latency and memory were
    measured with.
    memory: of a process with the runtime alone; None for a module. speedup: over `baseline`, timed
    alternately in the same run.
    forms: of a file for the `sparse` runtime, what was chosen for each layer. break_even: where it
    was asked for.
    layers: where the baseline is a file of the same runtime, the time of each layer in both;
    advice: what that says is to be done.
    device: `here`, `arm64` (then `instructions` in place of the latency; they are not milliseconds)
    or the phone.
    """

    name: str
    runtime: str
    threads: int
    bytes: int
    parameters: int | None
    macs: int | None
    uncounted: list[str]
    inputs: list[list[int]]
    latency: Latency | None
    memory: PeakMemory | None
    score: Score | None
    baseline: str | None
    baseline_latency: Latency | None
    speedup: Speedup | None
    machine: dict
    versions: dict[str, str | None]
    forms: Choice | None = None
    break_even: BreakEven | None = None
    layers: list[LayerRow] | None = None
    advice: list[str] = field(default_factory=list)
    device: str = "here"
    instructions: Instructions | None = None
    baseline_instructions: Instructions | None = None

    @property
    def fewer(self) -> float | None:
        """How many times fewer instructions than the baseline."""
        if self.instructions is None or self.baseline_instructions is None:
            return None
        return self.baseline_instructions.count / self.instructions.count

    def to_dict(self) -> dict:
        """Plain values: no samples, and None for the infinite ends of an interval, which JSON does
        not have.
        """

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items() if k != "samples"}
            if isinstance(value, (list, tuple)):
                return [plain(v) for v in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        found = asdict(self)
        for name in ("forms", "break_even"):
            found[name] = None if getattr(self, name) is None else getattr(self, name).to_dict()
        return plain(found)

    def __str__(self) -> str:
        version = self.versions.get(self.runtime) or "?"
        macs = (
            None
            if self.macs is None
            else f"{self.macs / 1e6:.2f} M per sample" + _without(self.uncounted)
        )
        rows = {
            "network": self.name,
            "runtime": f"{self.runtime} {version}, {self.threads} thread{'s' * (self.threads > 1)}",
            "size": f"{self.bytes / 1e6:.3f} MB"
            + ("" if self.parameters is None else f", {self.parameters / 1e6:.3f} M parameters"),
            "MACs": macs,
            "input": ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.inputs),
            "latency": self.latency,
            "baseline": self.baseline and f"{self.baseline}: {self.baseline_latency}",
            "speed-up": self.speedup,
            "device": None if self.device == "here" else self.device,
            "instructions": self.instructions,
            "of baseline": self.baseline_instructions
            and f"{self.baseline}: {self.baseline_instructions}",
            "fewer": self.fewer
            and f"{self.fewer:.2f} times fewer instructions than the baseline, which are not "
            "milliseconds",
            "peak memory": self.memory,
            "score": self.score,
            "machine": f"{self.machine['cpu']}, {self.machine['cores']} cores, "
            f"{' '.join(self.machine['features']) or 'features unknown'}",
        }
        lines = [f"{key:<12} {value}" for key, value in rows.items() if value is not None]
        if self.layers:
            lines += ["", drawn(_layer_table(self.layers), most=160)]
        return "\n".join(
            [
                *lines,
                *self.advice,
                *(f"\n{part}" for part in (self.forms, self.break_even) if part is not None),
            ]
        )


def _layer_table(rows: Sequence[LayerRow]) -> Any:
    """The time of each layer in the baseline and in this network."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    for name in ("baseline, ms", "this, ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("integers", no_wrap=True)
    table.add_column("executed as", overflow="fold")
    flags = {True: "yes", False: "no", None: "?"}
    for r in rows:
        times = (f"{r.before_ms:.3f}", f"{r.after_ms:.3f}")
        table.add_row(r.layer, *times, flags[r.int8], ", ".join(r.operators))
    return table


def _without(uncounted: list[str]) -> str:
    """What the MACs leave out: the first three by name."""
    if not uncounted:
        return ""
    more = len(uncounted) - 3
    return f", without {', '.join(uncounted[:3])}{f' and {more} more' if more > 0 else ''}"
