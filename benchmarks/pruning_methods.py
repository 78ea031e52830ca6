"""What `benchmarks.pruning` compares: methods, shares, seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from mirabelle.base.data import First
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.measurement import count_macs
from mirabelle.pruning import prune

SHARES = (0.8, 0.65, 0.5)
SEEDS = (0, 1, 2)
EPOCHS = (1, 3, 10)
PHOTOGRAPHS = (37, 75, 150, 225)  # of 300; the other tables have 150 for calibration
SAMPLES = {"fashion": 1024, "mobilenet_v2": 512}
RATE = 1e-3
TIMED: dict[
    str, dict[str, tuple[float, ...]]
] = {  # shares of the MACs, and of the milliseconds on each runtime
    "fashion": {
        "macs": (0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
        "onnxruntime": (0.6, 0.5, 0.4),
        "openvino": (0.6, 0.5, 0.4),
    },
    "mobilenet_v2": {
        "macs": (0.85, 0.75, 0.65),
        "onnxruntime": (0.85, 0.75),
        "openvino": (0.85, 0.75),
    },
}
Method = Callable[[nn.Module, torch.Tensor, float, Iterable, int, int], nn.Module]


def torch_pruning(importance: str, global_: bool, isomorphic: bool = False) -> Method:
    """Torch-Pruning's own loop: small steps until the MACs are reached; gradients of one batch
    before each step where its criterion reads them.

    isomorphic: groups of the same structure are ranked among themselves (its newest option).
    """

    def run(
        model: nn.Module, x: torch.Tensor, share: float, loader: Iterable, count: int, seed: int
    ) -> nn.Module:
        import torch_pruning as tp

        small = copy.deepcopy(model)
        last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            small,
            x,
            importance=getattr(tp.importance, importance)(),
            global_pruning=global_,
            isomorphic=isomorphic,
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
        return reestimate_batchnorm(small, First(loader, count))

    return run


def ours(criterion: str, allocation: str | None, repair: str) -> Method:
    def run(
        model: nn.Module, x: torch.Tensor, share: float, loader: Iterable, count: int, seed: int
    ) -> nn.Module:
        return prune(
            model,
            x,
            macs=share,
            criterion=criterion,
            allocation=allocation,
            data=loader,
            samples=count,
            align=1,
            repair=repair,
            seed=seed,
        )

    return run


BEST = "Mirabelle, brain surgeon, least squares"
PEERS: dict[str, Method] = {
    "Torch-Pruning, L2, global": torch_pruning("GroupMagnitudeImportance", True),
    "Torch-Pruning, L2, uniform": torch_pruning("GroupMagnitudeImportance", False),
    "Torch-Pruning, Taylor, global": torch_pruning("GroupTaylorImportance", True),
    "Torch-Pruning, Taylor, uniform": torch_pruning("GroupTaylorImportance", False),
    "Torch-Pruning, BatchNorm scale, uniform": torch_pruning("BNScaleImportance", False),
}
METHODS: dict[str, Method] = {
    **PEERS,
    "Mirabelle, Taylor, uniform, BatchNorm only": ours("taylor", "uniform", "bn"),
    "Mirabelle, Taylor, uniform, least squares": ours("taylor", "uniform", "least-squares"),
    BEST: ours("brain_surgeon", None, "least-squares"),
}
TUNED = ("Torch-Pruning, L2, uniform", "Torch-Pruning, Taylor, uniform", BEST)
