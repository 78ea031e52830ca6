"""Metrics, of each sample or of all together, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from typing_extensions import Doc

from mirabelle.base.checks import running, shell
from mirabelle.base.data import Batch, batches, device_of, length_of
from mirabelle.base.errors import InputError
from mirabelle.base.names import resolve
from mirabelle.base.options import OneOf
from mirabelle.base.progress import track
from mirabelle.base.structures import leaves, mapped, on_cpu
from mirabelle.measurement.accumulator import Accumulator, is_higher_better, maker, metric_name
from mirabelle.measurement.bootstrap import DRAWS, Resampled

if TYPE_CHECKING:
    from mirabelle.runtimes.artifact import Artifact

Metric = str | Callable | Accumulator


@dataclass(frozen=True)
class Score:
    """A figure of `n` samples with its 95 % interval. binary: a mean of samples that count 0 or 1
    (then the interval is Wilson's). higher_is_better: else less is.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    binary: bool = True
    higher_is_better: bool = True

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
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def mean_interval(scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The normal interval of a mean, for metrics that are not 0 or 1 per sample."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else math.inf
    return float(scores.mean()) - half, float(scores.mean()) + half


def _class_scores(
    output: Any, target: torch.Tensor, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    output = as_tensor(output)
    if not isinstance(target, torch.Tensor):
        raise InputError(
            f"{metric} needs targets (N,), got a {type(target).__name__}; pass a metric of your "
            "own: a callable (output, target) -> scores (N,), or an object with update and compute"
        )
    if output.ndim != 2 or target.shape != output.shape[:1]:
        raise InputError(
            f"{metric} needs outputs (N, classes) and targets (N,), got {tuple(output.shape)} "
            f"and {tuple(target.shape)}; "
            "pass a metric of your own: a callable (output, target) -> scores (N,)"
        )
    return output, target


def top1(output: Any, target: torch.Tensor) -> torch.Tensor:
    """1 where the largest of the outputs (N, classes) is the target (N,), else 0."""
    output, target = _class_scores(output, target, "top1")
    return (output.argmax(1) == target).float()


def top5(output: Any, target: torch.Tensor) -> torch.Tensor:
    """1 where the target (N,) is among the five largest outputs (N, classes), else 0."""
    output, target = _class_scores(output, target, "top5")
    return (output.topk(min(5, output.shape[1]), 1).indices == target[:, None]).any(1).float()


METRICS: dict[str, Callable[[Any, Any], torch.Tensor]] = {"top1": top1, "top5": top5}
MetricOption = Annotated[
    Metric, OneOf(METRICS, plugin=True), Doc("the score of each sample, or an accumulator")
]


def score(samples: np.ndarray, metric: str) -> Score:
    """The mean of per-sample scores (N,) and its interval: Wilson's where they are 0 or 1, the
    normal one elsewhere.
    """
    n = len(samples)
    binary = bool(np.isin(samples, (0, 1)).all())
    low, high = wilson(float(samples.sum()), n) if binary else mean_interval(samples)
    return Score(metric, float(samples.mean()), low, high, n, binary)


@dataclass(frozen=True)
class Scores:
    """What a metric says of a network on some data. samples: each one's score, (N,); or draws: the
    figure of accumulators on resamples, the same ones for every network, (draws,).
    """

    metric: str
    value: float
    n: int
    higher: bool = True
    samples: np.ndarray | None = None
    draws: np.ndarray | None = None

    @classmethod
    def of_samples(cls, samples: np.ndarray, metric: str, higher: bool = True) -> Scores:
        return cls(metric, float(samples.mean()), len(samples), higher, samples)

    @property
    def rank(self) -> float:
        """The figure, or minus it where less is better."""
        return self.value if self.higher else -self.value

    def score(self) -> Score:
        if self.samples is not None:
            return replace(score(self.samples, self.metric), higher_is_better=self.higher)
        low, high = _around(self.value, self.draws)
        return Score(self.metric, self.value, low, high, self.n, False, self.higher)

    def drop(self, after: Scores) -> tuple[float, float, float]:
        """How much worse `after` is on the same samples, with its 95 % interval: (drop, low, high).
        Below zero where it is better.
        """
        sign = 1.0 if self.higher else -1.0
        if self.samples is not None and after.samples is not None:
            return paired_drop(sign * self.samples, sign * after.samples)
        change = sign * (self.value - after.value)
        if self.draws is None or after.draws is None or self.draws.shape != after.draws.shape:
            return change, -math.inf, math.inf
        return change, *_around(change, sign * (self.draws - after.draws))

    def to_array(self) -> np.ndarray:
        """For a file: the samples (N,), or [[value, n, draws...]]."""
        if self.samples is not None:
            return self.samples
        assert self.draws is not None
        return np.concatenate([[self.value, self.n], self.draws])[None]

    @classmethod
    def from_array(cls, found: np.ndarray, metric: Metric) -> Scores:
        name, higher = metric_name(metric), is_higher_better(metric)
        if found.ndim == 1:
            return cls.of_samples(found, name, higher)
        value, n, *draws = found[0].tolist()
        return cls(name, value, int(n), higher, draws=np.asarray(draws))


def _around(value: float, draws: np.ndarray | None) -> tuple[float, float]:
    """The normal interval with the spread of resamples, those left out that have no figure."""
    found = np.empty(0) if draws is None else draws[np.isfinite(draws)]
    if len(found) < 2 or draws is None or len(found) < len(draws) / 2:
        return -math.inf, math.inf
    half = NormalDist().inv_cdf(0.975) * float(found.std(ddof=1))
    return value - half, value + half


def as_tensor(output: Any) -> torch.Tensor:
    """The first tensor of what a network or a runtime returned, as float32 or its own
    integer type; a mask as 0 and 1, complex numbers as their two parts (..., 2).
    """
    if not isinstance(output, torch.Tensor):
        if isinstance(output, (tuple, list)) and output:
            return as_tensor(output[0])
        if (first := next(leaves(output), None)) is not None:
            output = first
    if not isinstance(output, (torch.Tensor, np.ndarray, np.generic, int, float)):
        raise InputError(
            f"the network's output is a {type(output).__name__} without a tensor; expected a "
            "tensor, or a tuple, list, dict or dataclass of them"
        )
    tensor = torch.as_tensor(output)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    mask = tensor.dtype is torch.bool
    return tensor.float() if tensor.is_floating_point() or mask else tensor


def scores_of(
    predict: Callable[[Batch], Any],
    loader: Iterable,
    metric: Metric = "top1",
    what: str = "evaluating",
    intervals: bool = True,
) -> Scores:
    """The metric of a network over a labeled loader, in the loader's order; see `evaluate`.

    intervals: False saves accumulators the resampling.
    """
    name = metric_name(metric)
    function: Any = (
        metric if isinstance(metric, Accumulator) else resolve(metric, METRICS, "metric")
    )
    make, samples, n = maker(function), [], 0
    whole = None if make is None else Resampled(make, name, DRAWS if intervals else 0)
    seen = track(batches(loader, labeled=True), what, length_of(loader))
    for number, batch in enumerate(seen):
        output = _sound(predict(batch), name, number)
        target = on_cpu(batch.target)
        n += batch.size
        with running(batch, f"batch {number}, or {name} on what it gives"):
            if whole is None:
                own = mapped(target, torch.Tensor.clone)  # a metric may write into it
                samples.append(_scores(function(output, own), batch.size, name, number))
            else:
                whole.add(output, target, batch.size)
    if whole is None:
        return Scores.of_samples(np.concatenate(samples), name, is_higher_better(function))
    draws = whole.draws() if intervals else None
    return Scores(name, whole.value, n, is_higher_better(function), draws=draws)


def _sound(output: Any, name: str, number: int) -> Any:
    """The outputs on the CPU; `InputError` names the batch where they are no numbers."""
    output = on_cpu(output)
    for tensor in leaves(output):
        if tensor.is_floating_point() and bool((tensor.isnan() | tensor.isposinf()).any()):
            raise InputError(
                f"the network's outputs for batch {number} are NaN or infinite, so {name} says "
                "nothing; look at its weights and at the batch"
            )
    return output


def _scores(found: Any, size: int, name: str, number: int) -> np.ndarray:
    """One finite score for each sample of a batch; `InputError` names the batch where not."""
    scores = np.asarray(torch.as_tensor(found).cpu(), dtype=np.float64)
    if scores.shape not in {(size,), (size, 1)}:
        raise InputError(
            f"{name} returns {scores.shape or 'one number'} for batch {number} of {size} "
            "samples; a metric gives each sample a score, (N,), and no mean of them; what is no "
            "mean of samples is an object with update(output, target) and compute()"
        )
    if bad := int((~np.isfinite(scores)).sum()):
        raise InputError(f"{name} is NaN or infinite on {bad} samples of batch {number}")
    return scores.reshape(-1)


def evaluate(
    predict: Callable[[Batch], Any],
    loader: Iterable,
    metric: Metric = "top1",
    what: str = "evaluating",
) -> Score:
    """The figure of `metric` over every sample of a labeled loader, with its interval.

    predict: maps a `Batch` to the outputs. metric: a name of `METRICS`; a callable (output, target)
    -> scores (N,); or an `Accumulator`, a class of them or a function that makes one. Outputs and
    targets come as they are, on the CPU. Higher is better unless the metric says
    `higher_is_better = False`.
    """
    return scores_of(predict, loader, metric, what).score()


def paired_drop(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """How much the mean fell from `before` to `after`, scores of the same samples, with its 95 %
    interval: (drop, low, high). Normal, on the differences.
    """
    low, high = mean_interval(before - after)
    return float((before - after).mean()), low, high


def predictor(model: torch.nn.Module | Artifact) -> Callable[[Batch], Any]:
    """`predict` for a file, or for a network: in eval mode, without an autograd graph, on the
    network's own device. It is a copy around the same parameters that runs.
    """
    if not isinstance(model, torch.nn.Module):
        return model.predict
    device, own = device_of(model), shell(model).eval()

    def predict(batch: Batch) -> Any:
        with torch.inference_mode(), running(batch, "the batch"):
            return batch.to(device).run(own)

    return predict


def in_form_of(output: Any, predict: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """`predict` of a file, which gives one array or a tuple of them, in the form that the network
    gave `output` in: a dict with its keys, a dataclass, lists in lists.
    """
    found, form = pytree.tree_flatten(output)
    places = [i for i, leaf in enumerate(found) if isinstance(leaf, torch.Tensor)]
    if isinstance(output, torch.Tensor):
        return predict

    def formed(batch: Batch) -> Any:
        given = predict(batch)
        given = given if isinstance(given, tuple) else (given,)
        if len(given) != len(places):
            return given[0] if len(given) == 1 else given
        filled = list(found)
        for place, value in zip(places, given):
            filled[place] = torch.as_tensor(value)
        return pytree.tree_unflatten(filled, form)

    return formed
