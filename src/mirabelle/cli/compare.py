"""`mirabelle compare A B`: two runs, or two files or networks of any runtime, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich import box
from rich.table import Table

import mirabelle
from mirabelle.base import files
from mirabelle.base.data import batches, samples
from mirabelle.base.errors import InputError
from mirabelle.base.files import read_json
from mirabelle.base.options import options_of
from mirabelle.base.structures import leaves, on_cpu
from mirabelle.base.terminal import drawn, plain
from mirabelle.cli.common import (
    DATA,
    INPUT,
    Common,
    InputSpec,
    as_file,
    default,
    described,
    example,
    network_or_file,
    read_data,
    say,
)
from mirabelle.cli.options import closed, taking
from mirabelle.cli.table import accuracy
from mirabelle.measurement.accuracy import as_tensor, predictor
from mirabelle.measurement.agreement import agreement
from mirabelle.measurement.api import measure as measure_verb
from mirabelle.report import render_comparison
from mirabelle.report.schema import Report, Score
from mirabelle.sources.data import read

SUBJECT = Parameter(
    help="a run (its folder or report.json), a file for a runtime, or a network by name"
)


@closed
@taking(options_of(read).in_recipes)
def compare(
    a: Annotated[str, SUBJECT],
    b: Annotated[str, SUBJECT],
    /,
    *others: Annotated[str, Parameter(help="more runs, for the page alone")],
    data: Annotated[str | None, DATA] = None,
    input: Annotated[tuple[InputSpec, ...] | None, INPUT] = None,
    metric: Annotated[str, described(measure_verb, "metric")] = default(measure_verb, "metric"),
    runs: Annotated[int, described(measure_verb, "runs")] = default(measure_verb, "runs"),
    samples: Annotated[int, Parameter(help="how many outputs are compared")] = 256,
    page: Annotated[
        str | None, Parameter(help="of runs: an HTML file that draws them side by side")
    ] = None,
    common: Common = Common(),  # noqa: B008
    **options: Any,
) -> int:
    """Two runs, or two files or networks of any runtime, side by side."""
    names = (a, b, *others)
    reports = {name: found for name in names if (found := _report(name)) is not None}
    if len(reports) == len(set(names)):
        return _runs(names, reports, page, common)
    if reports:
        raise InputError("one of them is a run and the other is none; give two of a kind")
    if others or page is not None:
        raise InputError(
            f"{'more than two' if others else '--page'}: that is for runs, and {a} is none; give "
            "folders of runs or their report.json"
        )
    found = _files(a, b, data, input, metric, runs, samples, options)
    return say(found, common.json, _table(found, a, b))


def _runs(
    names: Sequence[str], reports: Mapping[str, dict[str, Any]], page: str | None, common: Common
) -> int:
    """The table of the first two runs, and the page of all."""
    a, b = names[:2]
    found = {"a": _of_run(a, reports[a]), "b": _of_run(b, reports[b])}
    found |= {"others": [_of_run(n, reports[n]) for n in names[2:]]} if names[2:] else {}
    text = _table(found, a, b)
    if page is not None:
        files.write_text(Path(page), render_comparison([(n, reports[n]) for n in names]))
        found |= {"page": page}
        text += f"\n{page}"
    elif names[2:]:
        raise InputError("more than two runs are drawn on a page alone: name it with --page")
    return say(found, common.json, text)


def _report(name: str) -> dict[str, Any] | None:
    """The report of a run; None for anything else."""
    path = Path(name)
    path = path / "report.json" if path.is_dir() else path
    if path.suffix != ".json":
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not found.get("stages"):
        raise InputError(f"{path} is no report of a run")
    return found


def _of_run(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of the file that a run recommends."""
    report = Report.of(found)
    result, stages = report.result, report.stages
    last = next((s for s in stages if s.name == result.stage), stages[-1])
    seen = last.on(result.runtime)
    metric = seen.accuracy.metric or str(report.recipe["metric"])  # there is none without data
    return {
        "name": name,
        "runtime": result.runtime,
        "bytes": seen.bytes,
        "parameters": last.parameters,
        "macs": last.macs,
        "p50_ms": seen.latency.p50_ms,
        "speedup": result.speedup,
        "accuracy": seen.accuracy.to_dict() if seen.accuracy else None,
        "metric": metric.rpartition(":")[2],
        "accuracy_drop": result.accuracy_drop,
        "machine": report.machine.cpu,
        "steps": report.steps,
    }


