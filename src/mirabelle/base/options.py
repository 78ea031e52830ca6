"""An option is declared once, in the signature of its verb: name, type, bounds, default and a line
of text. The check of a call, of a recipe, and the JSON Schema come from that declaration.

    def prune(model, x, *, macs: Annotated[float | None, Gt(0), Le(1), Doc("what is kept")] = None)

Bounds are those of `annotated_types`; names of tables are `OneOf(TABLE)`. pydantic checks in strict
mode, so nothing is converted: `"8"` is no 8, and True is no 1. It is imported at the first check.

What several verbs declare has a name (`base/declarations.py`), to which each can add:

    def fit(model, *, seed: Annotated[SeedOption, FromRun] = 0)
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from typing_extensions import Doc

from mirabelle.base.annotations import resolved
from mirabelle.base.errors import InputError, OptionError, did_you_mean
from mirabelle.base.option_types import (
    NOWHERE,
    PLAIN,
    Check,
    Expected,
    FromRun,
    OneOf,
    OptionsOf,
    form,
    is_tensor,
    mentions,
    sentence,
    tables,
)

F = TypeVar("F", bound=Callable)
FLOAT32 = 3.4028235e38  # its largest number
REQUIRED = inspect.Parameter.empty


class Option:
    """One declared option. hint: its type with its markers; default: `REQUIRED` where there is
    none.
    """

    def __init__(self, name: str, hint: Any, default: Any = REQUIRED):
        self.name, self.hint, self.default = name, hint, default
        self.type, *self.marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)

    def mark(self, kind: type) -> Any:
        """The marker of this kind; None where there is none. Of several it is the last, which a
        verb has added to a shared declaration.
        """
        return next((m for m in reversed(self.marks) if isinstance(m, kind) or m is kind), None)

    @functools.cached_property
    def doc(self) -> str:
        found = self.mark(Doc)
        return "" if found is None else found.documentation

    @functools.cached_property
    def names(self) -> list[OneOf]:
        """The tables that its names are of, those of the elements of a list too."""
        return tables(self.hint)

    @functools.cached_property
    def in_recipes(self) -> bool:
        return self.mark(FromRun) is None and form(self.hint, True) is not NOWHERE

    @functools.cached_property
    def _adapters(self) -> dict[bool, Any]:
        return {}

    def adapter(self, recipe: bool = False) -> Any:
        """pydantic's, in strict mode. recipe: for what a file can hold."""
        if recipe not in self._adapters:
            from pydantic import ConfigDict, TypeAdapter

            strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
            self._adapters[recipe] = TypeAdapter(form(self.hint, recipe), config=strict)
        return self._adapters[recipe]

    @functools.cached_property
    def expected(self) -> str:
        """`a number above 0 and at most 1`."""
        found = self.mark(Expected)
        return found.text if found is not None else sentence(self.type, self.marks)

    def refuse(self, value: Any, recipe: bool = False) -> str:
        """What is wrong with `value`, as the end of a sentence; empty where nothing is."""
        from pydantic import ValidationError

        if isinstance(value, int) and abs(value) >= 2**63:
            return f", which is beyond 64 bits; expected {self.expected}"
        if isinstance(value, float) and FLOAT32 < abs(value) < math.inf:
            return f", which is beyond what float32 holds; expected {self.expected}"
        if is_tensor(value) and mentions(self.type, float):
            return self._why(value, recipe)  # pydantic takes one number of it for a float
        try:
            self.adapter(recipe).validate_python(value)
        except ValidationError:
            return self._why(value, recipe)
        nested, check = self.mark(OptionsOf), self.mark(Check)
        try:
            if nested is not None and isinstance(value, Mapping):
                known = nested.verb()
                if recipe:
                    known = known.in_recipes.without(*nested.except_in_recipes)
                known.check(value, recipe=recipe)
            if check is not None and value is not None and not isinstance(value, Iterator):
                check.function(value)
        except InputError as error:
            return (
                f": {error}" if self.mark(Expected) is None or nested else self._why(value, recipe)
            )
        return ""

    def _why(self, value: Any, recipe: bool) -> str:
        elements = value if isinstance(value, (list, tuple)) else [value]
        for table in self.names:
            bad = [v for v in elements if isinstance(v, str) and table.refuse(v)]
            if bad:
                return table.refuse(bad[0])
        text = self.expected
        if self.mark(Expected) is not None:
            return f"; expected {text}"
        if self.names:
            text = self.names[0].refuse(None).removeprefix("; expected ")
            if mentions(self.type, Callable) and not recipe:
                text += " or a callable"
        return f"; expected {text}" + f" ({self.doc})" * bool(self.doc)

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what a recipe can hold."""
        nested = self.mark(OptionsOf)
        if nested is None:
            found = self.adapter(True).json_schema()
        else:
            known = nested.verb().in_recipes.without(*nested.except_in_recipes)
            found = {"anyOf": [known.schema(), {"type": "null"}]}
        found |= {"description": self.doc}
        if self.default is not REQUIRED:
            default = self.default
            found["default"] = list(default) if isinstance(default, tuple) else default
        return found


class Options(Mapping[str, Option]):
    """The options of a verb in order.

    together: takes all values by name, with defaults, and raises `InputError` for values that do
    not go together. others: values of the verb's options that cannot be given here.
    """

    def __init__(
        self,
        options: Iterable[Option],
        together: Callable[[Mapping[str, Any]], None] | None = None,
        others: Mapping[str, Any] | None = None,
    ):
        self._options = {o.name: o for o in options}
        self.together, self.others = together, dict(others or {})

    def __getitem__(self, name: str) -> Option:
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __or__(self, more: Options) -> Options:
        checks = [o.together for o in (self, more) if o.together is not None]

        def together(values: Mapping[str, Any]) -> None:
            for check in checks:
                check(values)

        both = [*self.values(), *more.values()]
        return Options(both, together if checks else None, {**self.others, **more.others})

    def _only(self, keep: Callable[[Option], bool]) -> Options:
        left_out = {n: v for n, v in self.defaults.items() if not keep(self[n])}
        kept = [o for o in self.values() if keep(o)]
        return Options(kept, self.together, {**left_out, **self.others})

    def without(self, *names: str) -> Options:
        return self._only(lambda o: o.name not in names)

    def assuming(self, **values: Any) -> Options:
        """The same options, where the verb gets these values from elsewhere."""
        return Options(self.values(), self.together, {**self.others, **values})

    def with_defaults(self, **defaults: Any) -> Options:
        """The same options, with other defaults."""
        changed = [Option(o.name, o.hint, defaults.get(o.name, o.default)) for o in self.values()]
        return Options(changed, self.together, self.others)

    @functools.cached_property
    def in_recipes(self) -> Options:
        """Those that a recipe can set."""
        return self._only(lambda o: o.in_recipes)

    @property
    def defaults(self) -> dict[str, Any]:
        """By name; None where there is none."""
        return {o.name: None if o.default is REQUIRED else o.default for o in self.values()}

    def check(self, given: Mapping[str, Any], *, recipe: bool = False) -> None:
        """`InputError` names the option, its value and what is expected."""
        for name, value in given.items():
            if name not in self:
                raise OptionError(f"unknown option {name!r}{did_you_mean(str(name), self)}")
            if wrong := self[name].refuse(value, recipe):
                raise InputError(f"{name} is {shown(value)}{wrong}")
        self.check_together(given)

    def check_together(self, given: Mapping[str, Any]) -> None:
        """`InputError` for what is missing, and for values that do not go together."""
        for option in self.values():
            if option.default is REQUIRED and option.name not in given:
                raise InputError(f"it needs {option.name}: {option.doc}")
        if self.together is not None:
            self.together({**self.others, **self.defaults, **given})

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a mapping of them."""
        needed = [o.name for o in self.values() if o.default is REQUIRED]
        return {
            "type": "object",
            "properties": {o.name: o.schema() for o in self.values()},
            "additionalProperties": False,
        } | ({"required": needed} if needed else {})


