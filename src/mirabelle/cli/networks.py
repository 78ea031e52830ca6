"""The commands about one network: explain, measure, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import mirabelle
from mirabelle.base.errors import InputError
from mirabelle.base.options import options_of
from mirabelle.cli.common import (
    DATA,
    FLAG,
    INPUT,
    MODEL,
    RUNTIME,
    WEIGHTS,
    Common,
    InputSpec,
    as_file,
    default,
    described,
    example,
    example_for,
    network_or_file,
    read_data,
    say,
    weighted,
)
from mirabelle.cli.options import closed, taking
from mirabelle.exporter import export as export_verb
from mirabelle.measurement.api import measure as measure_verb
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.graph import example_of
from mirabelle.sources.data import read
from mirabelle.sources.networks import Found, find
from mirabelle.verification.api import verify as verify_verb

Specs = tuple[InputSpec, ...]
_DATA = options_of(read).in_recipes
FILE_OR_MODEL = Parameter(
    help="a file for a runtime (.onnx, .xml, .tflite, ...), or a network: module:callable, .pt2, "
    "timm:NAME, torchvision:NAME, hf:ORG/NAME"
)


def explain(
    model: Annotated[str, MODEL],
    /,
    *,
    input: Annotated[Specs | None, INPUT] = None,
    weights: Annotated[str | None, WEIGHTS] = None,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Which channels live and die together, and what cannot be pruned."""
    found = find(weighted(model, weights))
    inputs = example(input)
    if inputs is None and found.example is None and found.file is None:
        raise InputError(f"{model} does not say what it takes; add --input, such as 1,3,224,224")
    return say(mirabelle.explain(found, inputs), common.json)  # pyright: ignore[reportArgumentType]


@closed
@taking(_DATA)
def measure(
    model: Annotated[str, FILE_OR_MODEL],
    /,
    *,
    data: Annotated[str | None, DATA] = None,
    input: Annotated[Specs | None, INPUT] = None,
    weights: Annotated[str | None, WEIGHTS] = None,
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
    **options: Any,
) -> int:
    """Size, MACs, latency, memory and accuracy of a network or an exported file."""
    if html and not break_even:
        raise InputError("--html is the page of the break-even curves; add --break-even")
    network, found = network_or_file(weighted(model, weights), threads)
    inputs = example_for(network, input)
    known = found.example is not None or found.model is None
    if data is None and inputs is None and not known:
        raise InputError("measure needs --data or --input")
    loader = None if data is None else read_data(data, found, options).loaders.test
    if inputs is None and loader is None and found.example is not None:
        inputs = found.example
    if loader is None and found.model is None:
        inputs = as_file(network, inputs)
    seen = mirabelle.measure(
        network,
        loader,
        metric,
        inputs=inputs,
        runs=runs,
        baseline=network_or_file(baseline, threads)[0] if baseline else None,
        device=device,
        core=core,
        binary=benchmark,
        serial=serial,
        break_even=break_even,
    )
    if html:
        _write_page(html, f"{model}, sparse against dense", seen.to_dict())
    return say(seen, common.json)


def _write_page(path: str, title: str, seen: dict[str, Any]) -> None:
    from mirabelle.base.files import write_text
    from mirabelle.report import render

    shown = {k: seen[k] for k in ("break_even", "machine", "versions")}
    write_text(path, render({"title": title, **shown}))


def _loaded(model: str, load: str | None) -> Any:
    """The network, or the path of an ONNX file; with `load` the network that was saved there."""
    own = Path(model) if model.endswith(".onnx") else None
    if load is None:
        return own if own is not None else find(model)
    from mirabelle import store

    return store.load(load, own if own is not None else find(model).module())


def export(
    model: Annotated[str, MODEL],
    /,
    *,
    load: Annotated[
        str | None,
        Parameter(help="a folder that mb.save wrote: the pruned or quantized form of the network"),
    ] = None,
    input: Annotated[
        Specs | None, INPUT, Parameter(help="of networks; quantized and named ones know their own")
    ] = None,
    weights: Annotated[str | None, WEIGHTS] = None,
    runtime: Annotated[str, described(export_verb, "runtime"), RUNTIME] = default(
        export_verb, "runtime"
    ),
    folder: Annotated[str, Parameter(help="where the file goes")] = ".",
    common: Common = Common(),  # noqa: B008
) -> int:
    """Write a network as a file for a runtime."""
    source = _loaded(weighted(model, weights), load)
    inputs = example(input)
    if isinstance(source, Found):
        inputs = source.example if inputs is None else inputs
        source = source.module()
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


@closed
@taking(_DATA)
def verify(
    model: Annotated[
        str, Parameter(help="the unpruned network, as for export: a name, or an .onnx file")
    ],
    /,
    *,
    load: Annotated[str, Parameter(help="the folder with the quantized network")],
    file: Annotated[str, Parameter(help="the exported file")],
    data: Annotated[str, DATA],
    weights: Annotated[str | None, WEIGHTS] = None,
    samples: Annotated[int, described(verify_verb, "samples")] = default(verify_verb, "samples"),
    common: Common = Common(),  # noqa: B008
    **options: Any,
) -> int:
    """Compare an exported file with the quantized network it came from, layer by layer."""
    artifact = network_or_file(file)[0]
    known = find(weighted(model, weights))
    own = known.file if known.file is not None else known.module()
    from mirabelle import store

    test = read_data(data, known, options).loaders.test
    quantized = store.load(load, own)
    seen = mirabelle.verify(quantized, artifact, test, samples=samples)  # type: ignore[arg-type]
    return say(seen, common.json)
