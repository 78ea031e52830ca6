"""What accuracy is left after each step, on data that choose: the validation data where there are
some, else training data that are held back. The test data are for the last figures alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from mirabelle.base.data import Batch, preserved, samples, seed_epoch
from mirabelle.base.names import resolve
from mirabelle.measurement.accuracy import METRICS, Scores, predictor, scores_of
from mirabelle.measurement.agreement import METRIC, agreement
from mirabelle.pipeline.recipe import Recipe, Step
from mirabelle.report.units import change
from mirabelle.sources.callables import Loaders
from mirabelle.training.holdout import SHARE, split

MOST = 2048  # samples of a look
BETTER = ("fit", "distill")  # steps that can raise the accuracy again


def hold_back(recipe: Recipe, loaders: Loaders) -> Loaders:
    """The loaders with something to choose by: training data that no step sees, where there are no
    validation data. As they are where the data cannot be divided, or a file of a teacher's outputs
    knows each sample by its place.
    """
    saved = any(".safetensors" in str(s.options.get("teacher")) for s in recipe.steps)
    whole = isinstance(loaders.train, (DataLoader, list, tuple))
    if loaders.validation is not None or saved or not whole or not recipe.has_data:
        return loaders
    train, held = split(loaders.train, SHARE, recipe.seed)
    return replace(loaders, train=train, validation=held) if held else loaders


class Looks:
    """Scores networks, and files, by the recipe's metric; by agreement with the original's classes
    where the data have no labels.
    """

    def __init__(self, recipe: Recipe, loaders: Loaders, original: nn.Module, held: bool):
        self.recipe, self.loaders, self.original = recipe, loaders, original
        self.what = "held-out training data" if held else "the validation data"
        self._first: Scores | None = None
        self._few: list[Batch] | None = None

    @property
    def few(self) -> list[Batch]:
        """The samples that are looked at; none where nothing can choose."""
        if self._few is None:
            validation = self.loaders.validation
            self._few = []
            if validation is not None:
                with preserved(validation):
                    seed_epoch(validation, self.recipe.seed)
                    self._few = list(samples(validation, MOST, "the validation data"))
        return self._few

    @property
    def labeled(self) -> bool:
        given = bool(self.few) and self.few[0].target is not None
        return given and self.recipe.metric != METRIC

    def scores(self, predict: Callable[[Batch], Any], what: str) -> Scores | None:
        """None where there is nothing to look at, or no way to compare."""
        if not self.few:
            return None
        if self.labeled:
            metric = resolve(self.recipe.metric, METRICS, "metric")
            return replace(scores_of(predict, self.few, metric, what), metric=self.recipe.metric)
        theirs = predictor(self.original)
        few = [b._replace(target=theirs(b)) for b in self.few]
        return replace(scores_of(predict, few, agreement, what), metric="agreement")

    @property
    def first(self) -> Scores | None:
        """Those of the original."""
        if self._first is None:
            self._first = self.scores(predictor(self.original), "the original on held-out data")
        return self._first

    def fact(self, predict: Callable[[Batch], Any]) -> dict[str, Any] | None:
        """What is left, for a record: the figure, how many samples, and the drop from the
        original's.
        """
        if (first := self.first) is None:
            return None
        found = self.scores(predict, "what is left")
        assert found is not None
        drop, low, high = first.drop(found)
        return {
            "metric": found.metric,
            "on": self.what,
            "n": found.n,
            "share": found.score().binary,
            "value": found.value,
            "drop": drop,
            "interval": [v if math.isfinite(v) else None for v in (low, high)],
        }


def said(fact: Mapping[str, Any] | None) -> str:
    """`top1 93.40 %, 1.20 points lost, on held-out training data (n = 512)`; empty for None."""
    if fact is None:
        return ""
    name = str(fact["metric"]).rpartition(":")[2]
    figure = f"{100 * fact['value']:.2f} %" if fact["share"] else f"{fact['value']:.4g}"
    return (
        f"{name} {figure}, {change(fact['drop'], fact['share'])}, on {fact['on']} (n = {fact['n']})"
    )


def hopeless(
    recipe: Recipe, later: list[Step], fact: Mapping[str, Any] | None, macs: float | None
) -> str | None:
    """Why the limits that stop a run cannot be met any more; None while they can. later: the steps
    that are left. fact: of the last step. macs: the share that is left, where it is known.
    """
    limits, names = recipe.limits, {s.name for s in later}
    if limits.macs is not None and limits.stops("macs") and macs is not None:
        if macs > limits.macs and not {"prune", "factorize"} & set(names):
            return (
                f"{macs:.4g} of the MACs are left, the limit is {limits.macs:g}, and no later "
                "step prunes"
            )
    if limits.accuracy_drop is None or not limits.stops("accuracy_drop") or fact is None:
        return None
    trained = names & set(BETTER) or any(s.options.get("train") for s in later)
    low = fact["interval"][0]
    if trained or fact["metric"] != recipe.metric or low is None or low <= limits.accuracy_drop:
        return None
    return (
        f"accuracy_drop is {fact['drop']:.4g} on {fact['on']} (at least {low:.4g} of the 95 % "
        f"interval, n = {fact['n']}), the limit is {limits.accuracy_drop:g}, and no later step "
        "trains"
    )
