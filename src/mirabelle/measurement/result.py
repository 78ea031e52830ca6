"""What a measurement found, as JSON and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
            else f"{self.macs / 1e6:.2f} M per sample"
            + (f", without {', '.join(self.uncounted)}" if self.uncounted else "")
        )
        rows = {
            "network": self.name,
            "runtime": f"{self.runtime} {version}, {self.threads} thread{'s' * (self.threads > 1)}",
            "size": f"{self.bytes / 1e6:.3f} MB"
            + ("" if self.parameters is None else f", {self.parameters / 1e6:.3f} M parameters"),
            "MACs": macs,
            "input": ", ".join("x".join(map(str, shape)) for shape in self.inputs),
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
            width = max(len(r.layer) for r in self.layers)
            lines += [
                "",
                f"{'layer':<{width}}  {'baseline, ms':>12}  {'this, ms':>8}  integers  executed as",
            ]
            flags = {True: "yes", False: "no", None: "?"}
            lines += [
                f"{r.layer:<{width}}  {r.before_ms:>12.3f}  {r.after_ms:>8.3f}  "
                f"{flags[r.int8]:<8}  {', '.join(r.operators)}"
                for r in self.layers
            ]
        return "\n".join(
            [
                *lines,
                *self.advice,
                *(f"\n{part}" for part in (self.forms, self.break_even) if part is not None),
            ]
        )