def _files(
    a: str,
    b: str,
    data: str | None,
    input: tuple[InputSpec, ...] | None,
    metric: str,
    runs: int,
    count: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    (first, known), (second, other) = network_or_file(a), network_or_file(b)
    known = known if known.how is not None or known.example is not None else other
    loader = None if data is None else read_data(data, known, options).loaders.test
    inputs = example(input)
    if inputs is None and loader is None:
        inputs = known.example
    whole = {"inputs": as_file(second, inputs)} if loader is None else {}
    timed = mirabelle.measure(second, loader, metric, runs=runs, baseline=first, **whole)
    alone = mirabelle.measure(
        first, loader, metric, runs=1, **({"inputs": as_file(first, inputs)} if whole else {})
    )
    found = {"a": alone.to_dict(), "b": timed.to_dict()}
    rows = {}
    for key, seen in found.items():
        rows[key] = {
            "name": (a, b)[key == "b"],
            "runtime": seen["runtime"],
            "bytes": seen["bytes"],
            "parameters": seen["parameters"],
            "macs": seen["macs"],
            "p50_ms": (timed.baseline_latency if key == "a" else timed.latency).p50_ms,  # pyright: ignore
            "accuracy": seen["score"],
            "metric": metric.rpartition(":")[2],
        }
    rows["b"]["speedup"] = timed.speedup.value if timed.speedup else None
    return {**rows, "agreement": _agreement(first, second, loader, inputs, count)}


def _agreement(
    first: Any, second: Any, loader: Any, inputs: Any, count: int
) -> dict[str, Any] | None:
    """How alike the outputs are: the share of the same classes (or of what the one explains of the
    other) by the first output, and over all of them the signal-to-noise ratio in dB and the
    largest difference.
    """
    if loader is None and inputs is None:
        return None
    given = samples(loader, count) if loader is not None else batches([inputs], 1)
    same, noise, signal, largest, seen = [], 0.0, 0.0, 0.0, 0
    predict = [predictor(n) for n in (first, second)]
    for batch in given:
        one, other = (list(leaves(on_cpu(p(batch)))) for p in predict)
        shapes = [[tuple(t.shape) for t in found] for found in (one, other)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"their outputs are {shapes[0]} and {shapes[1]}; only like is compared"
            )
        same.append(agreement(as_tensor(other), as_tensor(one)).numpy())
        for x, y in zip(one, other):
            difference = (x.double() - y.double()).abs()
            noise += float(difference.square().sum())
            signal += float(x.double().square().sum())
            largest = max(largest, float(difference.max()))
        seen += batch.size
    ratio = 10 * float(np.log10(signal / noise)) if noise and signal else None
    mean = float(np.concatenate(same).mean())
    return {"n": seen, "agreement": mean, "sqnr_db": ratio, "largest_difference": largest}


def _table(found: dict[str, Any], a: str, b: str) -> str:
    table = Table(box=None if plain() else box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in (a, b):
        table.add_column(name, justify="right", overflow="fold")
    left, right = found["a"], found["b"]
    rows = {
        "runtime": lambda s: s["runtime"],
        "MB": lambda s: _number(s["bytes"], 1e6, 3),
        "parameters, M": lambda s: _number(s["parameters"], 1e6, 3),
        "MACs, M": lambda s: _number(s["macs"], 1e6, 2),
        "p50, ms": lambda s: _number(s["p50_ms"], 1, 3),
        "speed-up": lambda s: _number(s.get("speedup"), 1, 2),
        f"{left['metric']}, 95 %": lambda s: accuracy(Score.of(s["accuracy"])) or "-",
    }
    for name, value in rows.items():
        if value(left) != "-" or value(right) != "-":
            table.add_row(name, value(left), value(right))
    lines = [drawn(table, most=100)]
    if alike := found.get("agreement"):
        ratio = "equal" if alike["sqnr_db"] is None else f"{alike['sqnr_db']:.1f} dB"
        lines.append(
            f"outputs agree on {100 * alike['agreement']:.2f} % of {alike['n']} samples, signal to "
            f"noise {ratio}, largest difference {alike['largest_difference']:.3g}"
        )
    return "\n".join(lines)


def _number(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"
