"""How much worse a network does than the original, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.names import resolve
from mirabelle.measurement.accuracy import (
    METRICS,
    metric_name,
    paired_drop,
    predictor,
    sample_scores,
)
from mirabelle.measurement.agreement import Answered, agreement


class Judge:
    """By the metric where the samples have labels, else by agreement with the original.

    scores: the original's, by sample.
    """

    def __init__(self, model: nn.Module, data: Iterable, metric: str | Callable, labelled: bool):
        self.data = data if labelled else Answered(data, model)
        self.asked = metric
        self.metric = metric_name(metric) if labelled else "agreement"
        self.function = resolve(metric, METRICS, "metric") if labelled else agreement
        self.scores = self.of(predictor(model))

    def of(self, predict: Callable[[Batch], Any], what: str = "validating") -> np.ndarray:
        """(N,) the scores of what `predict` gives."""
        return sample_scores(predict, self.data, self.function, what)

    def drop(self, scores: np.ndarray) -> tuple[float, float, float]:
        """(drop, low, high), as fractions, paired."""
        return paired_drop(self.scores, scores)
