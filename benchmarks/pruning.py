"""What is left before any training, against Torch-Pruning 1.6.1: `python -m benchmarks.pruning`; one thread, resumable. Needs `pip install torch-pruning`.

The same trained network (that of the demo), the same MACs, the same batches; both sides get BatchNorm statistics re-estimated on the same 16 batches. Seeds draw the
batches. Accuracies are top-1 on the 10 000 test images of Fashion-MNIST, which choose nothing; a drop is against the original on the same images.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from torch import nn
from torch.utils.data import DataLoader

from examples import fashion
from mirabelle.data import seed_everything
from mirabelle.files import read_json, write_json
from mirabelle.measure import count_macs
from mirabelle.measure.accuracy import evaluate, predictor
from mirabelle.measure.machine import machine, versions
from mirabelle.prune import prune
from mirabelle.prune.repair import reestimate_batchnorm

RESULTS = Path(__file__).parent / "results" / "pruning.json"
SHARES = (0.8, 0.65, 0.5, 0.4)
BATCHES = 16


def torch_pruning(importance: str, global_: bool) -> Callable[[nn.Module, torch.Tensor, float, DataLoader], nn.Module]:
    """Torch-Pruning's own loop: small steps until the MACs are reached; gradients of one batch before each step where its criterion reads them."""

    def run(model: nn.Module, x: torch.Tensor, share: float, loader: DataLoader) -> nn.Module:
        import torch_pruning as tp

        small = copy.deepcopy(model)
        pruner = tp.pruner.BasePruner(
            small,
            x,
            importance=getattr(tp.importance, importance)(),
            global_pruning=global_,
            pruning_ratio=0.95,
            iterative_steps=200,
            ignored_layers=[small.fc],
        )
        target, batches = share * count_macs(model, x), iter(loader)
        while count_macs(small, x) > target:
            if "Taylor" in importance:
                images, labels = next(batches)
                small.zero_grad()
                nn.functional.cross_entropy(small(images), labels).backward()
            pruner.step()
        return reestimate_batchnorm(small, loader, BATCHES)

    return run


def ours(criterion: str, allocation: str | None, repair: str) -> Callable[[nn.Module, torch.Tensor, float, DataLoader], nn.Module]:
    def run(model: nn.Module, x: torch.Tensor, share: float, loader: DataLoader) -> nn.Module:
        return prune(model, x, macs=share, criterion=criterion, allocation=allocation, data=loader, batches=BATCHES, align=1, repair=repair)

    return run


METHODS: dict[str, Callable[[nn.Module, torch.Tensor, float, DataLoader], nn.Module]] = {
    "Torch-Pruning, L2, global": torch_pruning("GroupMagnitudeImportance", True),
    "Torch-Pruning, L2, uniform": torch_pruning("GroupMagnitudeImportance", False),
    "Torch-Pruning, Taylor, global": torch_pruning("GroupTaylorImportance", True),
    "Torch-Pruning, Taylor, uniform": torch_pruning("GroupTaylorImportance", False),
    "Torch-Pruning, BatchNorm scale, uniform": torch_pruning("BNScaleImportance", False),
    "Mirabelle, Taylor, uniform, BatchNorm only": ours("taylor", "uniform", "bn"),
    "Mirabelle, Taylor, uniform, least squares": ours("taylor", "uniform", "least-squares"),
    "Mirabelle, brain surgeon, least squares": ours("brain_surgeon", None, "least-squares"),
}


def table(results: dict) -> str:
    seeds = sorted({r["seed"] for r in results["runs"]})
    lines = [
        "| before any training, points lost | " + " | ".join(f"{share:.0%} of the MACs" for share in SHARES) + " |",
        "|---|" + "---|" * len(SHARES),
    ]
    for method in METHODS:
        cells = []
        for share in SHARES:
            drops = [100 * (results["original"] - r["top1"]) for r in results["runs"] if r["method"] == method and r["share"] == share]
            cells.append(f"{mean(drops):.2f} ({min(drops):.2f} to {max(drops):.2f})" if drops else "not run")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    info = results["machine"]
    lines.append(
        f"\nMean and range of {len(seeds)} seeds; original {100 * results['original']:.2f} %, n = 10 000. {info['cpu']}, one thread, {results['versions']}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    results = read_json(RESULTS) if RESULTS.exists() else {"runs": []}
    if not options.table:
        torch.set_num_threads(1)
        model, loaders = fashion.resnet(), fashion.data()
        x = next(iter(loaders.test))[0][:2]
        results |= {"machine": machine(), "versions": ", ".join(f"{k} {v}" for k, v in versions("torch", "torch-pruning").items())}
        results["original"] = evaluate(predictor(model), loaders.test).value
        done = {(r["method"], r["share"], r["seed"]) for r in results["runs"]}
        for seed in range(options.seeds):
            for share in SHARES:
                for method, function in METHODS.items():
                    if (method, share, seed) in done:
                        continue
                    seed_everything(seed)
                    small = function(model, x, share, fashion.data().train)
                    row = {"method": method, "share": share, "seed": seed, "macs": count_macs(small, x) / count_macs(model, x)}
                    row["top1"] = evaluate(predictor(small), loaders.test).value
                    results["runs"].append(row)
                    write_json(RESULTS, results)
                    print(row, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
