"""How much worse a network does than the original, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from mirabelle.base.data import Batch, batches, preserved, seed_epoch
from mirabelle.measurement.accuracy import (
    Metric,
    Scores,
    in_form_of,
    metric_name,
    predictor,
    scores_of,
)
from mirabelle.measurement.agreement import Answered, agreement
from mirabelle.measurement.changed import Watch
from mirabelle.runtimes import Artifact


class Judge:
    """By the metric where the samples have labels, else by agreement with the original.

    labeled: None looks at the first batch. scores: the original's.
    """

    def __init__(
        self, model: nn.Module, data: Iterable, metric: Metric, labeled: bool | None = None
    ):
        first = next(batches(data, 1, what="the validation data"))
        if labeled is None:
            labeled = first.target is not None
        self.data, self.labeled = data if labeled else Answered(data, model), labeled
        self.asked = metric
        self.function = metric if labeled else agreement
        self.metric = metric_name(self.function)
        run = predictor(model)
        self.example = run(first.head(1))
        self.scores = self.of(run)

    def of(self, predict: Callable[[Batch], Any], what: str = "validating") -> Scores:
        """What the metric says of what `predict` gives."""
        with preserved(self.data):
            seed_epoch(self.data, 0)  # the same samples in the same order each time: scores pair
            return scores_of(predict, self.data, self.function, what)

    def of_file(
        self, file: Artifact, what: str = "validating", watch: Watch | None = None, name: str = ""
    ) -> Scores:
        """What the metric says of a file, whose outputs are given in the network's own form. watch:
        sees them, under a name.
        """
        predict = in_form_of(self.example, file.predict)
        return self.of(predict if watch is None else watch.watched(predict, name, ""), what)

    def drop(self, scores: Scores) -> tuple[float, float, float]:
        """(drop, low, high), paired; of a metric that is a mean as fractions."""
        return self.scores.drop(scores)
