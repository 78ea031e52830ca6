"""Sparsity that grows while a network is trained: what `mb.fit(..., sparsify={"sparsity": 0.95})`
does between the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import tensors_of
from mirabelle.base.data import seeded
from mirabelle.base.errors import InputError
from mirabelle.base.identity import data_identity, function_identity
from mirabelle.base.keep import names_of
from mirabelle.base.options import Expected, OptionsOf, declared, options_of
from mirabelle.base.progress import quiet
from mirabelle.sparsity import masks
from mirabelle.sparsity.api import cut, ramp, rows_of, sparsify
from mirabelle.sparsity.criteria import NEEDS_GRADIENTS, NEEDS_INPUTS
from mirabelle.sparsity.layers import candidates


def _together(options: Mapping[str, Any]) -> None:
    if options["start"] > options["end"]:
        raise InputError(
            "start and end are shares of the training's steps, 0 <= start <= end <= 1; got "
            f"start={options['start']!r}, end={options['end']!r}"
        )


@declared(_together)
def _times(
    *,
    start: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("the share of the training's steps after which the first cut comes"),
    ] = 0.0,
    end: Annotated[
        float, Ge(0), Le(1), Doc("the share of the training's steps at which the last cut comes")
    ] = 0.75,
    cuts: Annotated[int, Ge(1), Doc("how many cuts there are")] = 10,
) -> None:
    """When the cuts of a training come."""


TIMES = options_of(_times)
OPTIONS = (
    options_of(sparsify)
    .without("seed", "rounds", "step")
    .with_defaults(criterion="magnitude", allocation="lamp", repair=None)
    | TIMES
)
SparsifyOption = Annotated[
    Mapping[str, Any] | None,
    OptionsOf(lambda: OPTIONS),
    Expected("options of mb.sparsify, such as {'sparsity': 0.9}"),
    Doc("options of mb.sparsify, for zeros that become more while the network is trained"),
]


class Gradual:
    """The cuts of one training run. options: those of `mb.sparsify` but `seed` and `rounds`, and
    `start`, `end` and `cuts`; `repair` is None unless given.

    The sparsity after the cut at progress t, from 0 at `start` to 1 at `end`, is `sparsity * (1 -
    (1 - t)³)`: Zhu & Gupta 2017, eq. 1. Between the cuts the zeros stay.
    data: what criteria and repairs read unless the options name a loader of their own.
    """

    def __init__(
        self, options: Mapping[str, Any], model: nn.Module, data: Iterable, total: int, seed: int
    ):
        OPTIONS.check(options)
        self.options = {**OPTIONS.defaults, **options}
        self.seed = seed
        start, end, cuts = (self.options.pop(key) for key in TIMES)
        self.own_data = self.options["data"] is not None
        if not self.own_data:
            self.options["data"] = data
            if getattr(data, "persistent_workers", False) and self._reads_data():
                raise InputError(
                    f"sparsify with criterion={self.options['criterion']!r} and "
                    f"repair={self.options['repair']!r} reads the training data between steps, "
                    "which a loader with "
                    "persistent_workers cannot give; name another loader: sparsify={..., "
                    "'data': loader}"
                )
        first, last = (min(total - 1, round(share * total)) for share in (start, end))
        self.steps: dict[int, float] = {}
        for i in range(1, cuts + 1):
            progress = i / cuts
            self.steps[first + round((last - first) * progress)] = self.options["sparsity"] * ramp(
                progress
            )
        del self.options["sparsity"]
        self.options["keep"] = names_of(self.options["keep"])
        self.names = candidates(model, self.options["keep"])
        self.block = rows_of(self.options["block"])

    def _reads_data(self) -> bool:
        criterion = self.options["criterion"]
        return (
            self.options["repair"] is not None
            or callable(criterion)
            or ":" in criterion
            or criterion in NEEDS_GRADIENTS | NEEDS_INPUTS
        )

    def resume(self, model: nn.Module, done: int) -> None:
        """Marks what the cuts before step `done` have marked, in place; the zeros themselves are in
        the weights.
        """
        if any(step < done for step in self.steps):
            masks.mark(model, dict.fromkeys(self.names, self.block))

    def before_step(self, model: nn.Module, done: int) -> bool:
        """Makes the cut that is due before step `done`, in place; whether there was one. The random
        generators are left as they were.
        """
        if done not in self.steps:
            return False
        with seeded(self.seed * 1_000_003 + done, self.options["data"]), quiet():
            mode = model.training
            smaller = cut(model.eval(), model, self.steps[done], **self.options)
            model.train(mode)
        with torch.no_grad():
            found = tensors_of(smaller)
            for name, tensor in tensors_of(model).items():
                tensor.copy_(found[name])
        masks.mark(model, masks.blocks(smaller))
        return True

    def finished(self, done: int) -> bool:
        """Whether all cuts are made after `done` steps."""
        return done > max(self.steps)

    def identity(self) -> dict[str, Any]:
        """What tells this run from others, as JSON."""
        named = {
            k: function_identity(v) if callable(v) else list(v) if isinstance(v, tuple) else v
            for k, v in self.options.items()
            if k != "data"
        }
        if self.own_data:
            named["data"] = data_identity(self.options["data"], self.seed)
        return {**named, "steps": {str(k): v for k, v in self.steps.items()}}
