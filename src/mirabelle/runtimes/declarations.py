"""Options of verbs that speak of runtimes. They stand apart, since files are run where NumPy and a
runtime's package are all there is.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from mirabelle.base.options import Check, OneOf
from mirabelle.runtimes import RUNTIMES
from mirabelle.runtimes.artifact import check_threads

RuntimeOption = Annotated[str, OneOf(RUNTIMES), Doc("what the file is for")]
ThreadsOption = Annotated[int, Ge(1), Check(check_threads), Doc("with which the file is run")]
