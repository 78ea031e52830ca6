"""Options that verbs of several rooms have. What only one room knows is declared there, beside what
it is about: losses in `fitting/gradients.py`, metrics in `measurement/accuracy.py`.

A verb takes one as it is, or adds to it: `Annotated[SeedOption, FromRun, Doc("of the order")]`. Of
two texts the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from mirabelle.base.options import Expected, FromRun

SeedOption = Annotated[int, Ge(0), Doc("of everything that is random")]
SamplesOption = Annotated[int, Ge(1), Doc("how many samples of data are read")]
KeepOption = Annotated[
    str | Iterable[str],
    Expected("a list of modules or parameters, such as [fc]"),
    Doc("modules or parameters that are left alone, by path"),
]
StepOption = Annotated[Callable | None, FromRun, Doc("(network, batch) -> loss, in place of loss")]
CheckpointOption = Annotated[
    str | Path | None, FromRun, Doc("a folder from which an interrupted run goes on")
]
