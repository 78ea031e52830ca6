"""Options of commands from the declarations of verbs: nothing is written twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from cyclopts import Parameter

from mirabelle.base.options import REQUIRED, Option, Options, shown

F = TypeVar("F", bound=Callable)
MANY = (list, tuple, Sequence, Iterable)


def taking(options: Options, *names: str, leave: Iterable[str] = ()) -> Callable[[F], F]:
    """Gives a command these options of a verb (all that a recipe has, without names), which it gets
    as `**options`: those that were said, as Python values.
    """
    wanted = names or [n for n in options.in_recipes if n not in set(leave)]

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True)
        first = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        last = [p for p in first if p.name == "common"]
        more = [parameter(options[n]) for n in wanted]
        rest = [p for p in own.parameters.values() if p.kind is p.VAR_KEYWORD]
        ordered = [*(p for p in first if p.name != "common"), *more, *last, *rest]

        def called(*arguments: Any, **given: Any) -> Any:
            return command(*arguments, **given)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = own.replace(parameters=ordered)
        return called  # type: ignore[return-value]

    return decorate


def closed(command: F) -> F:
    """The command without its own `**options`, which the options above have filled."""
    own = inspect.signature(command, eval_str=True)
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    command.__signature__ = own.replace(parameters=kept)
    return command


def parameter(option: Option) -> inspect.Parameter:
    """One option as cyclopts takes it."""
    hint = Annotated[_kind(option), _described(option)]
    default = None if option.default is REQUIRED else option.default
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default
    )


def _described(option: Option) -> Parameter:
    names = ", ".join(dict.fromkeys(n for table in option.names for n in table.names))
    text = option.doc + (f" [choices: {names}]" if names else "")
    if isinstance(option.default, bool):
        return Parameter(help=text)
    many = _is_list(option.hint)
    return Parameter(
        help=text,
        negative=(),
        converter=lambda _, tokens: _read(option, [t.value for t in tokens], many),
        show_default=option.default not in (None, REQUIRED, ()),
        metavar=_metavar(option, many),
        n_tokens=-1 if many else 1,
        consume_multiple=many,
    )


def _kind(option: Option) -> Any:
    if isinstance(option.default, bool):
        return bool
    return Any  # what is read is checked against the declaration, which knows more


def _metavar(option: Option, many: bool) -> str:
    members = _members(option.hint)
    name = "NUMBER" if {int, float} & set(members) and str not in members else "NAME"
    return f"{name}..." if many else name


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [m for a in get_args(hint) for m in _members(a)]
    return [hint]


def _is_list(hint: Any) -> bool:
    return any(m in MANY or get_origin(m) in MANY for m in _members(hint))


def _read(option: Option, tokens: list[str], many: bool) -> Any:
    values = [value_of(t) for token in tokens for t in _parts(option, token)]
    single = not many or (len(values) == 1 and not option.refuse(values[0], recipe=True))
    value = values[0] if single else values
    if isinstance(value, (int, float)) and _only_text(option):
        value = tokens[0]
    if wrong := option.refuse(value, recipe=True):
        raise ValueError(f"got {shown(' '.join(tokens))}{wrong}")
    return value


def _parts(option: Option, token: str) -> list[str]:
    """`224x224` for pixels is two numbers."""
    first, cross, second = token.partition("x")
    if option.name == "size" and cross and first.isdigit() and second.isdigit():
        return [first, second]
    return [token]


def _only_text(option: Option) -> bool:
    members = _members(option.hint)
    return str in members and not {int, float} & set(members) and not _is_list(option.hint)


def value_of(text: str) -> Any:
    """A number, a truth, a mapping or a list in YAML's short form, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    if text[:1] in ("{", "["):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return text


def only_given(options: Mapping[str, Any], known: Options) -> dict[str, Any]:
    """Those of `options` that are options of `known`."""
    return {k: v for k, v in options.items() if k in known}
