"""Options that `mb.distill` and the callbacks of other trainers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt
from typing_extensions import Doc

from mirabelle.base.options import Expected, OneOf
from mirabelle.distillation.ensembles import ENSEMBLES, RANDOM

TemperatureOption = Annotated[float, Gt(0), Doc("of the softmax")]
EnsembleOption = Annotated[
    str | None,
    OneOf(lambda: (*ENSEMBLES, RANDOM)),
    Doc("how several teachers become one; None is what the losses read"),
]
TeacherWeightsOption = Annotated[
    Sequence[float] | None,
    Expected("a list of numbers, one for each teacher"),
    Doc("how much each teacher counts, of any sum; None is equally"),
]
