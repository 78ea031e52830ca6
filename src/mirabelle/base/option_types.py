"""What an option may be: the markers of its declaration, the type that pydantic takes for it, and
how a message says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.names import load

if TYPE_CHECKING:
    from mirabelle.base.options import Options

NOWHERE = object()  # the form of a type that cannot be written in a file
PLAIN = (str, int, float, bool, NoneType)


@dataclass(frozen=True, eq=False)
class OneOf:
    """A name of `table`: a dict, names, or a function that gives them where importing them here
    would take long. plugin: `package.module:function` is taken too.
    """

    table: Mapping[str, Any] | Iterable[str] | Callable[[], Any]
    plugin: bool = False

    @property
    def names(self) -> list[str]:
        return list(self.table() if callable(self.table) else self.table)

    def refuse(self, value: Any) -> str:
        """What is wrong with `value`, as the end of a sentence; empty where nothing is."""
        names = self.names
        if isinstance(value, str) and value in names:
            return ""
        if isinstance(value, str) and self.plugin and ":" in value:
            try:
                load(value, "it")
            except InputError as error:
                return str(error).removeprefix(f"it {value!r}")
            return ""
        if isinstance(value, str):
            return did_you_mean(value, names)
        also = [", or 'package.module:function'"] * self.plugin
        return f"; expected one of {', '.join(names)}{''.join(also)}"


@dataclass(frozen=True, eq=False)
class OptionsOf:
    """A mapping of the options that `verb` gives. except_in_recipes: those that a recipe cannot set
    here.
    """

    verb: Callable[[], Options]
    except_in_recipes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Check:
    """`function` raises `InputError` for what bounds and types cannot say. None, where the type
    has it, is not asked about.
    """

    function: Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Expected:
    """What is expected, where type and bounds make no good sentence."""

    text: str


class FromRun:
    """A recipe does not set it: the run gives it to every step."""


def tables(hint: Any) -> list[OneOf]:
    """Those of a type, of the members of a union and of the elements of a list."""
    found = []
    if get_origin(hint) is Annotated:
        found = [m for m in get_args(hint)[1:] if isinstance(m, OneOf)]
    return found + [t for inner in _inside(hint) for t in tables(inner)]


def _inside(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        return [get_args(hint)[0]]
    if origin in (Union, UnionType):
        return list(get_args(hint))
    return [get_args(hint)[0]] if origin in (list, Sequence, Iterable) else []


def mentions(hint: Any, kind: Any) -> bool:
    """Whether a type is `kind`, or a union with it."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(m is kind or get_origin(m) is kind for m in members)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or an array, of torch, NumPy or another package."""
    return hasattr(value, "__float__") and hasattr(value, "shape") and not isinstance(value, Real)


