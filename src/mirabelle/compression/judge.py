"""How much worse a network does than the original, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mirabelle.base.data import Batch, batches
from mirabelle.base.names import resolve
from mirabelle.measurement.accuracy import (
    METRICS,
    metric_name,
    paired_drop,
    predictor,
    sample_scores,
)
from mirabelle.quantization.search.fallback import same_class


class Judge:
    """By the metric where the samples have labels, else by agreement with the original's classes.

    scores: the original's, by sample.
    """

    def __init__(self, model: Any, data: Iterable, metric: str | Callable, labelled: bool):
        self.data, self.labelled, self.asked = data, labelled, metric
        self.metric = metric_name(metric) if labelled else "agreement"
        self.function = resolve(metric, METRICS, "metric") if labelled else same_class
        self.model = predictor(model)
        self.scores = self.of(self.model)

    def of(self, predict: Callable[[Batch], Any], what: str = "validating") -> np.ndarray:
        """(N,) the scores of what `predict` gives."""
        if self.labelled:
            return sample_scores(predict, self.data, self.function, what)
        return np.concatenate(
            [
                same_class(predict(b), self.model(b)).cpu().numpy()
                for b in batches(self.data, what="the validation data")
            ]
        )

    def drop(self, scores: np.ndarray) -> tuple[float, float, float]:
        """(drop, low, high), as fractions, paired."""
        return paired_drop(self.scores, scores)
