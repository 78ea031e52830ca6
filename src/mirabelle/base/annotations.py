"""What the annotation of a parameter says, with aliases resolved, so that verbs can share the
declaration of an option. None that is meant as one goes missing in silence.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from typing_extensions import Doc

LATER = object()  # what only a type checker imports: `measure` must not import torch


def resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    """The type that an annotation says, an option where it is `Annotated` with a `Doc`.

    annotation: an object, or what was written, as under `from __future__ import annotations`.
    names: the globals of its module. A union may have members that only a type checker imports.

    Raises `TypeError` for what cannot be read, and for an option that would not be seen as one.
    """
    written = _members(annotation) if isinstance(annotation, str) else []
    members = [_evaluated(m, names) for m in written] or [annotation]
    if len(members) > 1:
        if any(_has_doc(m) for m in members):
            raise TypeError("has a Doc in a union; write Annotated[A | B, Doc(...)]")
        return Any if LATER in members else eval(annotation, dict(names))
    hint = members[0]
    while hasattr(hint, "__value__"):  # `type Name = ...`
        hint = hint.__value__
    if hint is LATER:
        raise TypeError("has a name that is not there at run time; import it for more than types")
    if get_origin(hint) is not Annotated:
        if _has_doc(hint):
            raise TypeError("has a Doc within a type; write Annotated[list[A], Doc(...)]")
    elif not any(isinstance(m, Doc) for m in hint.__metadata__):
        raise TypeError('has no Doc("..."), which says what the option is')
    return hint


def _members(annotation: str) -> list[ast.expr]:
    """Those of a union that is written with `|`; else the whole."""

    def of(node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return [*of(node.left), *of(node.right)]
        return [node]

    return of(ast.parse(annotation, mode="eval").body)


def _evaluated(node: ast.expr, names: Mapping[str, Any]) -> Any:
    try:
        return eval(ast.unparse(node), dict(names))
    except NameError:
        return LATER


def _has_doc(hint: Any) -> bool:
    """Whether there is a `Doc` anywhere in a type."""
    if hasattr(hint, "__value__"):
        return _has_doc(hint.__value__)
    if get_origin(hint) is Annotated:
        return any(isinstance(m, Doc) for m in hint.__metadata__) or _has_doc(hint.__origin__)
    arguments = [b for a in get_args(hint) for b in (a if isinstance(a, list) else [a])]
    return any(_has_doc(a) for a in arguments)
