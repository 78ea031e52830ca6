"""Prunes ONNX files to half of their MACs and checks what came out: `python -m
benchmarks.onnx_coverage`.

The files are torchvision's networks as the two exporters of torch write them (random weights), and
those that packages ship: `--packages` names folders in which .onnx files are looked for. Each file
runs in a process of its own with a limit on its time. Results are written as they come, so that an
interrupted run goes on with what is missing; named files run anew, `--minutes` stops after so many
of the processor's, `--table` prints the table of `docs/onnx.md`. One thread. Needs torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils import _pytree as pytree

from benchmarks import zoo
from benchmarks.runs import Row
from mirabelle.base.data import Batch, example_inputs
from mirabelle.base.files import read_json, write_json
from mirabelle.exporter import export
from mirabelle.graph.proof import random_like
from mirabelle.measurement import count_macs
from mirabelle.measurement.machine import machine, versions
from mirabelle.onnx_files.read import network
from mirabelle.onnx_files.source import source_of
from mirabelle.pruning.api import plan, settings_of
from mirabelle.sources.networks import find

RESULTS = Path(__file__).parent / "results" / "onnx_coverage.json"
SHARE, OVER, EQUAL = 0.5, 0.03, 1e-4
SMALL = 1e-3  # outputs below count as of this size: the Sigmoid of ONNX Runtime is exact to 1e-7
LIMIT = 600
EXPORTERS = ("torchscript", "dynamo")
PRUNING: dict[str, Any] = {
    "macs": SHARE,
    "criterion": "l1",
    "align": 1,
    "allocation": "uniform",
    "repair": None,
}
# What files of packages take where their sizes are open, by the start of their names: shapes, and
# whole numbers as they are.
OPEN: dict[str, dict[str, Any]] = {
    "ch_PP-OCRv4_det_infer": {"x": (2, 3, 96, 96)},
    "ch_PP-OCRv4_rec_infer": {"x": (2, 3, 48, 96)},
    "ch_ppocr_mobile_v2.0_cls_infer": {"x": (2, 3, 48, 192)},
    "silero_vad_16k_sequence": {"input": (4, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    "silero_vad_half": {"input": (2, 512), "state": (2, 2, 128)},
    "silero_vad_openvino_16k": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad": {"input": (2, 512), "state": (2, 2, 128), "sr": 16000},
}
SMALL_IMAGES = 96  # for networks that take any size
# The older exporter writes adaptive pooling where it divides its input.
SIZES = {"alexnet": 224, "vgg": 224, "vit": 224, "maxvit": 224, "inception": 128, "swin": 128}


@torch.no_grad()
def settle(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Gives a network that was never trained outputs that say something, in place: BatchNorm's
    statistics are those of `x`, and weights that begin at zero, or nearly so, are drawn.
    """
    for p in model.parameters():
        if p.ndim > 1 and float(p.abs().max()) < 1e-3:
            p.normal_(0.0, 0.1)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.momentum = None
        m.train()
    model(x)
    return model.eval()


def write(name: str, path: Path) -> Batch:
    """One of torchvision's networks as a file with an open batch and metadata; an example."""
    exporter, _, plain = name.partition("/")
    model = zoo.build(f"torchvision/{plain}")[0].eval()
    size = next((s for n, s in SIZES.items() if plain.startswith(n)), SMALL_IMAGES)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    settle(model, x)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
            made = torch.onnx.export(model, (x,), dynamo=True, verbose=False, **names, **shapes)
            assert made is not None
            proto = made.model_proto
            onnx.save(proto, path)
        else:
            axes = {"image": {0: "batch"}, "scores": {0: "batch"}}
            torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes=axes, **names)
    proto = onnx.load(path)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "labels", "0..999"
    onnx.save(proto, path)
    return example_inputs(x)


