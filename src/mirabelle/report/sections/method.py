"""How the figures were measured."""

from __future__ import annotations

from typing import Any

from mirabelle.report import units
from mirabelle.report.parts import listing, runtime_name, section, texts
from mirabelle.report.schema import Latency, Report
from mirabelle.report.units import number

INTERVALS = [
    (
        "accuracy interval",
        "95 %: Wilson's score interval where a sample counts 0 or 1, the normal interval of "
        "the mean elsewhere",
    ),
    (
        "drop interval",
        "95 %, paired: both networks answered the same samples, so only the samples on "
        "which they differ add to it",
    ),
    ("speed-up interval", "95 %, bootstrap over the timed runs"),
]


def how_measured(report: Report) -> str:
    """The machine, the versions, the seed, how many samples and runs, how long each step took, and
    what the intervals are.
    """
    rows = [*circumstances(report), *conditions(report)]
    if report.stages:
        rows += INTERVALS
    return section("How it was measured", "", listing([(k, str(v)) for k, v in rows if v]))


def circumstances(report: Report) -> list[tuple[str, Any]]:
    """The network and the machine that it was measured on."""
    machine, network = report.machine, report.network
    inputs = []
    for i in network.inputs:
        shape = " × ".join(texts(i.shape))
        inputs.append(f"{i.name or 'input'}: {shape} {i.dtype or ''}".strip())
    cores, python = machine.cores, machine.python
    processor = (machine.cpu, f"{cores:g} cores" if cores else None)
    system = (machine.system, f"Python {python}" if python else None)
    versions = report.versions.items()
    return [
        ("network", network.name),
        ("inputs", "; ".join(inputs)),
        ("processor", ", ".join(texts(processor))),
        ("instructions", " ".join(texts(machine.features))),
        ("memory", units.size(machine.memory) if machine.memory else None),
        ("system", ", ".join(texts(system))),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions if v is not None)),
    ]


def conditions(report: Report) -> list[tuple[str, Any]]:
    """How often, on how many samples and with which seed; and how long the steps took."""
    settings = [
        f"{runtime_name(r)}: {', '.join(timing(f.latency))}"
        for s in report.stages[-1:]
        for r, f in s.runtimes.items()
        if f.latency
    ]
    samples = sorted(
        {int(n) for s in report.stages for f in s.runtimes.values() if (n := f.accuracy.n)}
    )
    seeds = sorted({str(v) for v in found(report.recipe, "seed")})
    timings = report.timings.items()
    return [
        ("latency", "; ".join(settings)),
        ("samples", ", ".join(units.digits(n) for n in samples)),
        ("seed", ", ".join(seeds)),
        ("time taken", ", ".join(f"{k} {units.seconds(v)}" for k, v in timings)),
    ]


def timing(latency: Latency) -> list[str]:
    """Threads, batch and runs of a latency measurement, in words."""
    threads, batch, runs = latency.threads, latency.batch, latency.runs
    words = (
        f"{threads:g} thread{'' if threads == 1 else 's'}" if threads else "",
        f"batch of {batch:g}" if batch else "",
        f"{runs:g} runs" if runs else "",
    )
    return [w for w in words if w]


def found(value: Any, key: str) -> list[Any]:
    """Every number that stands under `key` anywhere inside a nest of dicts and lists."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == key and number(v) is not None] + [
            f for v in value.values() for f in found(v, key)
        ]
    return [f for v in value for f in found(v, key)] if isinstance(value, list) else []
