"""What is left of a network before any training, and after a little, against Torch-Pruning 1.6.1: `python -m benchmarks.pruning`; one thread, resumable.

Needs `pip install torch-pruning` and what `photographs.py` names. `--only fashion`, `mobilenet_v2`, `photographs`, `tuned` or `latency` runs one of the
five tables, `--methods` and `--seed` a part of it, `--runs N` at most N runs more.

- fashion: the demo's trained residual network on Fashion-MNIST; top-1 on the 10 000 test images, which choose nothing; a drop is against the original on the same images.
- mobilenet_v2: MobileNetV2 with ImageNet weights on photographs, half of them for calibration and half for the comparison: agreement with the original's first class, and the
  signal-to-noise ratio of the logits, at three sizes of each photograph.
- photographs: the same at 80 % of the MACs, with as many views but of fewer or more photographs; compared on the last quarter of all, and on the calibration views.
- tuned: fashion's networks after so many epochs on the 55 000 training images, with the same budget, rate and schedule.
- latency: the same networks cut to a share of the milliseconds on a runtime, and to shares of the MACs around it; measured anew, in turn with the original. Widths are as
  `prune` aligns them by itself: to 8 channels for MACs, to the kernels' own block, or half of it, for milliseconds; both are allocated by the knapsack.

Both sides get the same MACs and the same batches; BatchNorm statistics of Torch-Pruning are re-estimated on them. Seeds draw the batches, and the halves of the photographs.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import photographs
from benchmarks.runs import carry_out, command, is_asked, kept, rows, span
from examples import fashion
from mirabelle.batchnorm import reestimate_batchnorm
from mirabelle.data import example_inputs, seed_everything
from mirabelle.graph.artifacts import time_in_turn, write_artifact
from mirabelle.measure import count_macs
from mirabelle.measure.accuracy import evaluate, predictor
from mirabelle.measure.latency import speedup
from mirabelle.measure.machine import machine, versions
from mirabelle.prune import prune
from mirabelle.train import fit

RESULTS = Path(__file__).parent / "results" / "pruning.json"
SHARES = (0.8, 0.65, 0.5)
SEEDS = (0, 1, 2)
EPOCHS = (1, 3, 10)
PHOTOGRAPHS = (37, 75, 150, 225)  # of 300; the other tables have 150 for calibration
BATCHES = {"fashion": 8, "mobilenet_v2": 16}
RATE = 1e-3
TIMED: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("fashion", "onnxruntime"): {"latency": (0.6, 0.5, 0.4), "macs": (0.7, 0.6, 0.5, 0.4, 0.3)},
    ("mobilenet_v2", "onnxruntime"): {"latency": (0.85, 0.75), "macs": (0.85, 0.75, 0.65)},
    ("mobilenet_v2", "openvino"): {"latency": (0.85, 0.75), "macs": (0.85, 0.75, 0.65)},
}
Method = Callable[[nn.Module, torch.Tensor, float, Iterable, int, int], nn.Module]


def torch_pruning(importance: str, global_: bool) -> Method:
    """Torch-Pruning's own loop: small steps until the MACs are reached; gradients of one batch before each step where its criterion reads them."""

    def run(model: nn.Module, x: torch.Tensor, share: float, loader: Iterable, count: int, seed: int) -> nn.Module:
        import torch_pruning as tp

        small = copy.deepcopy(model)
        last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            small,
            x,
            importance=getattr(tp.importance, importance)(),
            global_pruning=global_,
            pruning_ratio=0.95,
            iterative_steps=200,
            ignored_layers=[last],
        )
        target, batches = share * count_macs(model, x), iter(loader)
        while count_macs(small, x) > target:
            if "Taylor" in importance:
                images, labels = next(batches, None) or next(batches := iter(loader))
                small.zero_grad()
                nn.functional.cross_entropy(small(images), labels).backward()
            pruner.step()
        return reestimate_batchnorm(small, loader, count)

    return run


def ours(criterion: str, allocation: str | None, repair: str) -> Method:
    def run(model: nn.Module, x: torch.Tensor, share: float, loader: Iterable, count: int, seed: int) -> nn.Module:
        return prune(model, x, macs=share, criterion=criterion, allocation=allocation, data=loader, batches=count, align=1, repair=repair, seed=seed)

    return run


BEST = "Mirabelle, brain surgeon, least squares"
METHODS: dict[str, Method] = {
    "Torch-Pruning, L2, global": torch_pruning("GroupMagnitudeImportance", True),
    "Torch-Pruning, L2, uniform": torch_pruning("GroupMagnitudeImportance", False),
    "Torch-Pruning, Taylor, global": torch_pruning("GroupTaylorImportance", True),
    "Torch-Pruning, Taylor, uniform": torch_pruning("GroupTaylorImportance", False),
    "Torch-Pruning, BatchNorm scale, uniform": torch_pruning("BNScaleImportance", False),
    "Mirabelle, Taylor, uniform, BatchNorm only": ours("taylor", "uniform", "bn"),
    "Mirabelle, Taylor, uniform, least squares": ours("taylor", "uniform", "least-squares"),
    BEST: ours("brain_surgeon", None, "least-squares"),
}
TUNED = ("Torch-Pruning, L2, uniform", "Torch-Pruning, Taylor, uniform", BEST)


