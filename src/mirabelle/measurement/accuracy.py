"""Metrics, per sample, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from mirabelle.base.checks import running, shell
from mirabelle.base.data import Batch, batches, device_of, length_of
from mirabelle.base.errors import InputError
from mirabelle.base.names import resolve
from mirabelle.base.progress import track


@dataclass(frozen=True)
class Score:
    """A mean over `n` samples with its 95 % interval; `binary` says that every sample counts 0 or 1
    (then it is Wilson's).
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    binary: bool = True

    def __str__(self) -> str:
        if self.binary:
            return (
                f"{self.metric} {100 * self.value:.2f} % [{100 * self.low:.2f}, "
                f"{100 * self.high:.2f}], n = {self.n}"
            )
        return f"{self.metric} {self.value:.5g} [{self.low:.5g}, {self.high:.5g}], n = {self.n}"


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion, as fractions. Wilson 1927, eq. 4; stays inside [0, 1] and
    is sound near its ends.
    """
    if n < 1:
        raise InputError(f"an interval needs at least one sample, got n = {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The normal interval of a mean, for metrics that are not 0 or 1 per sample."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else math.inf
    return float(scores.mean()) - half, float(scores.mean()) + half


def _class_scores(
    output: torch.Tensor, target: torch.Tensor, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if output.ndim != 2 or target.shape != output.shape[:1]:
        raise InputError(
            f"{metric} needs outputs (N, classes) and targets (N,), got {tuple(output.shape)} "
            f"and {tuple(target.shape)}; "
            "pass a metric of your own: a callable (output, target) -> scores (N,)"
        )
    return output, target


def top1(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 where the largest of the outputs (N, classes) is the target (N,), else 0."""
    output, target = _class_scores(output, target, "top1")
    return (output.argmax(1) == target).float()


def top5(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 where the target (N,) is among the five largest outputs (N, classes), else 0."""
    output, target = _class_scores(output, target, "top5")
    return (output.topk(min(5, output.shape[1]), 1).indices == target[:, None]).any(1).float()


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "top1": top1,
    "top5": top5,
}


def score(samples: np.ndarray, metric: str) -> Score:
    """The mean of per-sample scores (N,) and its interval: Wilson's where they are 0 or 1, the
    normal one elsewhere.
    """
    n = len(samples)
    binary = bool(np.isin(samples, (0, 1)).all())
    low, high = wilson(float(samples.sum()), n) if binary else mean_interval(samples)
    return Score(metric, float(samples.mean()), low, high, n, binary)


def as_tensor(output: Any) -> torch.Tensor:
    """The first tensor of what a network or a runtime returned, as float32 or its own
    integer type.
    """
    if isinstance(output, (tuple, list)):
        return as_tensor(output[0])
    if isinstance(output, dict):
        return as_tensor(next(iter(output.values())))
    tensor = torch.as_tensor(output)
    return tensor.float() if tensor.is_floating_point() else tensor


def sample_scores(
    predict: Callable[[Batch], Any],
    loader: Iterable,
    metric: str | Callable = "top1",
    what: str = "evaluating",
) -> np.ndarray:
    """The metric of every sample of a labelled loader, (N,) float64, in the loader's order; see
    `evaluate`.
    """
    function = resolve(metric, METRICS, "metric")
    total = length_of(loader)
    seen = track(batches(loader, labelled=True), what, total)
    name = metric_name(metric)
    return np.concatenate([_scores(predict, b, function, name, i) for i, b in enumerate(seen)])


def _scores(
    predict: Callable[[Batch], Any], batch: Batch, metric: Callable, name: str, number: int
) -> np.ndarray:
    """One finite score for each sample of a batch; `InputError` names the batch where not."""
    output = as_tensor(predict(batch)).cpu()
    if output.is_floating_point() and bool((output.isnan() | output.isposinf()).any()):
        raise InputError(
            f"the network's outputs for batch {number} are NaN or infinite, so {name} says "
            "nothing; look at its weights and at the batch"
        )
    found = metric(output, torch.as_tensor(batch.target).cpu())
    scores = np.asarray(torch.as_tensor(found).cpu(), dtype=np.float64)
    if scores.shape not in {(batch.size,), (batch.size, 1)}:
        raise InputError(
            f"{name} returns {scores.shape or 'one number'} for batch {number} of {batch.size} "
            "samples; a metric gives each sample a score, (N,), and no mean of them"
        )
    if bad := int((~np.isfinite(scores)).sum()):
        raise InputError(f"{name} is NaN or infinite on {bad} samples of batch {number}")
    return scores.reshape(-1)


def evaluate(
    predict: Callable[[Batch], Any],
    loader: Iterable,
    metric: str | Callable = "top1",
    what: str = "evaluating",
) -> Score:
    """The mean of `metric` over every sample of a labelled loader.

    predict: maps a `Batch` to the outputs. metric: a name of `METRICS` or a callable (output,
    target) -> scores (N,), higher is better.
    """
    return score(sample_scores(predict, loader, metric, what), metric_name(metric))


def metric_name(metric: str | Callable) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def paired_drop(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """How much the mean fell from `before` to `after`, scores of the same samples, with its 95 %
    interval: (drop, low, high). Normal, on the differences.
    """
    low, high = mean_interval(before - after)
    return float((before - after).mean()), low, high


def predictor(model: torch.nn.Module) -> Callable[[Batch], torch.Tensor]:
    """`predict` for a network: in eval mode, without an autograd graph, on the network's own
    device. It is a copy around the same parameters that runs.
    """
    device, own = device_of(model), shell(model).eval()

    def predict(batch: Batch) -> torch.Tensor:
        with torch.inference_mode(), running(batch, "the batch"):
            return as_tensor(batch.to(device).run(own))

    return predict
