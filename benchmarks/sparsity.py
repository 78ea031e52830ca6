"""What sparsity costs and what it gains: `python -m benchmarks.sparsity`; one thread, resumable.

Needs torchvision, and MNN (`pip install "mirabelle[mnn]"`) for the speeds. `--only` runs one of the
tables, `--seed` and `--methods` a part of the tuned one, `--runs N` at most N runs more.

- untrained: the demo's trained residual network on Fashion-MNIST right after the cut, by criterion
and allocation; top-1 on the 10 000 test images, which choose nothing.
- tuned: the same network after STEPS training steps, against `torch.nn.utils.prune` with the same
steps, rate, schedule, batches and seed. PyTorch's function chooses the zeros,
  by the magnitudes of all layers together (for blocks by their sums of magnitudes); they are held
  in the same way for both.
- bytes: what `mb.save` writes, against the dense network.
- speed: MobileNetV1 and ResNet-18 with ImageNet's sizes, zeros at random, batch 1: each layer in
its faster form on MNN, against the fastest dense runtime, all timed in turn.
  Speed depends on how many zeros there are, and not on what the weights are; those are random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import mirabelle as mb
from benchmarks import zoo
from benchmarks.runs import carry_out, command, is_asked, kept, rows, span
from examples import fashion
from mirabelle.base.checks import clone
from mirabelle.base.data import Batch, First, seed_everything
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.measurement.breakeven import limits, zeroed
from mirabelle.measurement.machine import machine, versions
from mirabelle.onnx_files.write import onnx_proto, write_onnx
from mirabelle.sparsity import masks, share_of_zeros
from mirabelle.sparsity.layers import by_block, candidates, spread
from mirabelle.training import fit

RESULTS = Path(__file__).parent / "results" / "sparsity.json"
SPARSITIES = (0.9, 0.95, 0.98)
BLOCKS = (1, 4)
SEEDS = (0, 1, 2)
STEPS, RATE, SAMPLES, ROUNDS = 100, 2e-3, 512, 4


# --- accuracy
# --------------------------------------------------------------------------------------------------


def by_torch(model: nn.Module, sparsity: float, block: int) -> nn.Module:
    """Zeros by `torch.nn.utils.prune.global_unstructured`, made permanent and marked as ours are,
    so that the training holds them.
    """
    sparse = clone(model)
    names = candidates(sparse, ())
    modules = [(sparse.get_submodule(path), "weight") for path in names.values()]
    scores = {}
    for module, own in modules:
        weight: Any = module.weight
        rows = weight.detach().abs().flatten(1)
        scores[module, own] = spread(by_block(rows, block), block, len(rows)).reshape(weight.shape)
    torch_prune.global_unstructured(
        modules, torch_prune.L1Unstructured, importance_scores=scores, amount=sparsity
    )
    for module, own in modules:
        torch_prune.remove(module, own)
    masks.mark(
        sparse, dict.fromkeys(names, 1)
    )  # a block on the edge of the amount may be cut in two
    return sparse


def tuned_torch(steps: int) -> Callable[..., nn.Module]:
    def run(model: nn.Module, loader: Any, sparsity: float, block: int, seed: int) -> nn.Module:
        sparse = reestimate_batchnorm(by_torch(model, sparsity, block), First(loader, SAMPLES))
        return fit(sparse, loader, "cross_entropy", steps=steps, lr=RATE, seed=seed)

    return run


def tuned_after(criterion: str, allocation: str) -> Callable[..., nn.Module]:
    def run(model: nn.Module, loader: Any, sparsity: float, block: int, seed: int) -> nn.Module:
        sparse = mb.sparsify(
            model,
            sparsity=sparsity,
            block=(block, 1),
            criterion=criterion,
            allocation=allocation,
            data=loader,
            samples=SAMPLES,
            repair="least-squares",
            rounds=ROUNDS,
            seed=seed,
        )
        return fit(sparse, loader, "cross_entropy", steps=STEPS, lr=RATE, seed=seed)

    return run


def tuned_during(criterion: str, allocation: str) -> Callable[..., nn.Module]:
    def run(model: nn.Module, loader: Any, sparsity: float, block: int, seed: int) -> nn.Module:
        options = {
            "sparsity": sparsity,
            "block": (block, 1),
            "criterion": criterion,
            "allocation": allocation,
            "samples": SAMPLES,
        }
        return fit(
            model, loader, "cross_entropy", steps=STEPS, lr=RATE, seed=seed, sparsify=options
        )

    return run


TUNED: dict[str, Callable[..., nn.Module]] = {
    "torch.nn.utils.prune": tuned_torch(STEPS),
    "obs, global, least squares in 4 rounds": tuned_after("obs", "global"),
    "torch.nn.utils.prune, 2.5 times the steps": tuned_torch(
        STEPS * 5 // 2
    ),  # about as long as least squares and STEPS together
    "magnitude, global, growing in training": tuned_during("magnitude", "global"),
}
UNTRAINED: dict[str, dict[str, Any]] = {
    f"{c}, {a}, {'BatchNorm' if r == 0 else f'least squares in {r} round' + 's' * (r > 1)}": {
        "criterion": c,
        "allocation": a,
        "repair": "least-squares" if r else "bn",
        "rounds": max(1, r),
    }
    for r, criteria, allocations in (
        (0, ("magnitude", "taylor", "wanda", "obs"), ("global", "lamp", "erk", "uniform")),
        (1, ("magnitude", "wanda", "obs"), ("global", "lamp")),
        (ROUNDS, ("magnitude", "wanda", "obs"), ("global",)),
        (ROUNDS, ("magnitude",), ("lamp", "erk", "uniform")),
    )
    for c in criteria
    for a in allocations
}


def _top1(model: nn.Module) -> float:
    return evaluate(predictor(model), fashion.data().test).value


def run_tuned(method: str, sparsity: float, block: int, seed: int) -> dict[str, Any]:
    seed_everything(seed)
    sparse = TUNED[method](fashion.resnet(), fashion.data().train, sparsity, block, seed)
    found = share_of_zeros(sparse).values()
    return {
        "top1": _top1(sparse),
        "zeros": sum(f["zeros"] for f in found) / sum(f["size"] for f in found),
    }


def run_untrained(method: str, sparsity: float, block: int) -> dict[str, Any]:
    model = fashion.resnet()
    if method == "torch.nn.utils.prune, BatchNorm":
        return {
            "top1": _top1(
                reestimate_batchnorm(
                    by_torch(model, sparsity, block), First(fashion.data().train, SAMPLES)
                )
            )
        }
    sparse = mb.sparsify(
        model,
        sparsity=sparsity,
        block=(block, 1),
        data=fashion.data().train,
        samples=SAMPLES,
        **UNTRAINED[method],
    )
    return {"top1": _top1(sparse)}


# --- bytes and speed
# --------------------------------------------------------------------------------------------------


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017, table 1, width 1."""

    def layer(
        inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    layers, width = layer(3, 32, 3, 2), 32
    for outputs, stride in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]:
        layers += [*layer(width, width, 3, stride, width), *layer(width, outputs, 1)]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Fashion-MNIST's residual network": fashion.resnet,
    "MobileNetV1": mobilenet_v1,
    "ResNet-18": lambda: zoo.build("torchvision/resnet18")[0],
}


