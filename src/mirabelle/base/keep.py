"""`keep=`: names of modules and parameters that a technique leaves alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.options import shown


def names_of(keep: str | Iterable[str]) -> list[str]:
    """A single name is one, not its letters. `InputError` for what is no name."""
    names = [keep] if isinstance(keep, str) else list(keep)
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f"keep names a {type(name).__name__}, {shown(name)}; expected names of modules or "
                "parameters, such as ['fc']"
            )
    return names


def covers(keep: str | Iterable[str], *paths: str) -> bool:
    """Whether `keep` names one of these modules or parameters, or a module around it."""
    names = names_of(keep)
    return any(p == k or p.startswith(f"{k}.") for p in paths for k in names)


def check_keep(model: nn.Module, keep: str | Iterable[str]) -> list[str]:
    """The names. `InputError` for one that the network does not have."""
    names = names_of(keep)
    modules = (n for n, _ in model.named_modules(remove_duplicate=False) if n)
    parameters = (n for n, _ in model.named_parameters(remove_duplicate=False))
    known = [*modules, *parameters] if names else []
    for name in names:
        if name not in known:
            raise InputError(
                f"keep names {name!r}, which is no module or parameter of "
                f"{type(model).__name__}{did_you_mean(name, known)}"
            )
    return names
