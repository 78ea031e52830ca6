"""What a network is besides its tensors, as lines of text: two networks whose lines are equal can
take one another's weights.
"""

from __future__ import annotations

import dis
import inspect
import numbers
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

# Evaluation leaves them out, so that they may differ between training and use.
IGNORED = (nn.modules.dropout._DropoutNd,)


def architecture(model: nn.Module) -> list[str]:
    """A line for each module, with its class and its hyperparameters; for a captured network one
    for each node too, with its operator and its arguments.

    Hyperparameters are the attributes that are called as arguments of the class's constructor:
    strides, paddings and heads are, counters that `forward` advances are not. Nor is what methods
    of the class set later, as Swin's layers do with their shift for the size of the picture.
    """
    lines = [
        f"{path or 'the network'}: {_name(module)}({', '.join(_hyperparameters(module))})"
        for path, module in model.named_modules()
        if not isinstance(module, IGNORED)
    ]
    if isinstance(model, fx.GraphModule):
        lines += [_line(node) for node in model.graph.nodes]
    return lines


def difference(saved: Sequence[str], own: Sequence[str]) -> str | None:
    """Where two architectures depart first, as the end of a sentence; None where they do not."""
    for theirs, ours in zip_longest(saved, own):
        if theirs != ours:
            return f"it was saved with {theirs or 'nothing more'!r}, this one has " + repr(
                ours or "nothing more"
            )
    return None


def _name(module: nn.Module) -> str:
    # fx makes a class for each graph module
    return "GraphModule" if isinstance(module, fx.GraphModule) else type(module).__qualname__


@lru_cache(maxsize=1024)
def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of the constructor's arguments, those of base classes too."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            names |= dict.fromkeys(inspect.signature(base.__init__).parameters)
    return tuple(sorted(names.keys() - _set_later(kind)))


def _set_later(kind: type[nn.Module]) -> set[str]:
    """The attributes that methods other than the constructor set."""
    methods = [
        method
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for name, method in vars(base).items()
        if inspect.isfunction(method) and name not in ("__init__", "__setstate__")
    ]
    steps = (step for method in methods for step in dis.get_instructions(method))
    return {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}


def _hyperparameters(module: nn.Module) -> Iterator[str]:
    if isinstance(module, fx.GraphModule):
        return
    for name in _arguments(type(module)):
        if name in vars(module) and (text := _written(vars(module)[name])) is not None:
            yield f"{name}={text}"


def _written(value: Any) -> str | None:
    """A value as text that is the same in every process; None for what has none."""
    if value is None or isinstance(value, (bool, str, torch.dtype)):
        return repr(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, (tuple, list)):
        parts = [_written(v) for v in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if inspect.isroutine(value) or inspect.isclass(value):
        return getattr(value, "__qualname__", None)
    return None


def _line(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else _target(node.target)
    parts = [_argument(a) for a in node.args]
    parts += [f"{name}={_argument(a)}" for name, a in node.kwargs.items()]
    return f"{node.name} = {node.op} {target}({', '.join(parts)})"


def _target(function: Any) -> str:
    """`aten.conv2d.default` for an operator, `_operator.getitem` for a function."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_argument, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_argument(v)}' for k, v in value.items())}}}"
    if isinstance(value, slice):
        return ":".join(_argument(v) for v in (value.start, value.stop, value.step))
    if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return str(value)
    return _written(value) or type(value).__name__
