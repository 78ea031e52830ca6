"""What all commands share: their common options, and how they say what they found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from mirabelle.base.options import options_of

LARGEST_EXAMPLE = 2**28  # elements of what --input asks for


def _flag(*names: str, text: str) -> Parameter:
    return Parameter(name=names, negative=(), show_default=False, help=text)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The options of every command."""

    quiet: Annotated[bool, _flag("--quiet", "-q", text="no progress and no warnings")] = False
    verbose: Annotated[
        bool, _flag("--verbose", "-v", "--debug", text="show the traceback of an error")
    ] = False
    json: Annotated[bool, _flag("--json", text="print the result as JSON")] = False


FLAG = Parameter(negative=(), show_default=False)


def described(verb: Callable, name: str, text: str = "") -> Parameter:
    """The help of an option, from its declaration; text: words to put in its place."""
    option = options_of(verb)[name]
    names = ", ".join(n for table in option.names for n in table.names)
    return Parameter(help=(text or option.doc) + (f" [choices: {names}]" if names else ""))


def default(verb: Callable, name: str) -> Any:
    """The declared default of an option."""
    return options_of(verb)[name].default


def shape_of(text: str) -> tuple[int, ...]:
    """`1,3,224,224` or `1x3x224x224`."""
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"{text[:50]!r} is no shape; write it like 1,3,224,224")
    if math.prod(shape) > LARGEST_EXAMPLE:
        raise ValueError(f"{text[:50]!r} has more than {LARGEST_EXAMPLE} elements")
    return shape


def _shape(type_: Any, tokens: Any) -> tuple[int, ...]:
    return shape_of(tokens[0].value)


SHAPE = Parameter(
    converter=_shape,
    n_tokens=1,
    negative=(),
    metavar="SHAPE",
    help="shape of an example input, such as 1,3,224,224",
)


def example(shape: tuple[int, ...] | None) -> Any:
    """Normal numbers of a shape, always the same."""
    import torch

    return None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(0))


def weighted(model: str, weights: str | None) -> str:
    """A network's name with the file of its weights behind it."""
    return model if weights is None else f"{model}@{weights}"


def network(reference: str) -> Any:
    from mirabelle.sources.callables import build_model

    return build_model(reference)


def network_or_file(reference: str, threads: int = 1) -> Any:
    from mirabelle.runtimes import load, runtime_of

    runtime = runtime_of(reference)
    return network(reference) if runtime is None else load(reference, runtime, threads)


def say(found: Any, as_json: bool, text: str | None = None) -> int:
    """Prints a result: as JSON, or as text."""
    plain = found if isinstance(found, dict) else found.to_dict() if as_json else {}
    print(json.dumps(plain, indent=1) if as_json else found if text is None else text)
    return 0
