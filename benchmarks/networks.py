"""Prunes every network of `zoo.py` to half of its MACs and checks what came out: `python -m benchmarks.networks`.

Each network runs in a process of its own with a limit on its time. Results are appended to a file as they come, so an interrupted run goes on;
`--table` prints the table of `docs/networks.md`. Needs torchvision and timm (`pip install torchvision timm`, without their dependencies if need be).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "networks.jsonl"
LIMIT = 300


def check(name: str, share: float, stages: str) -> dict:
    """One row. A stage that fails ends it and says why."""
    import torch
    from torch.utils import _pytree as pytree

    from benchmarks import zoo
    from mirabelle.data import example_inputs
    from mirabelle.graph.surgery import difference, indices, reference
    from mirabelle.measure import count_macs, count_parameters
    from mirabelle.prune import plan
    from mirabelle.store import load, save

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = zoo.build(name)
    row: dict = {"name": name, "parameters": count_parameters(model), "stage": "prune"}
    try:
        begun = time.process_time()
        small, coupling, removed = plan(model, x, macs=share, criterion="l1", align=1, allocation="uniform", repair=None)
        row["cpu_s"] = round(time.process_time() - begun, 2)
        reasons: dict[str, int] = {}
        for f in coupling.frozen:
            reasons[f.reason] = reasons.get(f.reason, 0) + f.count
        row |= {
            "groups": len(coupling.groups),
            "unknown": sorted(coupling.unknown),
            "frozen": dict(sorted(reasons.items(), key=lambda kv: -kv[1])[:6]),
        }
        row["form"] = "graph" if isinstance(small, torch.fx.GraphModule) else "module"
        row["macs"] = round(count_macs(small, x) / count_macs(model, x), 4)
        row["stage"] = "equivalence"
        torch.manual_seed(1)
        other = torch.randn_like(x)
        found = small.eval()(other)
        if wrong := difference(reference(coupling, indices(coupling, removed), example_inputs(other)), found):
            raise AssertionError(f"not equivalent: {wrong}")
        row["stage"] = "batch"
        small(torch.randn(3, *x.shape[1:]))
        row["stage"] = "backward"
        small.train()
        sum(v.double().square().mean() for v in pytree.tree_leaves(small(other)) if isinstance(v, torch.Tensor)).backward()
        small.eval()
        if "save" in stages:
            row["stage"] = "save"
            with tempfile.TemporaryDirectory() as folder:
                save(small, folder)
                again = load(folder, zoo.build(name)[0])
                if wrong := difference(small(other), again(other)):
                    raise AssertionError(f"loaded network: {wrong}")
        if "onnx" in stages:
            from mirabelle.export import export

            row["stage"] = "onnx"
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                artifact = export(small, folder, runtime="onnxruntime", inputs=x)
                outputs = [v for v in pytree.tree_leaves(small(other)) if isinstance(v, torch.Tensor)]
                ran = pytree.tree_leaves(artifact(other.numpy()))
                if wrong := difference(outputs[0], torch.as_tensor(ran[0])):
                    raise AssertionError(f"ONNX Runtime: {wrong}")
            row["onnx_s"] = round(time.monotonic() - begun, 2)
        row["stage"] = "done"
        row["ok"] = abs(row["macs"] - share) <= 0.03
    except Exception as error:
        import traceback

        row |= {"ok": False, "error": f"{type(error).__name__}: {str(error)[:400]}", "trace": traceback.format_exc()[-900:]}
    return row


def table(rows: list[dict]) -> str:
    """A row per network, and what failed."""
    lines = ["| network | parameters | groups | form | MACs kept | CPU seconds | checks passed |", "|---|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: r["name"]):
        said = ("all" if "onnx_s" in r else "all without files") if r["ok"] else f"**{r['stage']}**: {r.get('error', '')[:110]}"
        size = f"{r['parameters'] / 1e6:.1f} M" if "parameters" in r else ""
        lines.append(f"| {r['name']} | {size} | {r.get('groups', '')} | {r.get('form', '')} | {r.get('macs', '')} | {r.get('cpu_s', '')} | {said} |")
    good = [r for r in rows if r["ok"]]
    counts = [f"{sum(r['name'].startswith(k) for r in good)} of {sum(r['name'].startswith(k) for r in rows)} of {k}" for k in ("torchvision", "timm")]
    return f"Passed: {', '.join(counts)}.\n\n" + "\n".join(lines)


def main() -> None:
    from benchmarks import zoo

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--stages", default="save,onnx", help="what is checked beside the cut: save, onnx or none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("ROW " + json.dumps(check(options.names[0], options.macs, options.stages)))
        return
    if options.table:
        print(table([json.loads(line) for line in options.results.read_text().splitlines()]))
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["name"] for line in options.results.read_text().splitlines()} if options.results.exists() else set()
    for name in options.names or zoo.names():
        if name in done and not options.names:
            continue
        line = [sys.executable, "-m", "benchmarks.networks", "--one", name, "--macs", str(options.macs), "--stages", options.stages]
        try:
            ran = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
            rows = [s[4:] for s in ran.stdout.splitlines() if s.startswith("ROW ")]
            row = json.loads(rows[0]) if rows else {"name": name, "ok": False, "stage": "process", "error": ran.stderr[-500:]}
        except subprocess.TimeoutExpired:
            row = {"name": name, "ok": False, "stage": "time", "error": f"over {LIMIT} s"}
        with options.results.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print("ok  " if row["ok"] else "FAIL", name, row.get("macs"), row.get("form"), row["stage"], row.get("error", "")[:150], flush=True)


if __name__ == "__main__":
    main()