class _Brief(reprlib.Repr):
    """A repr that looks at no more of a value than it shows: one that holds itself, or a bomb of
    aliases, would never end. What people wrote is shown as they wrote it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 200, 200
        self.maxlist = self.maxtuple = self.maxdict = 20

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, (str, list, tuple, dict)) or (isinstance(x, int) and abs(x) < 10**50):
            return super().repr1(x, level)
        return repr(x) if isinstance(x, (float, bool, type(None))) else f"a {type(x).__name__}"

    def repr_dict(self, x: dict, level: int) -> str:
        """In the order that it was written in; reprlib sorts."""
        if level <= 0:
            return "{...}" if x else "{}"
        parts = [
            f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}"
            for k, v in itertools.islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join([*parts, *["..."] * (len(x) > self.maxdict)]) + "}"


_brief = _Brief()


def shown(value: Any) -> str:
    """A value in a message: what people write as they wrote it, other objects by their type."""
    if isinstance(value, (*PLAIN, list, tuple, dict, Path)):
        text = _brief.repr(str(value) if isinstance(value, Path) else value)
        return text if len(text) <= 100 else f"{text[:97]}..."
    return f"a {type(value).__name__}"


@functools.cache
def options_of(declared: Callable) -> Options:
    """The options that a verb, or a dataclass, declares: its parameters with a `Doc`.

    `TypeError` for an annotation that cannot be understood, with the verb and the parameter.
    """
    function = inspect.unwrap(declared)
    names = vars(sys.modules[function.__module__])
    found, rest = [], Options([])
    for parameter in inspect.signature(function).parameters.values():
        try:
            hint = resolved(parameter.annotation, names)
        except TypeError as error:
            where = f"{function.__module__}.{function.__qualname__}: {parameter.name}"
            raise TypeError(f"{where}: {parameter.annotation!r} {error}") from error
        if get_origin(hint) is Annotated:
            found.append(Option(parameter.name, hint, parameter.default))
        if parameter.kind is parameter.VAR_KEYWORD and getattr(declared, "_rest", None):
            rest = options_of(declared._rest)  # type: ignore[attr-defined]
    own = Options(found, getattr(declared, "_together", None))
    return own | rest if len(rest) else own


def _plain(value: Any) -> Any:
    """A number, a truth or a text of NumPy's as Python's own, which it is taken for."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def declared(together: Callable | None = None, rest: Callable | None = None) -> Callable[[F], F]:
    """Checks every call of a verb against its declarations before it starts, and leaves the global
    random generators, and those of the loaders that it is given, as they were. It runs outside of
    the caller's `no_grad`, `inference_mode` and `autocast`.

    together: takes all values by name, with defaults, and raises `InputError` where they do not go
    together. rest: the verb whose options `**options` stands for.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        own = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            options = options_of(checked)
            for name in given:
                if name not in own and name not in options:
                    raise OptionError(
                        f"{function.__name__} has no option "
                        f"{name!r}{did_you_mean(name, {*own, *options})}"
                    )
            args, given = tuple(map(_plain, args)), {k: _plain(v) for k, v in given.items()}
            values = {**dict(zip(positional, args)), **given}
            options.check({k: v for k, v in values.items() if k in options})
            from mirabelle.base.data import preserved  # imports torch
            from mirabelle.base.modes import usual

            with usual(), preserved(*values.values()):
                return function(*args, **given)

        checked._rest, checked._together = rest, together  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


__all__ = [
    "REQUIRED",
    "Check",
    "Expected",
    "FromRun",
    "OneOf",
    "Option",
    "Options",
    "OptionsOf",
    "declared",
    "options_of",
    "shown",
]
