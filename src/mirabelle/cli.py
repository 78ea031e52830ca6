"""The command line: `mirabelle run | explain | measure | setup-arm64 | verify | export |
report`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import mirabelle
from mirabelle.base.errors import InputError, LimitError, MirabelleError

out = Console(soft_wrap=True)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write it like 1,3,224,224")
    return shape


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="mirabelle",
        description="Takes a trained network and hands back one that fits a phone.",
    )
    top.add_argument("--version", action="version", version=f"mirabelle {mirabelle.__version__}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser("run", help="carry out a recipe and write its report")
    run.add_argument("recipe", help="a YAML file")
    run.add_argument(
        "--resume",
        action="store_true",
        help="take finished steps from the folder instead of doing them again",
    )
    run.add_argument("--folder", help="where everything goes (runs/<recipe's name>)")
    run.add_argument(
        "--check", action="store_true", help="only check the recipe, the network and the data"
    )

    explain = commands.add_parser(
        "explain", help="which channels live and die together, and what cannot be pruned"
    )
    explain.add_argument("model", help="module:callable that builds the network")
    explain.add_argument(
        "--input", type=_shape, required=True, help="shape of an example input, such as 1,3,224,224"
    )
    explain.add_argument("--json", action="store_true")

    measure = commands.add_parser(
        "measure", help="size, MACs, latency, memory and accuracy of a network or an exported file"
    )
    measure.add_argument(
        "model", help="module:callable, or a file for a runtime (.onnx, .xml, .tflite)"
    )
    measure.add_argument(
        "--data",
        help="module:callable that returns train, calibration and test loaders; accuracy is "
        "measured on test",
    )
    measure.add_argument(
        "--input", type=_shape, help="shape of an example input, where there is no data"
    )
    measure.add_argument("--metric", default="top1")
    measure.add_argument("--baseline", help="another network or file, timed alternately")
    measure.add_argument("--threads", type=int, default=1, help="CPU threads of files")
    measure.add_argument(
        "--device",
        default="here",
        help="here, arm64 (instructions on an emulated Arm core) or adb (milliseconds on a phone)",
    )
    measure.add_argument("--core", default="cortex-a76", help="the core of --device arm64")
    measure.add_argument(
        "--benchmark", help="for --device adb: the runtime's own benchmark program for the phone"
    )
    measure.add_argument("--serial", help="for --device adb: which phone")
    measure.add_argument("--runs", type=int, default=100)
    measure.add_argument(
        "--break-even",
        action="store_true",
        help="from what share of zeros on sparse is faster than dense, by kind of layer (needs "
        "MNN)",
    )
    measure.add_argument("--html", help="also write the break-even curves as a page")
    measure.add_argument("--json", action="store_true")

    arm = commands.add_parser(
        "setup-arm64",
        help="fetch and build what `measure --device arm64` needs, into the cache folder",
    )
    arm.add_argument(
        "--runtimes",
        nargs="+",
        help="those whose Arm builds are wanted (default: those that are installed)",
    )

    export = commands.add_parser("export", help="write a network as a file for a runtime")
    export.add_argument("model", help="module:callable that builds the network, or an .onnx file")
    export.add_argument(
        "--load", help="a folder that mb.save wrote: the pruned or quantised form of the network"
    )
    export.add_argument(
        "--input", type=_shape, help="shape of an example input; needed for a network"
    )
    export.add_argument("--runtime", default="onnxruntime")
    export.add_argument("--folder", default=".")

    verify = commands.add_parser(
        "verify",
        help="compare an exported file with the quantised network it came from, layer by layer",
    )
    verify.add_argument("model", help="module:callable that builds the unpruned network")
    verify.add_argument("--load", required=True, help="the folder with the quantised network")
    verify.add_argument("--file", required=True, help="the exported file")
    verify.add_argument(
        "--data",
        required=True,
        help="module:callable that returns train, calibration and test loaders",
    )
    verify.add_argument("--samples", type=int, default=256)
    verify.add_argument("--json", action="store_true")

    report = commands.add_parser("report", help="write the HTML of a report.json again")
    report.add_argument("json_file", help="report.json of a run")
    return top


def _run(options: argparse.Namespace) -> int:
    from mirabelle.pipeline.api import run
    from mirabelle.pipeline.facts import check_fit
    from mirabelle.pipeline.recipe import load_recipe
    from mirabelle.sources.callables import build_data, build_model

    recipe = load_recipe(options.recipe)
    if options.check:
        check_fit(recipe, build_model(recipe.model), build_data(recipe.data))
        out.print(f"{options.recipe} is sound: {', '.join(s.name for s in recipe.steps)}")
        return 0
    finished = run(recipe, resume=options.resume, folder=options.folder, check=False)
    out.print(summary_table(finished.report))
    result = finished.report["result"]
    if result["speedup"] is not None:
        out.print(
            f"on {result['runtime']}: {result['speedup']:.2f} times faster, "
            f"{result['size_ratio']:.1f} times smaller, "
            f"{100 * result['accuracy_drop']:+.2f} points of "
            f"{finished.report['recipe']['metric']} lost"
        )
    out.print(f"report: {(finished.folder / 'report.html').resolve()}")
    for warning in finished.warnings:
        out.print(f"warning: limit missed: {warning}", style="yellow")
    if finished.missed:
        raise LimitError(finished.shortfall())
    return 0


def summary_table(report: dict[str, Any]) -> Table:
    """The stages of a report on each runtime, for the terminal."""
    table = Table(
        "stage",
        "runtime",
        "MACs",
        "file",
        f"{report['recipe']['metric']} [95 %]",
        "p50, ms",
        "speed-up",
    )
    for stage in report["stages"]:
        for runtime, seen in stage["runtimes"].items():
            a, latency, faster = seen["accuracy"], seen["latency"], seen["speedup"]
            table.add_row(
                stage["label"],
                runtime,
                f"{stage['macs'] / 1e6:.1f} M",
                "-" if seen["bytes"] is None else f"{seen['bytes'] / 1e6:.2f} MB",
                f"{100 * a['value']:.2f} [{100 * a['low']:.2f}, {100 * a['high']:.2f}]"
                if a["binary"]
                else f"{a['value']:.4g}",
                f"{latency['p50_ms']:.3f}" if latency else "-",
                f"{faster['value']:.2f}" if faster else "-",
            )
    return table


def _network(reference: str) -> Any:
    from mirabelle.sources.callables import build_model

    return build_model(reference)


def _network_or_file(reference: str, threads: int = 1) -> Any:
    from mirabelle.runtimes import load, runtime_of

    runtime = runtime_of(reference)
    return _network(reference) if runtime is None else load(reference, runtime, threads)


def _example(shape: tuple[int, ...] | None) -> Any:
    import torch

    return None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _say(found: Any, as_json: bool) -> int:
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)
    return 0


def _explain(options: argparse.Namespace) -> int:
    return _say(mirabelle.explain(_network(options.model), _example(options.input)), options.json)


def _measure(options: argparse.Namespace) -> int:
    from mirabelle.runtimes import runtime_of
    from mirabelle.sources.callables import build_data

    is_file = runtime_of(options.model) is not None
    if options.data is None and options.input is None and not is_file:
        raise InputError("measure needs --data or --input")
    if options.html and not options.break_even:
        raise InputError("--html is the page of the break-even curves; add --break-even")
    loader = build_data(options.data).test if options.data else None
    inputs = _example(options.input)
    if inputs is not None and loader is None:
        inputs = inputs.numpy() if is_file else inputs
    network = _network_or_file(options.model, options.threads)
    baseline = _network_or_file(options.baseline, options.threads) if options.baseline else None
    found = mirabelle.measure(
        network,
        loader,
        options.metric,
        inputs=inputs,
        runs=options.runs,
        baseline=baseline,
        device=options.device,
        core=options.core,
        binary=options.benchmark,
        serial=options.serial,
        break_even=options.break_even,
    )
    if options.html:
        from mirabelle.base.files import write_text
        from mirabelle.report import render

        seen = found.to_dict()
        write_text(
            options.html,
            render(
                {
                    "title": f"{options.model}, sparse against dense",
                    **{k: seen[k] for k in ("break_even", "machine", "versions")},
                }
            ),
        )
    return _say(found, options.json)


def _setup_arm64(options: argparse.Namespace) -> int:
    from mirabelle.devices import arm_setup

    done = arm_setup.set_up(options.runtimes)
    out.print(
        f"{done.root.parent}: {', '.join(f'{p} {v}' for p, v in sorted(done.packages.items()))}"
    )
    return 0


def _loaded(options: argparse.Namespace) -> Any:
    from mirabelle.store import load

    return load(options.load, _network(options.model)) if options.load else _network(options.model)


def _export(options: argparse.Namespace) -> int:
    model = Path(options.model) if options.model.endswith(".onnx") else _loaded(options)
    artifact = mirabelle.export(
        model, options.folder, runtime=options.runtime, inputs=_example(options.input)
    )
    out.print(
        f"{artifact.path}: {artifact.bytes / 1e6:.2f} MB for {artifact.runtime} {artifact.version}"
    )
    if artifact.runtime == "sparse":
        from mirabelle.runtimes.sparse import choice

        out.print(str(choice(artifact.path)), highlight=False)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from mirabelle.sources.callables import build_data

    artifact = _network_or_file(options.file)
    return _say(
        mirabelle.verify(
            _loaded(options), artifact, build_data(options.data).test, samples=options.samples
        ),
        options.json,
    )


def _report(options: argparse.Namespace) -> int:
    from mirabelle.base.files import read_json, write_text
    from mirabelle.report import render

    if not Path(options.json_file).is_file():
        raise InputError(f"there is no {options.json_file}")
    target = Path(options.json_file).with_suffix(".html")
    write_text(target, render(read_json(options.json_file)))
    out.print(str(target))
    return 0


COMMANDS = {
    "run": _run,
    "explain": _explain,
    "measure": _measure,
    "setup-arm64": _setup_arm64,
    "export": _export,
    "verify": _verify,
    "report": _report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error that the user can mend, 3 a limit was missed, 130
    interrupted.
    """
    options = parser().parse_args(arguments)
    # `module:callable` names modules of the folder that the command is called in, as `python -m`
    # does.
    sys.path.insert(0, os.getcwd())
    try:
        return COMMANDS[options.command](options)
    except LimitError as error:
        print(f"limit missed: {error}", file=sys.stderr)
        return 3
    except (MirabelleError, OSError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last finished step", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
