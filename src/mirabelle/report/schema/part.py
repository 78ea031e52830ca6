"""Dataclasses as JSON and back. What is read is not trusted: what is missing, or of another kind
than its field, is None or empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Read = TypeVar("Read", bound="Part")


class Part:
    """A mapping of the file, read by `of`, written by `to_dict`."""

    @classmethod
    def of(cls: type[Read], found: Any) -> Read:
        """From JSON; unknown keys are left out."""
        known = found if isinstance(found, dict) else {}
        return cls(**{name: read(known.get(name)) for name, read in _readers(cls).items()})

    @classmethod
    def nothing(cls: type[Read]) -> Read:
        """The part where the file does not have it."""
        return cls.of(None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; a part inside of which nothing is known is None."""
        found = {name: getattr(self, name) for name in _readers(type(self))}
        return {k: None if isinstance(v, Part) and not v else as_json(v) for k, v in found.items()}

    def __bool__(self) -> bool:
        values = (getattr(self, name) for name in _readers(type(self)))
        return any(bool(v) if isinstance(v, (Part, list, dict)) else v is not None for v in values)


def as_json(value: Any) -> Any:
    """Parts, mappings and sequences as JSON has them; a number that is not finite is None."""
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _readers(part: type) -> dict[str, Callable[[Any], Any]]:
    return {name: _reader(hint) for name, hint in get_type_hints(part).items()}


def _reader(hint: Any) -> Callable[[Any], Any]:
    """From a value of JSON to the declared type; None, or empty, where it is of another."""
    origin, inside = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Part):
        return hint.of
    if origin is list:
        one, of = _reader(inside[0]), inside[0]
        parts = get_origin(of) is dict or (isinstance(of, type) and issubclass(of, Part))
        return lambda v: (
            [one(e) for e in v if not parts or isinstance(e, dict)]
            if isinstance(v, (list, tuple))
            else []
        )
    if origin is dict:
        one = _reader(inside[1])
        return lambda v: {str(k): one(e) for k, e in v.items()} if isinstance(v, dict) else {}
    kind = next((a for a in inside if a is not type(None)), hint)
    if get_origin(kind) is list:
        return lambda v: _reader(kind)(v) if isinstance(v, (list, tuple)) else None
    return {float: _number, str: _text, bool: _truth}.get(kind, lambda v: v)


def _number(value: Any) -> Any:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if real and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, (dict, list)) else str(value)


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)


def unknown(part: type[Part], found: Any, path: str = "") -> list[str]:
    """The keys of a file that this does not know, as `stages.runtimes.accuracy.n`."""
    if not isinstance(found, dict):
        return []
    said, hints = [], get_type_hints(part)
    for key, value in found.items():
        if key not in hints:
            said.append(f"{path}{key}")
            continue
        hint, values = hints[key], [value]
        while get_origin(hint) in (list, dict):
            insides = [v.values() if isinstance(v, dict) else v or [] for v in values]
            values, hint = [e for v in insides for e in v], get_args(hint)[-1]
        if isinstance(hint, type) and issubclass(hint, Part):
            said += [u for v in values for u in unknown(hint, v, f"{path}{key}.")]
    return list(dict.fromkeys(said))
