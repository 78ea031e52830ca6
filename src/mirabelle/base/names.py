"""Names of plain functions: an entry of a dict, `package.module:function`, or the callable
itself.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mirabelle.base.errors import InputError, MirabelleError, choose, did_you_mean, first_line


def resolve(name: str | Callable, table: Mapping[str, Any], what: str) -> Any:
    """The function that `name` stands for; `InputError` with the near misses where there is
    none.
    """
    if callable(name):
        return name
    if isinstance(name, str) and ":" in name:
        return load(name, what)
    return choose(name, table, what)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """What a function of the user's raises inside becomes an `InputError` that names it. What needs
    the batch beside it is `checks.running`.
    """
    try:
        yield
    except MirabelleError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what} fails: {reason}") from error


def load(reference: str, what: str) -> Any:
    """Imports `package.module:attribute`. `InputError` says whether the module or the attribute is
    missing, or is nothing that can be called.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (
            f"there is no module {error.name!r} to import; run where it can be imported, "
            "or set PYTHONPATH"
        )
        raise InputError(f"{what} {reference!r}: {missing}") from error
    except Exception as error:
        raise InputError(
            f"{what} {reference!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        package = module_name.partition(".")[0]  # what it imports from elsewhere is not meant
        names = [
            n
            for n, v in vars(module).items()
            if n[0] != "_"
            and callable(v)
            and str(getattr(v, "__module__", "")).partition(".")[0] == package
        ]
        raise InputError(
            f"{what} {reference!r}: {module_name} has no "
            f"{attribute!r}{did_you_mean(attribute, names)}"
        )
    found = getattr(module, attribute)
    if not callable(found):
        raise InputError(
            f"{what} {reference!r} is a {type(found).__name__}; expected a function or a class"
        )
    return found
