"""What `mb.compress` predicts, and what it finds: `python -m benchmarks.compress`; one thread,
resumable.

predictions: random widths and forms of layers on the demo network, MobileNetV2-like shares of what
is kept; the loss of the outputs and the milliseconds that the plan predicts against those that are
measured. search: one call with a drop of half a point on the demo network and its data, against
the file of the hand-written recipe (`examples/fashion.yaml`), both timed in one run, both judged
by all test images. `--minutes` is the search's; `--seed` one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import carry_out, kept, rows
from examples import fashion
from mirabelle.base.data import batches
from mirabelle.base.files import read_json
from mirabelle.channels.groups import analyze
from mirabelle.compression.api import compress
from mirabelle.compression.losses import output_loss
from mirabelle.compression.plan import Plan, cut, table
from mirabelle.compression.prices import FLOAT, INT8, prices
from mirabelle.graph.artifacts import time_in_turn
from mirabelle.measurement.accuracy import predictor, scores_of
from mirabelle.measurement.latency import speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.quantization.api import quantize
from mirabelle.quantization.search.timing import file_of
from mirabelle.runtimes import load

RESULTS = Path(__file__).parent / "results" / "compress.json"
PLANS = 20
RUNTIME = "onnxruntime"
DROP = 0.005


def ranks(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation."""
    x, y = (np.argsort(np.argsort(v)).astype(float) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def predictions(asked: dict[str, Any]) -> dict[str, Any]:
    """Random plans, none of them the knapsack's: what is predicted of each, and measured."""
    model, data = fashion.resnet(), fashion.data()
    few = [b._replace(target=None) for b in batches(data.calibration, 8)]
    seen, unseen = few[:4], few[4:]
    coupling = analyze(model, few[0].head(1), any_batch=True)
    known = {"latency": prices("latency", model, coupling, RUNTIME, True, seen)}
    found = table(model, seen, known, coupling, 8)
    wanted = [predictor(model)(b) for b in unseen]
    draw = np.random.default_rng(asked["seed"])
    plans: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = file_of(model, few[0], Path(folder) / "base", RUNTIME)
        for number in range(PLANS):
            plan = _random(found, draw)
            small = cut(found, plan, seen)
            floats = plan.floats
            network = small if floats is None else quantize(small, few, keep=floats)
            file = file_of(network, few[0], Path(folder) / str(number), RUNTIME)
            times = time_in_turn({"base": base, "plan": file}, few[0], 3.0)
            measured = 1 / speedup(times["base"], times["plan"]).value
            lost = output_loss(network, wanted, unseen)
            plans.append(
                {
                    "loss": plan.loss,
                    "measured loss": lost,
                    "latency": plan.costs["latency"],
                    "measured latency": measured,
                }
            )
            print(plans[-1], flush=True)
    return {
        "plans": plans,
        "rank correlation of losses": ranks(*([p[k] for p in plans] for k in _LOSS)),
        "rank correlation of latencies": ranks(*([p[k] for p in plans] for k in _LATENCY)),
    }


_LOSS, _LATENCY = ("loss", "measured loss"), ("latency", "measured latency")


def _random(found: Any, draw: np.random.Generator) -> Plan:
    """Widths around a share of the whole, and layers in a form, drawn."""
    share = draw.uniform(0.35, 1.0)
    kept = {
        n: int(w[np.abs(w - w[-1] * np.clip(share + draw.normal(0, 0.15), 0.1, 1)).argmin()])
        for n, w in found.widths.items()
    }
    layers = list(found.layers)
    floats = tuple(w for w in layers if draw.uniform() < draw.choice([0.0, 0.3]))
    forms = {i: FLOAT if c.weight in floats else INT8 for i, c in enumerate(found.coupling.costs)}
    lost = sum(
        float(found.scores[n].sort().values[: len(found.scores[n]) - k].sum())
        for n, k in kept.items()
    )
    lost += sum(found.layers[w] for w in layers if w not in floats)
    cost = found.prices["latency"].network(kept, forms) / found.whole("latency")
    return Plan(kept, floats, lost, {"latency": cost})


def search(asked: dict[str, Any]) -> dict[str, Any] | None:
    """One search, and the recipe's file beside its own. None where the demo has not run."""
    recipe = Path("runs/fashion/onnxruntime/model.onnx")
    if not recipe.is_file():
        print("run `make demo` first: its file is what the search is compared with")
        return None
    data, folder = fashion.plain(), Path("runs") / f"benchmark-compress-{asked['seed']}"
    found = compress(
        fashion.resnet(),
        data,
        accuracy_drop=DROP,
        minutes=asked["minutes"],
        seed=asked["seed"],
        folder=folder / str(asked["minutes"]),
        check=False,
    )
    files = {
        "original": load(found.folder / "original" / "model.onnx", RUNTIME),
        "recipe": load(recipe, RUNTIME),
        "compress": found.artifact,
    }
    one = next(batches(data.test)).head(1)._replace(target=None)
    times = time_in_turn(files, one, 15.0)
    scores = {n: scores_of(f.predict, data.test) for n, f in files.items()}
    figures = {
        n: {
            "milliseconds": times[n].p50_ms,
            "speedup": speedup(times["original"], times[n]).value,
            "bytes": files[n].bytes,
            "accuracy": scores[n].value,
            "drop": scores["original"].drop(scores[n]),
        }
        for n in files
    }
    over = speedup(times["recipe"], times["compress"])
    report = read_json(found.folder / "report.json")
    return {
        "files": figures,
        "n": scores["original"].n,
        "faster than the recipe": [over.value, over.low, over.high],
        "more lost than the recipe": list(scores["recipe"].drop(scores["compress"])),
        "trials": report["search"]["trials"],
        "seconds": read_json(found.folder / "clock.json")["seconds"],
        "knobs": dict(found.best.knobs),
    }


KINDS = {"predictions": predictions, "search": search}


def report(results: dict[str, Any]) -> str:
    lines = []
    for r in rows(results, kind="predictions"):
        lines.append(
            f"Over {len(r['plans'])} random plans the rank correlation of predicted and measured "
            f"loss is {r['rank correlation of losses']:.3f}, of latency "
            f"{r['rank correlation of latencies']:.3f}."
        )
    lines += [
        "",
        "| seed, minutes | trials | compress: speed-up | points lost | recipe: speed-up | points "
        "lost | faster than the recipe |",
        "|---" * 7 + "|",
    ]
    for r in rows(results, kind="search"):
        ours, theirs = r["files"]["compress"], r["files"]["recipe"]
        over = r["faster than the recipe"]
        lines.append(
            f"| {r['seed']}, {r['minutes']:g} | {r['trials']} | {ours['speedup']:.2f} | "
            f"{100 * ours['drop'][0]:.2f} [{100 * ours['drop'][1]:.2f}, "
            f"{100 * ours['drop'][2]:.2f}] | {theirs['speedup']:.2f} | "
            f"{100 * theirs['drop'][0]:.2f} | {over[0]:.2f} [{over[1]:.2f}, {over[2]:.2f}] |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(KINDS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="one seed; else 0, 1 and 2")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [0, 1, 2] if options.seed is None else [options.seed]
    asked: list[dict[str, Any]] = [{"kind": "predictions", "seed": seeds[0]}]
    asked += [{"kind": "search", "seed": s, "minutes": options.minutes} for s in seeds]
    asked = [a for a in asked if options.only in (None, a["kind"])]
    if not options.table:
        names = versions("torch", "onnxruntime", "optuna")
        conditions = {"machine": machine(), "versions": names}
        carry_out(RESULTS, asked, lambda a: KINDS[a["kind"]](a), conditions)
    print(report(kept(RESULTS)))


if __name__ == "__main__":
    main()