def form(hint: Any, recipe: bool) -> Any:
    """The type as pydantic takes it. Bounds and names go down to the member that they speak of. In
    a recipe lists stand for iterables, and what a file cannot hold is left out. Elsewhere iterators
    are not looked into, as that would use them up.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = [m for m in arguments[1:] if isinstance(m, (BaseMetadata, OneOf))]
        return _bound(form(arguments[0], recipe), marks, recipe)
    if origin in (Union, UnionType):
        members = [f for a in arguments if (f := form(a, recipe)) is not NOWHERE]
        return NOWHERE if all(m is NoneType for m in members) else Union[tuple(members)]  # noqa: UP007
    if hint is Iterable or origin is Iterable:
        if not recipe:
            return _iterable(form(arguments[0], False)) if arguments else Any
        return list[form(arguments[0], True)] if arguments else NOWHERE
    if origin is Sequence and recipe:
        return list[form(arguments[0], True)]
    if origin in (list, Sequence):
        return origin[form(arguments[0], recipe)]  # pyright: ignore[reportInvalidTypeArguments]
    if hint is Callable or origin is Callable:
        return NOWHERE if recipe else Callable
    if recipe and isinstance(hint, type) and origin is None and hint not in PLAIN:
        return NOWHERE
    return hint


def _bound(form: Any, marks: list[Any], recipe: bool) -> Any:
    if form is NOWHERE or not marks:
        return form
    if get_origin(form) is Union or get_origin(form) is UnionType:
        return Union[tuple(_bound(m, marks, recipe) for m in get_args(form))]  # noqa: UP007
    if form is str:
        names = [_named(m) for m in marks if isinstance(m, OneOf)]
        return Annotated[(form, *names, _choices(marks))] if names else form
    bounds = [m for m in marks if not isinstance(m, OneOf)]
    return Annotated[(form, *bounds)] if bounds and form in (int, float) else form


def _iterable(inner: Any) -> Any:
    """What can be iterated over `inner`. Only what is not used up by it is looked into; loaders are
    checked where they are read.
    """
    from pydantic import AfterValidator, ConfigDict, TypeAdapter

    of = list[inner]
    elements = TypeAdapter(of, config=ConfigDict(strict=True))

    def check(value: Any) -> Any:
        # an array without a dimension has what iterates, but refuses
        if not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
            raise ValueError("it cannot be iterated")
        if isinstance(value, (bytes, bytearray, Mapping)):
            raise ValueError("it is no list")
        if isinstance(value, (list, tuple, set, frozenset)):
            elements.validate_python(list(value))
        return value

    return Annotated[Any, AfterValidator(check)]


def _named(table: OneOf) -> Any:
    from pydantic import AfterValidator

    def check(value: str) -> str:
        if wrong := table.refuse(value):
            raise ValueError(wrong)
        return value

    return AfterValidator(check)


def _choices(marks: list[Any]) -> Any:
    from pydantic import WithJsonSchema

    table = next(m for m in marks if isinstance(m, OneOf))
    names: dict[str, Any] = {"enum": table.names}
    reference = {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}
    return WithJsonSchema({"anyOf": [names, reference]} if table.plugin else names)


def sentence(hint: Any, marks: Sequence[Any] = ()) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        return sentence(get_args(hint)[0], get_args(hint)[1:])
    if origin in (Union, UnionType):
        members = [m for m in get_args(hint) if m is not NoneType]
        return " or ".join(dict.fromkeys(sentence(m, marks) for m in members))
    if origin is Literal:
        return " or ".join(repr(v) for v in get_args(hint))
    if hint in (int, float):
        return _range("an integer" if hint is int else "a number", marks)
    if origin in (list, Sequence, Iterable):
        return "a list"
    kinds = {bool: "true or false", str: "text", Path: "a path", Callable: "a callable"}
    kinds |= {Mapping: "a mapping", dict: "a mapping"}
    return kinds.get(hint) or kinds.get(origin) or f"a {getattr(hint, '__name__', hint)}"


def _range(what: str, marks: Sequence[Any]) -> str:
    """`a positive number`, `an integer between 2 and 16`, `a number above 0 and at most 1`."""
    low = next((m for m in marks if isinstance(m, (Gt, Ge))), None)
    high = next((m for m in marks if isinstance(m, (Lt, Le))), None)
    if isinstance(low, Ge) and isinstance(high, Le):
        return f"{what} between {low.ge} and {high.le}"
    from_zero = isinstance(low, Gt) and low.gt == 0 and what == "a number"
    from_one = isinstance(low, Ge) and low.ge == 1 and what == "an integer"
    if high is None and (from_zero or from_one):
        return f"{what.split()[0].rstrip('n')} positive {what.split()[1]}"
    words = []
    if low is not None:
        words.append(f"above {low.gt}" if isinstance(low, Gt) else f"of at least {low.ge}")
    if high is not None:
        words.append(f"below {high.lt}" if isinstance(high, Lt) else f"at most {high.le}")
    return " ".join([what, " and ".join(words)]).strip()
