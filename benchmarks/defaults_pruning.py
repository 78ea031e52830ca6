"""The pruning half of `benchmarks.defaults`: `mb.prune(network, inputs, macs=..., data=data)`
against Torch-Pruning's criteria with BatchNorm's statistics estimated anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from benchmarks import photographs
from benchmarks import quantization_methods as quantized
from benchmarks.pruning_methods import PEERS, Method, torch_pruning
from benchmarks.runs import rows, span
from examples import fashion
from mirabelle.base.data import seed_everything
from mirabelle.measurement import count_macs
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.pruning import prune

OURS = "Mirabelle"
SEEDS = (0, 1, 2)
IMAGES = 4096  # of the 55 000 for training, others for each seed
VIEWS = 512  # of the photographs for calibration
SHARES = {"fashion": (0.65, 0.5), "mobilenet_v2": (0.8, 0.65), "efficientnet_lite0": (0.8, 0.65)}
ESTIMATED = 1024  # samples for the peer's BatchNorm statistics


def without_options(
    model: nn.Module, x: torch.Tensor, share: float, loader: Iterable, count: int, seed: int
) -> nn.Module:
    return prune(model, x, macs=share, data=loader)


METHODS: dict[str, Method] = {
    OURS: without_options,
    **PEERS,
    "Torch-Pruning, L2, isomorphic": torch_pruning("GroupMagnitudeImportance", True, True),
    "Torch-Pruning, Taylor, isomorphic": torch_pruning("GroupTaylorImportance", True, True),
}


def asked(networks: Iterable[str]) -> list[dict[str, Any]]:
    """Every run, first seed first."""
    return [
        {"kind": "prune", "network": n, "method": m, "share": share, "seed": seed}
        for seed in SEEDS
        for n in networks
        for share in SHARES.get(n, ())
        for m in METHODS
    ]


@lru_cache(maxsize=1)
def _subject(
    network: str, seed: int
) -> tuple[nn.Module, Iterable, torch.Tensor | None, torch.Tensor | None]:
    """The network, batches with labels or with the classes that it gives them itself; views of
    other photographs and what it says of them.
    """
    if network == "fashion":
        images, labels = fashion.images_and_labels("train")
        order = torch.randperm(55000, generator=torch.Generator().manual_seed(seed))[:IMAGES]
        pairs = zip(images[order].split(128), labels[order].split(128), strict=True)
        return fashion.resnet(), list(pairs), None, None
    lite = network in quantized.LITE_SIZES
    model = quantized.lite(network) if lite else photographs.mobilenet_v2()
    names, others = photographs.split(seed)
    crops = photographs.crops(names, -(-VIEWS // len(names)), seed)[:VIEWS]
    views = photographs.centers(others)
    if lite:
        crops, views = quantized.halves(crops), quantized.halves(views)
    with torch.no_grad():
        batches = [(b, model(b).argmax(1)) for b in crops.split(32)]
        wanted = torch.cat([model(b).argmax(1) for b in views.split(64)])
    return model, batches, views, wanted


def run(network: str, method: str, share: float, seed: int) -> dict[str, Any]:
    """What is left without any training: top-1 on the test images, or agreement with the network
    on photographs that nobody saw.
    """
    seed_everything(seed)
    model, loader, views, wanted = _subject(network, seed)
    x = torch.zeros(2, 1, 28, 28) if views is None else views[:2]
    begun = time.process_time()
    small = METHODS[method](model, x, share, loader, ESTIMATED, seed)
    found = {
        "cpu_seconds": time.process_time() - begun,
        "macs": count_macs(small, x) / count_macs(model, x),
    }
    if views is None or wanted is None:
        data = fashion.data().test
        before, after = (evaluate(predictor(m), data) for m in (model, small))
        return found | {"n": after.n, "top1": after.value, "lost": before.value - after.value}
    with torch.no_grad():
        classes = torch.cat([small(b).argmax(1) for b in views.split(64)])
    same = float((classes == wanted).float().mean())
    return found | {"n": len(views), "agreement": same, "lost": 1 - same}


def table(results: dict[str, Any]) -> str:
    """Points lost by ours, and by the peer's criterion that loses least in the seeds' mean."""
    cells = "points lost (mean, range; seeds) | CPU"
    lines = [
        f"| network, share of the MACs | Mirabelle: {cells} | best criterion of Torch-Pruning | "
        f"{cells} |",
        "|---" * 6 + "|",
    ]
    for network, shares in SHARES.items():
        for share in shares:
            found = {
                m: rows(results, kind="prune", network=network, method=m, share=share)
                for m in METHODS
            }
            peers = {m: r for m, r in found.items() if m != OURS and r}
            if not found[OURS] or not peers:
                continue
            best = min(peers, key=lambda m: sum(r["lost"] for r in peers[m]) / len(peers[m]))
            ours, theirs = (
                f"{span([100 * r['lost'] for r in runs])} | "
                f"{sum(r['cpu_seconds'] for r in runs) / len(runs):.0f} s"
                for runs in (found[OURS], peers[best])
            )
            name = best.removeprefix("Torch-Pruning, ")
            lines.append(f"| {network}, {share:.0%} | {ours} | {name} | {theirs} |")
    return "\n".join(lines) if len(lines) > 2 else ""
