"""What losses, mixtures and caches have to agree on, checked before any network runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.distillation.features import FEATURE_LOSSES
from mirabelle.distillation.losses import LOSSES, SOFTMAX
from mirabelle.distillation.objective import HEAD, OTHERS


def parts_of(
    losses: Mapping[str, float] | None, features: Mapping[str, str] | None
) -> dict[str, float]:
    """The losses that count, with their weights."""
    parts = dict(losses or {"dist": 1.0})
    if features and not set(FEATURE_LOSSES) & set(parts):
        parts["features"] = 1.0
    return parts


def default_ensemble(losses: Iterable[str]) -> str:
    """The mixture that fits what the losses read."""
    names = set(losses)
    if names & SOFTMAX:
        return "probabilities"
    return "binary" if "binary_kd" in names else "logits"


def check_losses(
    losses: Mapping[str, float], features: Mapping[str, str] | None, head: bool = False
) -> None:
    """`InputError` for losses that do not exist or cannot be weighed; needs no network."""
    for name, weight in losses.items():
        if name not in LOSSES and name not in OTHERS and ":" not in str(name):
            raise InputError(f"losses has {name!r}{did_you_mean(str(name), [*LOSSES, *OTHERS])}")
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 <= weight < float("inf")
        ):
            raise InputError(f"losses[{name!r}] is {weight!r}; expected a weight of at least 0")
    if not any(losses.values()):
        raise InputError("all losses have weight 0; there is nothing to learn")
    for name in FEATURE_LOSSES:
        if name in losses and not features:
            raise InputError(
                f"losses has {name!r}; say which with features={{'student layer': 'teacher layer'}}"
            )
    for name in HEAD:
        if name in losses and not head:
            raise InputError(
                f"losses has {name!r}; give the teacher's classifier of embeddings with head="
            )
    if head and not set(HEAD) & set(losses):
        raise InputError(
            "head is given and no loss reads it; add 'head' or 'head_labels' to losses"
        )


def check_cache(
    losses: Mapping[str, float], cache: str | Path | None, precision: str, top: int | None
) -> None:
    """`InputError` for a cache that could not serve these losses; needs no network."""
    if cache is None:
        if top is not None or precision != "float32":
            raise InputError(
                "cache_top and cache_precision say how a cache keeps outputs; name its folder "
                "with cache="
            )
        return
    if Path(cache).exists() and not Path(cache).is_dir():
        raise InputError(f"cache is {str(cache)!r}, which is a file; expected a folder")
    if layers := [n for n in FEATURE_LOSSES if losses.get(n)]:
        raise InputError(
            f"cache keeps the teachers' outputs, and the loss {layers[0]!r} needs their layers; "
            "drop one of the two"
        )
    if top is not None and (
        other := [n for n in losses if n not in ("kd", "dist", "decoupled_kd", "labels")]
    ):
        raise InputError(
            f"cache_top keeps the largest probabilities of a softmax, and the loss {other[0]!r} "
            "reads more than these; leave cache_top out"
        )
