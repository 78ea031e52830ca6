"""A run: the network, its stages, what they cost and are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirabelle.report.schema.part import Part

if TYPE_CHECKING:
    from mirabelle.base.data import Batch


@dataclass(frozen=True)
class Tensor(Part):
    """Of an input or output. shape: with None for a size that is open; None for any rank."""

    name: str | None
    shape: list[Any] | None
    dtype: str | None


def tensors_of(example: Batch) -> list[Tensor]:
    """The tensors that a network takes."""
    named = [*((f"input{i}", t) for i, t in enumerate(example.args)), *example.kwargs.items()]
    return [Tensor(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in named]


@dataclass(frozen=True)
class Network(Part):
    name: str | None
    inputs: list[Tensor]


@dataclass(frozen=True)
class Machine(Part):
    """memory: in bytes."""

    cpu: str | None
    cores: float | None
    memory: float | None
    features: list[str]
    system: str | None
    python: str | None


@dataclass(frozen=True)
class Handoff(Part):
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True)
class Score(Part):
    """A figure of n samples with its 95 % interval. binary: a share of samples."""

    metric: str | None
    value: float | None
    low: float | None
    high: float | None
    n: float | None
    binary: bool | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class Latency(Part):
    p50_ms: float | None
    p95_ms: float | None
    runs: float | None
    threads: float | None
    batch: float | None


@dataclass(frozen=True)
class Speedup(Part):
    value: float | None
    low: float | None
    high: float | None
    rounds: float | None


@dataclass(frozen=True)
class PeakMemory(Part):
    """In bytes."""

    total: float | None
    before_loading: float | None


@dataclass(frozen=True)
class Look(Part):
    """What is left after a step, or of a file, on data that may choose. on: which data. share:
    whether the figure is a share of samples. drop, interval: from the original's.
    """

    step: str | None
    metric: str | None
    on: str | None
    n: float | None
    share: bool | None
    value: float | None
    drop: float | None
    interval: list[float | None]


@dataclass(frozen=True)
class Figures(Part):
    """Of a stage on a runtime."""

    bytes: float | None
    accuracy: Score
    accuracy_drop: float | None
    accuracy_drop_interval: list[float | None]
    look: Look
    latency: Latency
    speedup: Speedup
    peak_memory: PeakMemory


NO_FIGURES = Figures.nothing()


@dataclass(frozen=True)
class Stage(Part):
    """The network after a step. runtimes: by name."""

    name: str | None
    label: str | None
    parameters: float | None
    macs: float | None
    runtimes: dict[str, Figures]

    def on(self, runtime: str | None) -> Figures:
        """The figures of a runtime, without any where it has none."""
        return self.runtimes.get(str(runtime), NO_FIGURES)


def gains(original: Stage, chosen: Stage, runtime: str) -> dict[str, float | None]:
    """What a file gains over the original on the same runtime, as `Result` calls it."""
    before, after = original.on(runtime), chosen.on(runtime)
    return {
        "speedup": after.speedup.value,
        "size_ratio": before.bytes / after.bytes if before.bytes and after.bytes else None,
        "macs_ratio": chosen.macs / original.macs if chosen.macs and original.macs else None,
    }


@dataclass(frozen=True)
class LayerSize(Part):
    """Channels, and [MACs before, after]."""

    layer: str | None
    before: float | None
    after: float | None
    macs: list[float | None]


@dataclass(frozen=True)
class CurveScore(Part):
    name: str | None
    step: list[float | None]
    value: list[float | None]


@dataclass(frozen=True)
class Curve(Part):
    """By step. each: of how many steps a point is the mean. loss: by part."""

    step: list[float | None]
    each: float | None
    loss: dict[str, list[float | None]]
    lr: list[float | None]
    score: CurveScore


@dataclass(frozen=True)
class Training(Part):
    stage: str | None
    history: list[Any]
    curve: Curve
    seconds: float | None


@dataclass(frozen=True)
class Node(Part):
    """What a runtime executed."""

    name: str | None
    operator: str | None
    milliseconds: float | None
    int8: bool | None


@dataclass(frozen=True)
class LayerTime(Part):
    """Before and after, in milliseconds and as shares of the call."""

    layer: str | None
    before_ms: float | None
    after_ms: float | None
    before_share: float | None
    after_share: float | None
    int8: bool | None
    operators: list[str]
    advice: str | None


@dataclass(frozen=True)
class Profile(Part):
    """Of a runtime: its nodes, or layers that are paired already."""

    before: list[Node]
    after: list[Node]
    layers: list[LayerTime]
    advice: list[Any]


@dataclass(frozen=True)
class Result(Part):
    """The recommended file against the original on the same runtime."""

    stage: str | None
    label: str | None
    runtime: str | None
    why: str | None
    file: str | None
    accuracy_drop: float | None
    accuracy_drop_interval: list[float | None]
    speedup: float | None
    size_ratio: float | None
    macs_ratio: float | None


@dataclass(frozen=True)
class Limit(Part):
    name: str | None
    limit: float | None
    value: float | None
    met: bool | None
    runtime: str | None
    on_fail: str | None