def kept(before: Any, after: Any) -> list[str]:
    """What a pruned file lacks of the original: names, opsets, metadata, sizes of inputs."""

    def described(values: Any) -> list[tuple]:
        return [(v.name, v.type.tensor_type.elem_type) for v in values]

    def sizes(values: Any) -> list[list[Any]]:
        return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]

    pairs = {
        "inputs": (described(before.graph.input), described(after.graph.input)),
        "outputs": (described(before.graph.output), described(after.graph.output)),
        "sizes": (sizes(before.graph.input), sizes(after.graph.input)),
        "opset": tuple({o.domain: o.version for o in m.opset_import} for m in (before, after)),
        "metadata": tuple([(e.key, e.value) for e in m.metadata_props] for m in (before, after)),
        "nodes": tuple(
            [(n.name, n.domain, n.op_type) for n in m.graph.node] for m in (before, after)
        ),
    }
    return [name for name, (one, other) in pairs.items() if one != other]


def check(row: Row, name: str, path: Path, batch: Batch) -> None:
    row["bytes"] = path.stat().st_size
    with row.stage("read"):
        model = network(path, batch, fold=False)
    source = source_of(model)
    assert source is not None
    row["nodes"], row["outside"] = len(source.proto.graph.node), len(source.outside)
    with row.stage("prune"):
        small, coupling, _, _ = plan(model, batch, settings_of(**PRUNING))
    row["groups"] = len(coupling.groups)
    row["macs"] = round(count_macs(small, batch) / count_macs(model, batch), 4)
    row["as_file"] = source_of(small) is not None
    with row.stage("file"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        artifact = export(small, folder, runtime="onnxruntime", inputs=batch)
        row["bytes_after"] = artifact.path.stat().st_size
        row["lost"] = kept(onnx.load(path), onnx.load(artifact.path))
        other = random_like(batch)
        wanted = [v.numpy() for v in pytree.tree_leaves(small(*other.args, **other.kwargs))]
        given = [t.numpy() for t in other.args], {n: t.numpy() for n, t in other.kwargs.items()}
        found = pytree.tree_leaves(artifact(*given[0], **given[1]))
        row["largest"] = max(float(np.abs(b).max()) for b in wanted)
        row["error"] = max(
            float(np.abs(a - b).max() / max(np.abs(b).max(), SMALL))
            for a, b in zip(found, wanted, strict=True)
        )


def example(path: Path) -> Batch:
    """What a file of a package takes."""
    found = next((v for n, v in OPEN.items() if path.stem.startswith(n)), None)
    if found is None:
        known = find(path).example
        if known is None:
            raise ValueError("its sizes are open, and nobody said here what they are")
        return known
    drawn = torch.Generator().manual_seed(0)
    return example_inputs(
        {
            n: torch.randn(v, generator=drawn) if isinstance(v, tuple) else torch.tensor(v)
            for n, v in found.items()
        }
    )


def run_one(name: str, packages: list[str]) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row = Row(name=name, stage="write")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if name.partition("/")[0] in EXPORTERS:
                path = Path(folder) / "model.onnx"
                with row.stage("write"):
                    batch = write(name, path)
            else:
                path = shipped(packages)[name]
                batch = example(path)
            check(row, name, path, batch)
            row["stage"] = "done"
            row["ok"] = abs(row["macs"] - SHARE) <= OVER and row["error"] <= EQUAL
            if not row["ok"]:
                row["problem"] = f"keeps {row['macs']} of the MACs, differs by {row['error']:.2g}"
        except Exception as error:
            traceback.print_exc()
            row |= {"ok": False, "problem": f"{type(error).__name__}: {str(error)[:400]}"}
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return row


def in_process(name: str, packages: list[str]) -> dict:
    line = [sys.executable, "-m", "benchmarks.onnx_coverage", "--one", name]
    line += ["--packages", *packages] if packages else []
    before = os.times()
    try:
        ran = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        over = {"stage": "time", "problem": f"over {LIMIT} s", "seconds": float(LIMIT)}
        return {"name": name, "ok": False, **over}
    after = os.times()
    rows = [s[4:] for s in ran.stdout.splitlines() if s.startswith("ROW ")]
    row = json.loads(rows[0]) if rows else {"name": name, "ok": False, "stage": "process"}
    if not rows:
        row["problem"] = ran.stderr[-500:] or f"code {ran.returncode}"
    if not row["ok"]:
        sys.stderr.write(ran.stderr[-900:])  # where it failed: for the eye, not for the results
    row["seconds"] = round(
        after.children_user + after.children_system - before.children_user - before.children_system,
        1,
    )
    return row


def shipped(packages: list[str]) -> dict[str, Path]:
    """The files below these folders, by package and name."""
    found = {}
    for folder in packages:
        for path in sorted(Path(folder).rglob("*.onnx")):
            found[f"{path.relative_to(folder).parts[0]}/{path.stem}"] = path
    return found


def names(packages: list[str]) -> list[str]:
    """The networks of torchvision from the quickest to the slowest, as each exporter writes them,
    behind the files of packages.
    """
    known = read_json(RESULTS.parent / "networks.json")["networks"]
    plain = [n.partition("/")[2] for n in zoo.names() if n.startswith("torchvision/")]
    plain.sort(key=lambda n: known.get(f"torchvision/{n}", {}).get("seconds", 1e9))
    return [*shipped(packages), *(f"{e}/{n}" for n in plain for e in EXPORTERS)]


def table(results: dict) -> str:
    """How many passed, and a row per file."""
    rows = results["files"]
    kinds: dict[str, list[dict]] = {}
    for row in rows.values():
        kinds.setdefault(row["name"].partition("/")[0], []).append(row)
    counts = [f"{k} {sum(r['ok'] for r in of)} of {len(of)}" for k, of in sorted(kinds.items())]
    lines = [
        "| file | MB | MB after | nodes | outside torch | groups | MACs kept | largest difference "
        "| not kept in the file | CPU s | checks |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(rows):
        r = rows[name]
        text = " ".join(r.get("problem", "").split())[:160].replace("|", "/")
        size = {k: f"{r[k] / 1e6:.1f}" if k in r else "" for k in ("bytes", "bytes_after")}
        error = f"{r['error']:.1e}" if "error" in r else ""
        lost = ", ".join(r["lost"]) or "nothing" if "lost" in r else ""
        cells = [name, size["bytes"], size["bytes_after"], r.get("nodes", ""), r.get("outside", "")]
        cells += [r.get("groups", ""), r.get("macs", ""), error, lost, r.get("seconds", "")]
        cells.append("all" if r["ok"] else f"**{r['stage']}**: {text}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    info = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    cpu = results["machine"]["cpu"]
    said = f"Passed: {', '.join(counts)}. One core of {cpu}, {info}."
    return said + "\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--packages", nargs="*", default=[], help="folders with .onnx files")
    parser.add_argument("--minutes", type=float, default=1e9, help="of the processor, in all")
    parser.add_argument("--together", action="store_true", help="in one process, without limits")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("ROW " + json.dumps(run_one(options.names[0], options.packages)))
        return
    results = read_json(RESULTS) if RESULTS.exists() else {"files": {}}
    if options.table:
        print(table(results))
        return
    left = options.minutes * 60
    for name in options.names or [n for n in names(options.packages) if n not in results["files"]]:
        if left <= 0:
            break
        before = time.process_time()
        row = (run_one if options.together else in_process)(name, options.packages)
        row.setdefault("seconds", round(time.process_time() - before, 1))
        left -= row["seconds"]
        results |= {
            "machine": machine(),
            "versions": versions("torch", "torchvision", "onnx", "onnxscript", "onnxruntime"),
        }
        results["files"][name] = row
        write_json(RESULTS, results)
        print("ok  " if row["ok"] else "FAIL", name, row.get("macs"), row.get("error"), end=" ")
        print(row.get("lost"), row["stage"], row.get("problem", "")[:150], flush=True)


if __name__ == "__main__":
    main()
