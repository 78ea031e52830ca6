"""Prunes every network of `zoo.py` to half of its MACs and checks what came out: `python -m
benchmarks.networks`.

Each network runs in a process of its own with a limit on its time. Results are written as they
come, so an interrupted run goes on with what is missing; named networks run anew, `--missing`
prints the names of those without a row, `--table` the table of `docs/networks.md`. One thread.
Needs torchvision, timm and transformers (without their dependencies if need be).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks import zoo
from benchmarks.runs import Row
from mirabelle.base.data import example_inputs
from mirabelle.base.files import read_json, write_json
from mirabelle.channels.groups import Coupling
from mirabelle.channels.surgery import difference, indices, mask, reference
from mirabelle.exporter import export
from mirabelle.measurement import count_macs, count_parameters
from mirabelle.measurement.machine import machine, versions
from mirabelle.pruning import prune
from mirabelle.pruning.api import plan, settings_of
from mirabelle.pruning.part import given
from mirabelle.store import load, save

RESULTS = Path(__file__).parent / "results" / "networks.json"
SHARE, TOLERANCE = 0.5, 0.03
LIMIT = 300
PRUNING: dict[str, Any] = {
    "macs": SHARE,
    "criterion": "l1",
    "align": 1,
    "allocation": "uniform",
    "repair": None,
}


def tensors(output: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def same(expected: Any, found: Any, what: str) -> None:
    if wrong := difference(expected, found):
        raise AssertionError(f"{what}: {wrong}")


def check(row: Row, name: str) -> None:
    """One network: cut, equivalence on inputs that it was not cut with, another batch, backward,
    files.
    """
    model, x = zoo.build(name)
    row["parameters"] = count_parameters(model)
    with row.stage("prune"):
        small, coupling, removed, _ = plan(model, x, settings_of(**PRUNING))
    describe(row, small, coupling)
    row["macs"] = round(count_macs(small, x) / count_macs(model, x), 4)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), row.stage("equivalence"):
        found = small.eval()(other)
        same(
            reference(coupling, indices(coupling, removed), example_inputs(other)),
            found,
            "not the masked network",
        )
        same(
            [v.new_zeros(v.shape) for v in tensors(model(other))],
            [v.new_zeros(v.shape) for v in tensors(found)],
            "outputs",
        )
    row["masked_weights"] = difference(mask(model, coupling, removed)(other), found) is None
    del coupling, removed, model
    with torch.no_grad(), row.stage("batch"):
        small(torch.randn(3, *x.shape[1:]))
    with row.stage("backward"):
        backward(
            small,
            sum(
                v.double().square().mean()
                for v in tensors(small.train()(other))
                if v.is_floating_point()
            ),
        )
    files(small.eval(), lambda: zoo.build(name)[0], other, row)


def check_part(row: Row, name: str) -> None:
    """A detector with non-maximum suppression inside: its backbone is cut and put back; files are
    those of the whole, and of the part for ONNX.
    """
    model, x = zoo.build(name)
    row["parameters"] = count_parameters(model)
    with row.stage("prune"):
        small = prune(model, x, part="backbone", **PRUNING)
    seen = given(model, "backbone", example_inputs(x))
    row["form"] = (
        "graph" if isinstance(small.get_submodule("backbone"), torch.fx.GraphModule) else "module"
    )
    row["macs"] = round(count_macs(small.backbone, seen) / count_macs(model.backbone, seen), 4)
    with torch.no_grad(), row.stage("equivalence"):
        boxes = small.eval()(x)
        shapes = [
            [tuple(t.shape) for t in tensors(m.get_submodule("backbone").eval()(seen))]
            for m in (model, small)
        ]
        if shapes[0] != shapes[1] or [set(b) for b in boxes] != [
            {"boxes", "scores", "labels"}
        ] * len(x):
            raise AssertionError(f"the part gives {shapes[1]}, expected {shapes[0]}; boxes {boxes}")
    with row.stage("backward"):
        target = [
            {"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]]), "labels": torch.tensor([1])}
            for _ in x
        ]
        backward(small, sum(small.train()(x, target).values()))
    small.eval()
    with torch.no_grad(), row.stage("save"), tempfile.TemporaryDirectory() as folder:
        save(small, folder)
        same(small(x), load(folder, zoo.build(name)[0])(x), "loaded network")
    onnx(small.backbone, seen, row)


def describe(row: Row, small: nn.Module, coupling: Coupling) -> None:
    reasons: dict[str, int] = {}
    for f in coupling.frozen:
        reasons[f.reason] = reasons.get(f.reason, 0) + f.count
    row |= {
        "groups": len(coupling.groups),
        "unknown": sorted(coupling.unknown),
        "frozen": dict(sorted(reasons.items(), key=lambda kv: -kv[1])[:6]),
        "form": "graph" if isinstance(small, torch.fx.GraphModule) else "module",
    }


def backward(small: nn.Module, value: Any) -> None:
    value.backward()
    grads = [p.grad for p in small.parameters() if p.grad is not None]
    if not grads or not all(bool(torch.isfinite(g).all()) for g in grads):
        raise AssertionError(f"{len(grads)} gradients, of which some are not finite")
    small.zero_grad()


def files(small: nn.Module, build: Any, other: torch.Tensor, row: Row) -> None:
    with torch.no_grad(), row.stage("save"), tempfile.TemporaryDirectory() as folder:
        save(small, folder)
        same(small(other), load(folder, build())(other), "loaded network")
    onnx(small, other, row)


def onnx(small: nn.Module, other: torch.Tensor, row: Row) -> None:
    with torch.no_grad(), row.stage("onnx"), tempfile.TemporaryDirectory() as folder:
        artifact = export(small, folder, runtime="onnxruntime", inputs=other)
        same(
            tensors(small(other)),
            [torch.as_tensor(v) for v in pytree.tree_leaves(artifact(other.numpy()))],
            "ONNX Runtime",
        )


def run_one(name: str) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row = Row(name=name, stage="build")
    begun = time.monotonic()
    try:
        (check_part if name.startswith("part/") else check)(row, name)
        row["stage"] = "done"
        row["ok"] = abs(row["macs"] - SHARE) <= TOLERANCE
        if not row["ok"]:
            row["error"] = f"keeps {row['macs']} of the MACs"
    except Exception as error:
        traceback.print_exc()
        row |= {"ok": False, "error": f"{type(error).__name__}: {str(error)[:400]}"}
    row["seconds"] = round(time.monotonic() - begun, 1)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return row


def in_process(name: str) -> dict:
    try:
        line = [sys.executable, "-m", "benchmarks.networks", "--one", name]
        ran = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "ok": False, "stage": "time", "error": f"over {LIMIT} s"}
    rows = [s[4:] for s in ran.stdout.splitlines() if s.startswith("ROW ")]
    row = (
        json.loads(rows[0])
        if rows
        else {
            "name": name,
            "ok": False,
            "stage": "process",
            "error": ran.stderr[-500:] or f"code {ran.returncode}",
        }
    )
    if not row["ok"]:
        sys.stderr.write(ran.stderr[-900:])  # where it failed: for the eye, not for the results
    return row


def table(results: dict) -> str:
    """How many passed, and a row per network."""
    rows = results["networks"]
    lines = [
        "| network | parameters | groups | form | MACs kept | masked weights | analysis and "
        "surgery, s | all checks, s | peak, GB | checks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (n for n in zoo.names() if n in rows):
        r = rows[name]
        said = (
            "all" if r["ok"] else f"**{r['stage']}**: {' '.join(r.get('error', '').split())[:140]}"
        )
        size = f"{r['parameters'] / 1e6:.1f} M" if "parameters" in r else ""
        masked = {True: "equal", False: "statistics"}.get(r.get("masked_weights"), "")  # type: ignore[call-overload]
        cells = [
            name,
            size,
            r.get("groups", ""),
            r.get("form", ""),
            r.get("macs", ""),
            masked,
            r.get("cpu_s", {}).get("prune", ""),
        ]
        lines.append(
            "| "
            + " | ".join(map(str, [*cells, r.get("seconds", ""), r.get("peak_gb", ""), said]))
            + " |"
        )
    counts = []
    for kind in dict.fromkeys(n.partition("/")[0] for n in zoo.names()):
        of = [n for n in zoo.names() if n.startswith(f"{kind}/")]
        ran = [rows[n] for n in of if n in rows]
        counts.append(
            f"{kind} {sum(r['ok'] for r in ran)} of {len(ran)} that ran ({len(of)} in all)"
        )
    info = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return (
        f"Passed: {', '.join(counts)}. One core of {results['machine']['cpu']}, {info}.\n\n"
        + "\n".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--table", action="store_true", help="only print the table of what is there"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="only print the names of the networks that have no row yet",
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("ROW " + json.dumps(run_one(options.names[0])))
        return
    results = read_json(RESULTS) if RESULTS.exists() else {"networks": {}}
    missing = [n for n in zoo.names() if n not in results["networks"]]
    if options.table or options.missing:
        print(table(results) if options.table else "\n".join(missing))
        return
    for name in options.names or missing:
        row = in_process(name)
        results = (
            read_json(RESULTS) if RESULTS.exists() else results
        )  # another process may have added to it
        results |= {
            "machine": machine(),
            "versions": versions("torch", "torchvision", "timm", "transformers", "onnxruntime"),
        }
        results["networks"][name] = row
        write_json(RESULTS, results)
        print(
            "ok  " if row["ok"] else "FAIL",
            name,
            row.get("macs"),
            row.get("form"),
            row["stage"],
            row.get("error", "")[:150],
            flush=True,
        )


if __name__ == "__main__":
    main()
