"""The options of each step of a recipe: those of the verbs, but for what the run gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from typing_extensions import Doc

from mirabelle.base.errors import InputError
from mirabelle.base.options import Check, OneOf, Options, options_of
from mirabelle.distillation.api import distill
from mirabelle.distillation.checks import default_ensemble, parts_of
from mirabelle.distillation.teachers import check_mixture
from mirabelle.pipeline.order import listed
from mirabelle.pruning.api import prune
from mirabelle.pruning.factorization import factorize
from mirabelle.quantization.api import quantize
from mirabelle.runtimes import RUNTIMES, check_runs_here
from mirabelle.runtimes.declarations import ThreadsOption
from mirabelle.sparsity.api import sparsify
from mirabelle.training.api import fit
from mirabelle.verification.api import verify

OWN = ("original", "float")  # teachers that are the run's own networks


def _check_teachers(teachers: Any) -> None:
    if teachers == []:
        raise InputError("an empty list; name at least one, such as 'original'")
    for teacher in listed(teachers):
        if (
            teacher is not None
            and teacher not in OWN
            and ":" not in teacher
            and not teacher.endswith((".onnx", ".pt2", ".safetensors"))
        ):
            raise InputError(
                f"teacher is {teacher!r}; expected 'original', 'float', 'module:callable', a "
                "file (.onnx, .pt2, .safetensors), or a list of these"
            )


def _teacher(
    *,
    teacher: Annotated[
        str | Sequence[str] | None,
        Check(_check_teachers),
        Doc("original, float, module:callable, a file, or a list; None is float, or original"),
    ] = None,
) -> None:
    """Which networks the step `distill` learns from."""


def _mixture(options: Mapping[str, Any]) -> None:
    teachers = len(listed(options["teacher"]))
    if teachers > 1 and options["features"]:
        raise InputError(
            "features needs a single teacher; of an ensemble it is not clear which layer is meant"
        )
    check_mixture(
        teachers,
        options["ensemble"] or default_ensemble(parts_of(options["losses"], options["features"])),
        options["weights"],
        options["teacher_temperatures"],
    )


def _check_runtimes(runtimes: Any) -> None:
    if not runtimes:
        raise InputError("an empty list; name at least one, such as onnxruntime")
    for name in runtimes:
        if runtimes.count(name) > 1:
            raise InputError(f"{name!r} is there twice")
        check_runs_here(name)


def _export(
    *,
    runtimes: Annotated[
        Sequence[Annotated[str, OneOf(RUNTIMES)]],
        Check(_check_runtimes),
        Doc("a list of those that files are written for"),
    ] = ("onnxruntime",),
    threads: Annotated[ThreadsOption, Doc("with which the files are run and timed")] = 1,
) -> None:
    """The step `export`, for every runtime at once."""


STEPS: dict[str, Options] = {
    "prune": options_of(prune).in_recipes.assuming(data=()),
    "factorize": options_of(factorize).in_recipes.assuming(data=()),
    "sparsify": options_of(sparsify).in_recipes,
    "distill": Options(options_of(_teacher).values(), _mixture) | options_of(distill).in_recipes,
    "fit": options_of(fit).in_recipes,
    "quantize": options_of(quantize).in_recipes.assuming(validation=()),
    "export": options_of(_export),
    "verify": options_of(verify).in_recipes,
}