def run_bytes(network: str, sparsity: float, block: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for i, n in enumerate((model, mb.sparsify(model, sparsity=sparsity, block=(block, 1)))):
            sizes.append(sum(f.stat().st_size for f in mb.save(n, Path(folder) / str(i)).iterdir()))
    return {"dense": sizes[0], "sparse": sizes[1]}


def run_speed(network: str, sparsity: float, block: int) -> dict[str, Any]:
    """Every layer without groups has the same share of zeros."""
    import onnx

    from mirabelle.runtimes import sparse

    torch.manual_seed(0)
    model, x = NETWORKS[network]().eval(), torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(onnx_proto(model, Batch((x,), {}, None)), path)
        onnx.save(zeroed(onnx.load(path), sparsity, block), path)
        found = sparse.choice(
            sparse.choose(path, Path(folder) / "out", 1, [x.numpy()], rounds=15, seconds=10.0)
        )
    best = limits()
    return {
        "milliseconds": found.milliseconds,
        "runtime": found.runtime,
        "gmacs": best.gmacs,
        "gigabytes": best.gigabytes,
        "layers": {
            "sparse": sum(layer.form != "dense" for layer in found.layers),
            "all": len(found.layers),
        },
    }


# --- the whole
# --------------------------------------------------------------------------------------------------

RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "tuned": run_tuned,
    "untrained": run_untrained,
    "bytes": run_bytes,
    "speed": run_speed,
}
SPEEDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def wanted() -> list[dict[str, Any]]:
    """Every run, what the comparison needs first, first seed first."""
    levels = [(s, b) for b in BLOCKS for s in SPARSITIES]
    runs: list[dict[str, Any]] = [
        {"kind": "bytes", "network": n, "sparsity": s, "block": b}
        for n in NETWORKS
        for s, b in levels
    ]
    runs += [
        {"kind": "speed", "network": n, "sparsity": s, "block": b}
        for s in sorted(SPEEDS, reverse=True)
        for b in BLOCKS
        for n in list(NETWORKS)[1:]
    ]
    runs += [
        {"kind": "untrained", "method": m, "sparsity": s, "block": b}
        for s, b in levels
        for m in ("torch.nn.utils.prune, BatchNorm", *UNTRAINED)
    ]
    methods = list(TUNED)
    for group in (methods[:2], methods[2:]):
        runs += [
            {"kind": "tuned", "method": m, "sparsity": s, "block": b, "seed": seed}
            for seed in SEEDS
            for s, b in levels
            for m in group
        ]
    return runs


