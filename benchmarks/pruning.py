"""What is left of a network before any training, and after a little, against Torch-Pruning 1.6.1:
`python -m benchmarks.pruning`; one thread, resumable.

Needs `pip install torch-pruning` and what `photographs.py` names. `--only fashion`, `mobilenet_v2`,
`photographs`, `tuned` or `latency` runs one of the five tables, `--methods` and `--seed` a part of
it, `--runs N` at most N runs more.

- fashion: the demo's trained residual network on Fashion-MNIST; top-1 on the 10 000 test images,
which choose nothing; a drop is against the original on the same images.
- mobilenet_v2: MobileNetV2 with ImageNet weights on photographs, half of them for calibration and
half for the comparison: agreement with the original's first class, and the
  signal-to-noise ratio of the logits, at three sizes of each photograph.
- photographs: the same at 80 % of the MACs, with as many views but of fewer or more photographs;
compared on the last quarter of all, and on the calibration views.
- tuned: fashion's networks after so many epochs on the 55 000 training images, with the same
budget, rate and schedule.
- latency: the same networks cut to shares of the milliseconds on a runtime, and to shares of the
MACs around them; then timed on the runtime, the original and all cuts in turn.
  Each file is opened several times, since its time varies more between openings than within one:
  the median is given, and from what to what they reach. Widths are as `prune` aligns them by
  itself: to 8 channels for MACs, to the kernels' own block, or half of it, for milliseconds; both
  are allocated by the knapsack. Networks are kept in the cache folder until all are timed.

Both sides get the same MACs and the same batches; BatchNorm statistics of Torch-Pruning are
re-estimated on them. Seeds draw the batches, and the halves of the photographs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import photographs
from benchmarks.openings import milliseconds, share_of
from benchmarks.pruning_methods import (
    BEST,
    EPOCHS,
    METHODS,
    PHOTOGRAPHS,
    RATE,
    SAMPLES,
    SEEDS,
    SHARES,
    TIMED,
    TUNED,
)
from benchmarks.pruning_table import table
from benchmarks.runs import carry_out, command, is_asked, kept
from examples import fashion
from mirabelle.base.data import cache_folder, example_inputs, seed_everything
from mirabelle.measurement import count_macs
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.measurement.machine import machine, versions
from mirabelle.pruning import prune
from mirabelle.store import load, save
from mirabelle.training import fit

RESULTS = Path(__file__).parent / "results" / "pruning.json"


@lru_cache(maxsize=1)
def _photographs(
    seed: int, count: int | None = None
) -> tuple[nn.Module, list, torch.Tensor, torch.Tensor]:
    """The network, batches of 32 views of calibration photographs with the classes that it gives
    them, other photographs, and its logits on these.

    count: of the photographs for calibration, and then the others are the last quarter of all;
    None: one half is for calibration, and the others the other.
    """
    model = photographs.mobilenet_v2()
    calibration, others = photographs.split(seed)
    if count is not None:
        calibration, others = (calibration + others)[:count], others[len(others) // 2 :]
    views = photographs.centers(others)
    crops = photographs.crops(calibration, -(-SAMPLES["mobilenet_v2"] // len(calibration)), seed)[
        : SAMPLES["mobilenet_v2"]
    ]
    return (
        model,
        [(b, _logits(model, b).argmax(1)) for b in crops.split(32)],
        views,
        _logits(model, views),
    )


def _logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(b) for b in x.split(64)])


def _subject(network: str, seed: int) -> tuple[nn.Module, torch.Tensor, Iterable]:
    if network == "fashion":
        return fashion.resnet(), torch.zeros(2, 1, 28, 28), fashion.data().train
    model, loader, views, _ = _photographs(seed)
    return model, views[:2], loader


def _measured(
    network: str, seed: int, model: nn.Module, small: nn.Module, x: torch.Tensor
) -> dict[str, Any]:
    """The share of the MACs that `small` has, and what is left of the accuracy."""
    found = {"macs": count_macs(small, x) / count_macs(model, x)}
    if network == "fashion":
        return found | {"top1": evaluate(predictor(small), fashion.data().test).value}
    _, _, views, expected = _photographs(seed)
    return found | _against(expected, _logits(small, views))


def _run_untrained(network: str, method: str, share: float, seed: int) -> dict[str, Any]:
    model, x, loader = _subject(network, seed)
    return _measured(
        network, seed, model, METHODS[method](model, x, share, loader, SAMPLES[network], seed), x
    )


def run_photographs(method: str, share: float, seed: int, photographs: int) -> dict[str, Any]:
    model, loader, views, expected = _photographs(seed, photographs)
    small = METHODS[method](model, views[:2], share, loader, len(loader), seed)
    seen = torch.cat([b for b, _ in loader])
    return _against(expected, _logits(small, views)) | {
        "seen": _against(_logits(model, seen), _logits(small, seen))
    }


def _against(expected: torch.Tensor, found: torch.Tensor) -> dict[str, Any]:
    error = (found - expected).square().mean()
    return {
        "n": len(found),
        "agreement": float((found.argmax(1) == expected.argmax(1)).float().mean()),
        "sqnr": 10 * math.log10(float((expected - expected.mean(0)).square().mean() / error)),
    }


def run_tuned(method: str, share: float, seed: int, epochs: int) -> dict[str, Any]:
    model, x, loader = _subject("fashion", seed)
    small = METHODS[method](model, x, share, loader, SAMPLES["fashion"], seed)
    tuned = fit(small, loader, "cross_entropy", epochs=epochs, lr=RATE, seed=seed)
    return _measured("fashion", seed, model, tuned, x)


def _smaller(network: str, seed: int, by: str, share: float) -> nn.Module:
    """The network cut to a share of the MACs, or of the milliseconds on a runtime: made once, and
    then read from where the networks of this seed are kept.
    """
    model, x, loader = _subject(network, seed)
    folder = _kept_networks(network, seed) / f"{by}-{share}"
    if not (folder / "model.json").is_file():
        how: dict[str, Any] = {"macs": share} if by == "macs" else {"latency": share, "runtime": by}
        how |= {"criterion": "brain_surgeon", "allocation": "knapsack", "repair": "least-squares"}
        save(prune(model, x, data=loader, samples=SAMPLES[network], seed=seed, **how), folder)
    return load(folder, model)


def _kept_networks(network: str, seed: int) -> Path:
    return cache_folder() / "benchmarks" / f"pruning-{network}-{seed}"


def run_latency(network: str, seed: int) -> dict[str, Any]:
    model, x, _ = _subject(network, seed)
    made = {
        (by, share): _smaller(network, seed, by, share)
        for by, asked in TIMED[network].items()
        for share in asked
    }
    known = {cut: _measured(network, seed, model, small, x) for cut, small in made.items()}
    cuts = []
    for runtime in [by for by in TIMED[network] if by != "macs"]:
        timed = {cut: small for cut, small in made.items() if cut[0] in ("macs", runtime)}
        times = milliseconds({"original": model} | timed, example_inputs(x), runtime)
        for by, share in timed:
            time, low, high = share_of(times["original"], times[by, share])
            cuts.append(
                {
                    "runtime": runtime,
                    "by": by,
                    "share": share,
                    "time": time,
                    "low": low,
                    "high": high,
                }
                | known[by, share]
            )
    shutil.rmtree(_kept_networks(network, seed))
    return {"cuts": cuts}


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "fashion": partial(_run_untrained, "fashion"),
    "mobilenet_v2": partial(_run_untrained, "mobilenet_v2"),
    "photographs": run_photographs,
    "tuned": run_tuned,
    "latency": run_latency,
}


def wanted() -> list[dict[str, Any]]:
    """Every run, first seed first."""
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for kind in ("fashion", "mobilenet_v2"):
            runs += [
                {"kind": kind, "method": m, "share": s, "seed": seed}
                for s in SHARES
                for m in METHODS
            ]
        runs += [
            {
                "kind": "photographs",
                "method": BEST,
                "share": SHARES[0],
                "seed": seed,
                "photographs": n,
            }
            for n in PHOTOGRAPHS
        ]
        runs += [{"kind": "latency", "network": n, "seed": seed} for n in TIMED]
        runs += [
            {"kind": "tuned", "method": m, "share": 0.5, "seed": seed, "epochs": e}
            for e in EPOCHS
            for m in TUNED
        ]
    return runs


def do(run: dict[str, Any]) -> dict[str, Any]:
    seed_everything(run["seed"])
    return RUNS[run["kind"]](**{k: v for k, v in run.items() if k != "kind"})


def main() -> None:
    options = command(__doc__, RUNS)
    if not options.table:
        torch.set_num_threads(1)
        conditions = {"machine": machine(), "versions": versions("torch", "torch-pruning")}
        if "original" not in kept(RESULTS):
            conditions["original"] = evaluate(
                predictor(fashion.resnet()), fashion.data().test
            ).value
        carry_out(
            RESULTS, [r for r in wanted() if is_asked(r, options)], do, conditions, options.runs
        )
    print(table(kept(RESULTS)))


if __name__ == "__main__":
    main()
