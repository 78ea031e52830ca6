"""Orders of steps that cannot work, and limits that no run of them can meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mirabelle.base.errors import RecipeError
from mirabelle.runtimes import RUNTIMES

if TYPE_CHECKING:
    from mirabelle.pipeline.recipe import Limits, Step

NETWORK = (
    "prune",
    "factorize",
    "sparsify",
    "distill",
    "fit",
    "quantize",
)  # steps that change the network
WITHOUT_DATA = ("prune", "quantize", "export", "verify")


def check_order(steps: Sequence[Step]) -> None:
    """`RecipeError` for an order that cannot work."""
    names = [s.name for s in steps]
    for name in ("quantize", "export", "verify"):
        if names.count(name) > 1:
            raise RecipeError(f"the recipe has {names.count(name)} {name} steps; one is enough")
    for i in range(len(steps)):
        _check_place(i, steps)
    exported, quantized = ("export" in names), ("quantize" in names)
    if "verify" in names and (
        not quantized or not exported or names.index("export") > names.index("verify")
    ):
        raise RecipeError(
            "verify compares a quantized network with its exported files: put quantize and "
            "export before it"
        )
    if quantized and exported:
        quantize, export = (steps[names.index(n)].options for n in ("quantize", "export"))
        _check_files(quantize, export)


def _check_place(i: int, steps: Sequence[Step]) -> None:
    """Whether step `i` may stand where it does."""
    step, before = steps[i], steps[:i]
    names = {s.name for s in before}
    quantized = "quantize" in names
    if step.name == "prune" and quantized:
        raise RecipeError(f"step {i + 1} prunes a quantized network; prune first, then quantize")
    if step.name == "prune" and any(makes_sparse(s) for s in before):
        raise RecipeError(
            f"step {i + 1} prunes channels of a sparse network, whose zeros would not stay; "
            "prune first, then sparsify"
        )
    if step.name == "factorize" and (quantized or any(makes_sparse(s) for s in before)):
        raise RecipeError(
            f"step {i + 1} factorizes a {'quantized' if quantized else 'sparse'} network, which "
            "cannot be done; factorize first"
        )
    if makes_sparse(step) and quantized:
        raise RecipeError(
            f"step {i + 1} ({step.name}) makes a quantized network sparse; sparsify first, then "
            "quantize"
        )
    if step.name in NETWORK and "export" in names:
        raise RecipeError(
            f"step {i + 1} ({step.name}) comes after export and would not be in the files; move "
            "export after it"
        )
    if step.name == "distill" and "float" in listed(step.options.get("teacher")) and not quantized:
        raise RecipeError(
            f"step {i + 1} (distill) has the teacher 'float', the network before it was "
            "quantized, and nothing is quantized before it"
        )


def _check_files(quantize: Any, export: Any) -> None:
    """Whether runtimes can run what is quantized so."""
    for key in ("bits", "weight_bits"):
        bits = quantize.get(key) or 8
        if bits > 8 or (key == "bits" and bits < 8):
            raise RecipeError(
                f"quantize has {key}: {bits} and export writes files for runtimes, which take "
                "8; drop one of them"
            )
    if quantize.get("accuracy_drop") is not None and quantize.get("fallback") == 16:
        raise RecipeError(
            "quantize has fallback: 16 and export writes files for runtimes, which take 8 bits; "
            "let layers fall back to float"
        )
    for runtime in export.get("runtimes", []):
        if not RUNTIMES[runtime].int8:
            raise RecipeError(
                f"export has {runtime!r}, which does not run quantized networks; drop it, "
                "or the quantize step"
            )


def check_limits(limits: Limits, steps: Sequence[Step]) -> None:
    """Limits that no run of these steps can meet."""
    names = {s.name for s in steps}
    for key in ("accuracy_drop", "speedup", "size_ratio"):
        if getattr(limits, key) is not None and "export" not in names:
            raise RecipeError(
                f"limits.{key} is measured on a runtime, and no step exports: add '- export: "
                "{runtimes: [onnxruntime]}'"
            )
    kept = 1.0
    for step in steps:
        if step.name == "prune":
            kept *= step.options.get("macs") or 1.0
    # The cut ends just under its target: far below it would be another recipe.
    if limits.macs is not None and limits.macs < kept:
        raise RecipeError(
            f"limits.macs is {limits.macs:g} and the prune steps keep {kept:g}: the limit "
            "contradicts them; lower macs in the step"
        )
    if (
        limits.size_ratio is not None
        and not names & {"prune", "factorize"}
        and not any(makes_sparse(s) for s in steps)
    ):
        most = 4.0 if "quantize" in names else 1.0
        if limits.size_ratio > most:
            raise RecipeError(
                f"limits.size_ratio is {limits.size_ratio:g}; without a prune step the file can "
                f"shrink at most {most:g} times"
            )


def check_without_data(limits: Limits, steps: Sequence[Step]) -> None:
    """Steps, options and limits that need data, of which the recipe names none."""
    needs = [f"step {i} ({s.name})" for i, s in enumerate(steps, 1) if s.name not in WITHOUT_DATA]
    needs += [
        f"{key} of step {i} ({s.name})"
        for i, s in enumerate(steps, 1)
        for key in ("accuracy_drop", "train", "depth")
        if s.options.get(key)
    ]
    needs += ["limits.accuracy_drop"] if limits.accuracy_drop is not None else []
    if needs:
        raise RecipeError(
            f"there are no data, which {needs[0]} needs; name some as data (--data), in a mapping "
            f"as 'folder'. Without data there are {', '.join(WITHOUT_DATA)}"
        )


def makes_sparse(step: Step) -> bool:
    return step.name == "sparsify" or step.options.get("sparsify") is not None


def listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]