def _table(
    title: str, names: list[str], levels: tuple[float, ...], cell: Callable[[str, float, int], str]
) -> list[str]:
    columns = [(s, b) for b in BLOCKS for s in levels]
    heads = " | ".join(f"{100 * s:g} %{', 4x1' if b > 1 else ''}" for s, b in columns)
    return [
        f"| {title} | {heads} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {r} | {' | '.join(cell(r, s, b) for s, b in columns)} |" for r in names),
        "",
    ]


def table(results: dict) -> str:
    def tuned(method: str, s: float, b: int) -> str:
        return span(
            [
                100 * r["top1"]
                for r in rows(results, kind="tuned", method=method, sparsity=s, block=b)
            ]
        )

    def one(kind: str, key: str, show: Callable[[dict], str]) -> Callable[[str, float, int], str]:
        def cell(name: str, s: float, b: int) -> str:
            return next(
                (show(r) for r in rows(results, kind=kind, sparsity=s, block=b, **{key: name})),
                "not run",
            )

        return cell

    def speed(row: dict) -> str:
        dense = min(v for k, v in row["milliseconds"].items() if k != "sparse")
        return (
            f"{dense / min(row['milliseconds'].values()):.2f}"
            if "sparse" in row["milliseconds"]
            else "1 (dense)"
        )

    networks = list(NETWORKS)
    parts = _table(f"top-1 after {STEPS} steps, %", list(TUNED), SPARSITIES, tuned)
    parts += _table(
        "top-1 before any training, %",
        ["torch.nn.utils.prune, BatchNorm", *UNTRAINED],
        SPARSITIES,
        one("untrained", "method", lambda r: f"{100 * r['top1']:.2f}"),
    )
    parts += _table(
        "bytes of the dense file, %",
        networks,
        SPARSITIES,
        one("bytes", "network", lambda r: f"{100 * r['sparse'] / r['dense']:.1f}"),
    )
    parts += _table("times as fast as dense", networks[1:], SPEEDS, one("speed", "network", speed))
    info = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    parts.append(
        f"Means (range; seeds). Dense {100 * results.get('original', float('nan')):.2f} %, n = "
        f"10 000. {results.get('machine', {}).get('cpu')}, one thread, {info}."
    )
    return "\n".join(parts)


def do(run: dict[str, Any]) -> dict[str, Any]:
    return RUNS[run["kind"]](**{k: v for k, v in run.items() if k != "kind"})


def main() -> None:
    options = command(__doc__, RUNS)
    if not options.table:
        torch.set_num_threads(1)
        conditions = {
            "machine": machine(),
            "versions": versions("torch", "onnxruntime", "openvino", "MNN"),
        }
        if "original" not in kept(RESULTS):
            conditions["original"] = _top1(fashion.resnet())
        carry_out(
            RESULTS, [r for r in wanted() if is_asked(r, options)], do, conditions, options.runs
        )
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