@lru_cache(maxsize=1)
def _photographs(seed: int, count: int | None = None) -> tuple[nn.Module, list, torch.Tensor, torch.Tensor]:
    """The network, batches of 32 views of calibration photographs with the classes that it gives them, other photographs, and its logits on these.

    count: of the photographs for calibration, and then the others are the last quarter of all; None: one half is for calibration, and the others the other.
    """
    model = photographs.mobilenet_v2()
    calibration, others = photographs.split(seed)
    if count is not None:
        calibration, others = (calibration + others)[:count], others[len(others) // 2 :]
    views = photographs.centres(others)
    crops = photographs.crops(calibration, -(-32 * BATCHES["mobilenet_v2"] // len(calibration)), seed)[: 32 * BATCHES["mobilenet_v2"]]
    return model, [(b, _logits(model, b).argmax(1)) for b in crops.split(32)], views, _logits(model, views)


def _logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(b) for b in x.split(64)])


def run_fashion(method: str, share: float, seed: int) -> dict[str, Any]:
    model, loaders, x = fashion.resnet(), fashion.data(), torch.zeros(2, 1, 28, 28)
    small = METHODS[method](model, x, share, loaders.train, BATCHES["fashion"], seed)
    return {"macs": count_macs(small, x) / count_macs(model, x), "top1": evaluate(predictor(small), loaders.test).value}


def run_mobilenet_v2(method: str, share: float, seed: int) -> dict[str, Any]:
    model, loader, views, expected = _photographs(seed)
    small = METHODS[method](model, views[:2], share, loader, len(loader), seed)
    return {"macs": count_macs(small, views[:2]) / count_macs(model, views[:2])} | _against(expected, _logits(small, views))


def run_photographs(method: str, share: float, seed: int, photographs: int) -> dict[str, Any]:
    model, loader, views, expected = _photographs(seed, photographs)
    small = METHODS[method](model, views[:2], share, loader, len(loader), seed)
    seen = torch.cat([b for b, _ in loader])
    return _against(expected, _logits(small, views)) | {"seen": _against(_logits(model, seen), _logits(small, seen))}


def _against(expected: torch.Tensor, found: torch.Tensor) -> dict[str, Any]:
    error = (found - expected).square().mean()
    return {
        "n": len(found), "agreement": float((found.argmax(1) == expected.argmax(1)).float().mean()),
        "sqnr": 10 * math.log10(float((expected - expected.mean(0)).square().mean() / error)),
    }  # fmt: skip


def run_tuned(method: str, share: float, seed: int, epochs: int) -> dict[str, Any]:
    model, loaders, x = fashion.resnet(), fashion.data(), torch.zeros(2, 1, 28, 28)
    small = METHODS[method](model, x, share, loaders.train, BATCHES["fashion"], seed)
    tuned = fit(small, loaders.train, "cross_entropy", epochs=epochs, lr=RATE, seed=seed)
    return {"macs": count_macs(small, x) / count_macs(model, x), "top1": evaluate(predictor(tuned), loaders.test).value}


def _subject(network: str, seed: int) -> tuple[nn.Module, torch.Tensor, Iterable]:
    if network == "fashion":
        return fashion.resnet(), torch.zeros(2, 1, 28, 28), fashion.data().train
    model, loader, views, _ = _photographs(seed)
    return model, views[:2], loader


@lru_cache(maxsize=max(len(by["macs"]) for by in TIMED.values()))
def _smaller(network: str, seed: int, method: str, share: float, runtime: str) -> nn.Module:
    model, x, loader = _subject(network, seed)
    budget = {method: share, "runtime": runtime, "criterion": "brain_surgeon", "repair": "least-squares", "allocation": "knapsack"}
    return prune(model, x, data=loader, batches=BATCHES[network], seed=seed, **budget)


def run_latency(method: str, network: str, runtime: str, share: float, seed: int) -> dict[str, Any]:
    model, x, _ = _subject(network, seed)
    # MACs know no runtime: one network is timed on all of them.
    small = _smaller(network, seed, method, share, runtime if method == "latency" else "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        files = {k: write_artifact(m, example_inputs(x), Path(folder) / k, runtime) for k, m in (("whole", model), ("small", small))}
        times = time_in_turn(files, example_inputs(x), 20)
    gain = speedup(times["whole"], times["small"])
    found = {"macs": count_macs(small, x) / count_macs(model, x), "time": 1 / gain.value, "low": 1 / gain.high, "high": 1 / gain.low}
    if network == "fashion":
        return found | {"top1": evaluate(predictor(small), fashion.data().test).value}
    _, _, views, expected = _photographs(seed)
    return found | _against(expected, _logits(small, views))


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "fashion": run_fashion, "mobilenet_v2": run_mobilenet_v2, "photographs": run_photographs, "tuned": run_tuned, "latency": run_latency,
}  # fmt: skip


def wanted() -> list[dict[str, Any]]:
    """Every run, first seed first."""
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for kind in ("fashion", "mobilenet_v2"):
            runs += [{"kind": kind, "method": m, "share": s, "seed": seed} for s in SHARES for m in METHODS]
        runs += [{"kind": "photographs", "method": BEST, "share": SHARES[0], "seed": seed, "photographs": n} for n in PHOTOGRAPHS]
        runs += [
            {"kind": "latency", "network": n, "runtime": runtime, "method": m, "share": s, "seed": seed}
            for (n, runtime), by in TIMED.items()
            for m, shares in by.items()
            for s in shares
        ]
        runs += [{"kind": "tuned", "method": m, "share": 0.5, "seed": seed, "epochs": e} for e in EPOCHS for m in TUNED]
    return runs


def table(results: dict) -> str:
    heads = " | ".join(f"{share:.0%} of the MACs" for share in SHARES)
    columns = "|---|" + "---|" * len(SHARES)
    original = results.get("original", math.nan)
    parts = [f"| residual network, points lost before any training | {heads} |", columns]
    for m in METHODS:
        cells = [span([100 * (original - r["top1"]) for r in rows(results, kind="fashion", method=m, share=s)]) for s in SHARES]
        parts.append(f"| {m} | {' | '.join(cells)} |")
    for key, title, factor in (("agreement", "agreement with the original, %", 100), ("sqnr", "SQNR of the logits, dB", 1)):
        parts += ["", f"| MobileNetV2, {title} | {heads} |", columns]
        for m in METHODS:
            cells = [span([factor * r[key] for r in rows(results, kind="mobilenet_v2", method=m, share=s)]) for s in SHARES]
            parts.append(f"| {m} | {' | '.join(cells)} |")
    parts += [
        "",
        "| MobileNetV2 at 80 % of the MACs, 512 views of | agreement, % | SQNR, dB | agreement on those views, % | SQNR on them, dB |",
        "|---|---|---|---|---|",
    ]
    for n in PHOTOGRAPHS:
        found = rows(results, kind="photographs", photographs=n)
        cells = [span([f * r[key] for r in side]) for side in (found, [r["seen"] for r in found]) for key, f in (("agreement", 100), ("sqnr", 1))]
        parts.append(f"| {n} photographs | {' | '.join(cells)} |")
    parts += [
        "",
        "| residual network at 50 % of the MACs, points lost after training | " + " | ".join(f"{e} epochs" for e in EPOCHS) + " |",
        "|---|" + "---|" * len(EPOCHS),
    ]
    for m in TUNED:
        cells = [span([100 * (original - r["top1"]) for r in rows(results, kind="tuned", method=m, epochs=e)]) for e in EPOCHS]
        parts.append(f"| {m} | {' | '.join(cells)} |")
    parts += [
        "",
        "| by | seed | asked | time of a call, original = 1 [95 %] | MACs kept | points lost, or agreement, % | SQNR, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows(results, kind="latency"), key=lambda r: (r["network"], r["runtime"], r["seed"], -r["time"])):
        outcome = f"{100 * (original - r['top1']):.2f} lost" if "top1" in r else f"{100 * r['agreement']:.1f}"
        by = f"{r['network']}, {r['runtime']}, {'milliseconds' if r['method'] == 'latency' else 'MACs'}"
        sqnr = f"{r['sqnr']:.1f}" if "sqnr" in r else ""
        parts.append(
            f"| {by} | {r['seed']} | {r['share']} | {r['time']:.3f} [{r['low']:.3f}, {r['high']:.3f}] | {r['macs']:.3f} | {outcome} | {sqnr} |"
        )
    info = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    parts.append(f"\nMean (range; seeds). Original {100 * original:.2f} %, n = 10 000. {results.get('machine', {}).get('cpu')}, one thread, {info}.")
    return "\n".join(parts)


def do(run: dict[str, Any]) -> dict[str, Any]:
    seed_everything(run["seed"])
    return RUNS[run["kind"]](**{k: v for k, v in run.items() if k != "kind"})


def main() -> None:
    options = command(__doc__, RUNS)
    if not options.table:
        torch.set_num_threads(1)
        conditions = {"machine": machine(), "versions": versions("torch", "torch-pruning")}
        if "original" not in kept(RESULTS):
            conditions["original"] = evaluate(predictor(fashion.resnet()), fashion.data().test).value
        carry_out(RESULTS, [r for r in wanted() if is_asked(r, options)], do, conditions, options.runs)
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
