"""What tells one run from another: networks, code and data as short hashes that files can hold.

Hashes of code are those of what Python executes, so comments change nothing. A function brings
along the functions of its own package that it names, and the constants that it reads: its
defaults, what it encloses and the globals of its module. What code itself assigns is state and
not counted.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils.data import DataLoader

from mirabelle.base.checks import tensors_of
from mirabelle.base.data import Batch, as_batch, batches, length_of, preserved, seed_epoch
from mirabelle.base.errors import InputError
from mirabelle.base.files import content_hash, tensors_hash
from mirabelle.base.structures import leaves

_PLAIN = (str, int, float, complex, bool, bytes, type(None))
_TORCH = ("torch", "builtins", "numpy")  # their versions are known otherwise
_STORES = {"STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "DELETE_GLOBAL"}


def network_identity(model: nn.Module) -> dict[str, str]:
    """Its weights, its structure with what is trained of it, and its code."""
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    return {
        "weights": tensors_hash(tensors_of(model)),
        "structure": content_hash([*structure(model), trained]),
        "code": code_hash(model),
    }


def structure(model: nn.Module) -> list[str]:
    """Its class, and how it prints itself, without addresses in memory."""
    return [type(model).__qualname__, re.sub(r" at 0x[0-9a-fA-F]+", "", str(model))]


def code_hash(model: nn.Module) -> str:
    """Of the classes of a network's modules, and of the plain attributes of these that their
    methods do not assign.
    """
    found, seen = [], set()
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, fx.GraphModule):
            found.append([name, str(module.code)])
            continue
        if kind.__module__.partition(".")[0] in _TORCH:
            continue
        methods, assigned = _class(kind, seen)
        own = {
            k: _value(v, seen)
            for k, v in sorted(vars(module).items())
            if k not in assigned and k != "training" and _is_plain(v)
        }
        found.append([name, methods, own])
    return content_hash(found)


def _class(kind: type, seen: set[int]) -> tuple[list[Any], set[str]]:
    """What the methods of a class and its bases execute, with plain attributes of the class; and
    the attributes that methods other than `__init__` assign.
    """
    found: list[Any] = []
    assigned: set[str] = set()
    attributes: list[tuple[str, Any]] = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _TORCH:
            continue
        for name, value in sorted(vars(base).items()):
            function = _function(value)
            if function is not None:
                if name != "__init__":
                    assigned |= _assigned(function.__code__)
                found.append([base.__qualname__, name, _code(function, seen)])
            elif not name.startswith("__") and _is_plain(value):
                attributes.append((name, _value(value, seen)))
    return [found, [a for a in attributes if a[0] not in assigned]], assigned


def function_identity(function: Any) -> Any:
    """A name as it is; a callable or a metric by its name, its code, and what it was given."""
    if function is None or isinstance(function, str):
        return function
    return content_hash(_callable(function, set()))


def _callable(function: Any, seen: set[int]) -> Any:
    if isinstance(function, functools.partial):
        given = [*function.args, *sorted(function.keywords.items())]
        return ["partial", _callable(function.func, seen), [_value(v, seen) for v in given]]
    if isinstance(function, nn.Module):
        return network_identity(function)
    plain = _function(function)
    owner = getattr(function, "__self__", None) if isinstance(function, MethodType) else None
    if plain is not None:
        bound = _settings(owner, seen) if owner is not None else None
        return [plain.__module__, plain.__qualname__, _code(plain, seen), bound]
    if isinstance(function, type) or inspect.isbuiltin(function):
        return [function.__module__, getattr(function, "__qualname__", repr(function))]
    return _settings(function, seen)


def _settings(value: Any, seen: set[int]) -> Any:
    """An object by the code of its class and its plain attributes."""
    if id(value) in seen:
        return type(value).__qualname__
    seen.add(id(value))
    methods, assigned = _class(type(value), seen)
    own = getattr(value, "__dict__", {})
    plain = {k: _value(v, seen) for k, v in sorted(own.items()) if k not in assigned}
    return [type(value).__qualname__, methods, plain]


def _function(value: Any) -> FunctionType | None:
    """The plain function behind a method, a property or a decorator; None where there is none."""
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    if callable(value) and hasattr(value, "__wrapped__"):
        value = inspect.unwrap(value)
    return value if isinstance(value, FunctionType) else None


def _code(function: FunctionType, seen: set[int]) -> Any:
    """What a function executes, and what it reads from around it."""
    if id(function) in seen:
        return function.__qualname__
    seen.add(id(function))
    assigned = _assigned(function.__code__)
    around = dict(zip(function.__code__.co_freevars, _cells(function)))
    around |= {n: function.__globals__[n] for n in _names(function) if n in function.__globals__}
    package = function.__module__.partition(".")[0] if function.__module__ else ""
    read: dict[str, Any] = {}
    for name, value in sorted(around.items()):
        if name in assigned:
            continue
        inner = _function(value)
        if inner is not None:
            same = (inner.__module__ or "").partition(".")[0] == package
            read[name] = _code(inner, seen) if same else [inner.__module__, inner.__qualname__]
        elif _is_plain(value) or isinstance(value, (torch.Tensor, nn.Module)):
            read[name] = _value(value, seen)
        elif _is_loader(value):
            read[name] = _value(value, seen)
    given = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    return [_executed(function.__code__), read, [_value(v, seen) for v in given]]


def _cells(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(None)
    return found


def _codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(function: FunctionType) -> set[str]:
    return {name for code in _codes(function.__code__) for name in code.co_names}


def _assigned(code: CodeType) -> set[str]:
    """The globals, enclosed variables and attributes that a function assigns."""
    return {
        step.argval
        for inner in _codes(code)
        for step in dis.get_instructions(inner)
        if step.opname in _STORES
    }


def _executed(code: CodeType) -> Any:
    constants = [
        _executed(c)
        if isinstance(c, CodeType)
        else repr(sorted(c, key=repr) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return [hashlib.sha256(code.co_code).hexdigest(), list(code.co_names), constants]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (*_PLAIN, torch.dtype, torch.device))


def _is_loader(value: Any) -> bool:
    """Whether code that reads this value trains on it: a loader, or a list of batches. Other lists
    are state, which code changes.
    """
    if isinstance(value, DataLoader):
        return True
    if not isinstance(value, (list, tuple)) or not value:
        return False
    try:
        as_batch(value[0])
    except InputError:
        return False
    return True


def _value(value: Any, seen: set[int]) -> Any:
    if isinstance(value, DataLoader):
        return data_identity(value, 0)
    if isinstance(value, torch.Tensor):
        return tensors_hash({"": value})
    if isinstance(value, np.ndarray):
        return tensors_hash({"": torch.from_numpy(np.ascontiguousarray(value))})
    if isinstance(value, (list, tuple)):
        return [_value(v, seen) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _value(v, seen) for k, v in value.items()}
    if isinstance(value, frozenset):
        return repr(sorted(value, key=repr))
    if _is_plain(value):
        return repr(value)
    return _callable(value, seen) if callable(value) else type(value).__qualname__


def data_identity(loader: Any, seed: int) -> Any:
    """Kind, length, sampler and sizes of a loader, and its first batch as drawn from `seed`.

    It reads the first batch twice. Of data that differ, since they draw from a generator that
    nobody can seed, only shapes and types count. The generators are left as they were.
    """
    if loader is None:
        return None
    source = getattr(loader, "underlying", loader)
    samplers = [getattr(source, n, None) for n in ("sampler", "batch_sampler")]
    about = {
        "kind": type(source).__qualname__,
        "length": length_of(source),
        "samples": length_of(getattr(source, "dataset", None)),
        "samplers": [type(s).__qualname__ for s in samplers],
        "batch_size": getattr(source, "batch_size", None),
        "drop_last": getattr(source, "drop_last", None),
    }
    with preserved(source):
        first, again = _first(loader, seed), _first(loader, seed)
    about |= {"views": views} if (views := getattr(loader, "views", None)) else {}
    repeats = _content(first) == _content(again)
    return about | {"first batch": _content(first) if repeats else _form(first)}


def _first(loader: Any, seed: int) -> Batch:
    seed_epoch(loader, seed)
    return next(batches(loader))


def _named(batch: Batch) -> dict[str, torch.Tensor]:
    named = {str(i): t for i, t in enumerate(batch.args)} | batch.kwargs
    if isinstance(batch.target, torch.Tensor):
        return named | {"target": batch.target}
    return named | {f"target {i}": t for i, t in enumerate(leaves(batch.target))}


def _content(batch: Batch) -> str:
    return tensors_hash(_named(batch))


def _form(batch: Batch) -> dict[str, Any]:
    return {k: [list(t.shape), str(t.dtype)] for k, t in _named(batch).items()}


def differences(there: Any, here: Any) -> str:
    """The parts in which two identities differ, in words: `lr (0.1 there, 0.2 here) and data`.
    Empty where they are equal.
    """
    here = json.loads(json.dumps(here, default=str))
    if not isinstance(there, Mapping):
        return "" if there == here else "everything"
    parts = []
    for name in dict.fromkeys([*there, *here]):
        one, other = there.get(name), here.get(name)
        if one == other:
            continue
        brief = all(len(str(v)) <= 24 and not isinstance(v, (Mapping, list)) for v in (one, other))
        parts.append(f"{name} ({one} there, {other} here)" if brief else str(name))
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
