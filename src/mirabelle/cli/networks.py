"""The commands about one network: explain, measure, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import mirabelle
from mirabelle.base.errors import InputError
from mirabelle.cli.common import (
    FLAG,
    SHAPE,
    Common,
    default,
    described,
    example,
    network,
    network_or_file,
    say,
)
from mirabelle.exporter import export as export_verb
from mirabelle.measurement.api import measure as measure_verb
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.graph import example_of
from mirabelle.verification.api import verify as verify_verb

Shape = tuple[int, ...]
BUILDS = Parameter(help="module:callable that builds the network")
LOADERS = Parameter(help="module:callable that returns train, calibration and test loaders")


def explain(
    model: Annotated[str, BUILDS],
    /,
    *,
    input: Annotated[Shape, SHAPE],
    common: Common = Common(),  # noqa: B008
) -> int:
    """Which channels live and die together, and what cannot be pruned."""
    return say(mirabelle.explain(network(model), example(input)), common.json)


def measure(
    model: Annotated[
        str, Parameter(help="module:callable, or a file for a runtime (.onnx, .xml, .tflite)")
    ],
    /,
    *,
    data: Annotated[
        str | None,
        Parameter(
            help="module:callable that returns train, calibration and test loaders; accuracy is "
            "measured on test"
        ),
    ] = None,
    input: Annotated[Shape | None, SHAPE] = None,
    metric: Annotated[str, described(measure_verb, "metric")] = default(measure_verb, "metric"),
    baseline: Annotated[str | None, described(measure_verb, "baseline")] = None,
    threads: Annotated[int, described(export_verb, "threads", "CPU threads of files")] = default(
        export_verb, "threads"
    ),
    device: Annotated[str, described(measure_verb, "device")] = default(measure_verb, "device"),
    core: Annotated[str, described(measure_verb, "core")] = default(measure_verb, "core"),
    benchmark: Annotated[str | None, described(measure_verb, "binary")] = None,
    serial: Annotated[str | None, described(measure_verb, "serial")] = None,
    runs: Annotated[int, described(measure_verb, "runs")] = default(measure_verb, "runs"),
    break_even: Annotated[
        bool,
        FLAG,
        Parameter(help="from what share of zeros on sparse is faster than dense (needs MNN)"),
    ] = False,
    html: Annotated[
        str | None, Parameter(help="also write the break-even curves as this page")
    ] = None,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Size, MACs, latency, memory and accuracy of a network or an exported file."""
    from mirabelle.runtimes import runtime_of
    from mirabelle.sources.callables import build_data

    is_file = runtime_of(model) is not None
    if data is None and input is None and not is_file:
        raise InputError("measure needs --data or --input")
    if html and not break_even:
        raise InputError("--html is the page of the break-even curves; add --break-even")
    loader = build_data(data).test if data else None
    inputs = example(input)
    if inputs is not None and loader is None:
        inputs = inputs.numpy() if is_file else inputs
    found = mirabelle.measure(
        network_or_file(model, threads),
        loader,
        metric,
        inputs=inputs,
        runs=runs,
        baseline=network_or_file(baseline, threads) if baseline else None,
        device=device,
        core=core,
        binary=benchmark,
        serial=serial,
        break_even=break_even,
    )
    if html:
        _write_page(html, f"{model}, sparse against dense", found.to_dict())
    return say(found, common.json)


def _write_page(path: str, title: str, seen: dict[str, Any]) -> None:
    from mirabelle.base.files import write_text
    from mirabelle.report import render

    shown = {k: seen[k] for k in ("break_even", "machine", "versions")}
    write_text(path, render({"title": title, **shown}))


def _loaded(model: str, load: str | None) -> Any:
    """The network, or the path of an ONNX file; with `load` the network that was saved there."""
    if load is None:
        return Path(model) if model.endswith(".onnx") else network(model)
    from mirabelle import store

    return store.load(load, Path(model) if model.endswith(".onnx") else network(model))


def export(
    model: Annotated[
        str, Parameter(help="module:callable that builds the network, or an .onnx file")
    ],
    /,
    *,
    load: Annotated[
        str | None,
        Parameter(help="a folder that mb.save wrote: the pruned or quantized form of the network"),
    ] = None,
    input: Annotated[
        Shape | None, SHAPE, Parameter(help="of networks; quantized ones know their own")
    ] = None,
    runtime: Annotated[str, described(export_verb, "runtime")] = default(export_verb, "runtime"),
    folder: Annotated[str, Parameter(help="where the file goes")] = ".",
    common: Common = Common(),  # noqa: B008
) -> int:
    """Write a network as a file for a runtime."""
    source = _loaded(model, load)
    inputs = example(input)
    if inputs is None and (described := quantization(source)) is not None:
        inputs = example_of(described.to_dict())
    artifact = mirabelle.export(source, folder, runtime=runtime, inputs=inputs)
    found: dict[str, Any] = {
        "path": str(artifact.path),
        "bytes": artifact.bytes,
        "runtime": artifact.runtime,
        "version": artifact.version,
    }
    size = f"{artifact.bytes / 1e6:.2f} MB"
    text = f"{artifact.path}: {size} for {artifact.runtime} {artifact.version}"
    if artifact.runtime == "sparse":
        from mirabelle.runtimes.sparse import choice

        forms = choice(artifact.path)
        found["forms"] = forms.to_dict()
        text += f"\n{forms}"
    return say(found, common.json, text)


def verify(
    model: Annotated[
        str, Parameter(help="module:callable of the unpruned network, or an .onnx file")
    ],
    /,
    *,
    load: Annotated[str, Parameter(help="the folder with the quantized network")],
    file: Annotated[str, Parameter(help="the exported file")],
    data: Annotated[str, LOADERS],
    samples: Annotated[int, described(verify_verb, "samples")] = default(verify_verb, "samples"),
    common: Common = Common(),  # noqa: B008
) -> int:
    """Compare an exported file with the quantized network it came from, layer by layer."""
    from mirabelle.sources.callables import build_data

    artifact = network_or_file(file)
    test = build_data(data).test
    return say(mirabelle.verify(_loaded(model, load), artifact, test, samples=samples), common.json)
