"""Exported programs (`weights.pt2`), read without running anything that they bring.

`torch.export.load` unpickles what a file holds as pickles, and evaluates the sizes in its graph as
Python. So a file is looked through first: pickles may hold tensors alone, as for
`torch.load(weights_only=True)`, sizes may be arithmetic, calls operators and names words.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError

LARGEST_GRAPH = 2**28  # bytes of JSON
OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+")
NAME = re.compile(r"[\w.]*")  # written into the source of `forward`
SYMBOL = re.compile(r"\w*")  # the one text in sizes
# What torch writes into sizes.
ARITHMETIC = re.compile(
    r"[su]\d+|zuf\d+|zf\d+|(Symbol|Integer|Float|Rational|Add|Mul|Pow|Infinity|oo|int_oo|"
    r"Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilToInt|FloorToInt|"
    r"IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|RoundToInt|PowByNatural|FloatPow|Where|"
    r"Piecewise|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Abs|Identity|ModularIndexing)"
)
NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.BoolOp,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Constant,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.expr_context,
)


def read_program(path: str | Path) -> tuple[nn.Module, Batch | None]:
    """The network of a `.pt2` file on the parameter paths that it was exported with, and the
    example that it was exported for, if the file has one.

    It evaluates as it was exported: a BatchNorm that was exported in eval mode stays so in
    training. Raises `InputError` for a file that is missing or damaged, or that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there; a .pt2 file is what torch.export.save writes")
    try:
        content = path.read_bytes()
        _check(content, path)
        found = torch.export.load(io.BytesIO(content))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {str(error).strip()[:200]}); it was "
            "damaged, or written by another version of torch: export it again"
        ) from error
    return _module(found), _example(found)


def _module(found: torch.export.ExportedProgram) -> nn.Module:
    module = found.module(check_guards=False)
    # They only refuse; every operator of the graph has its mode written into it.
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module.eval()


def _example(found: torch.export.ExportedProgram) -> Batch | None:
    given = found.example_inputs
    if given is None:
        return None
    args, kwargs = given
    if all(isinstance(v, torch.Tensor) for v in [*args, *kwargs.values()]):
        return Batch(tuple(args), dict(kwargs), None)
    return None


def _check(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise InputError(f"{path} holds two files of one name; it was not written by torch")
        if not any("/models/" in n for n in names):
            raise InputError(
                f"{path} holds no exported program of this torch; write it again with "
                "torch.export.save"
            )
        for name in names:
            inner = name.partition("/")[2]
            if inner.startswith(("models/", "data/")) and inner.endswith(".json"):
                if archive.getinfo(name).file_size > LARGEST_GRAPH:
                    raise InputError(f"{path}: {inner} is larger than any network's graph")
                _check_json(json.loads(archive.read(name)), path)
        for name in _pickles(archive, names):
            _check_pickle(archive.read(name), path, name)


def _pickles(archive: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    """What torch would unpickle: the example, and weights and constants that say so."""
    told = set()
    for name in names:
        if name.endswith("_config.json"):
            for entry in json.loads(archive.read(name)).get("config", {}).values():
                if entry.get("use_pickle"):
                    told.add(f"{name.rpartition('/')[0]}/{entry.get('path_name')}")
    for name in names:
        inner = name.partition("/")[2]
        if name in told or (inner.startswith("data/sample_inputs/") and archive.read(name)):
            yield name


def _check_pickle(content: bytes, path: Path, name: str) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path}: {name} holds more than tensors, which could run any code; export the "
            "network with tensors as inputs and constants"
        ) from error


def _check_json(value: Any, path: Path) -> None:
    """Looks for what torch would evaluate or look up by name."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key == "expr_str" and not _is_arithmetic(inner):
                    raise InputError(f"{path}: {str(inner)[:80]!r} is no size; it could be code")
                if key == "target" and isinstance(inner, str) and "inputs" in value:
                    _check_operator(inner, path)
                if key == "name" and isinstance(inner, str) and not NAME.fullmatch(inner):
                    raise InputError(f"{path}: {inner[:80]!r} is no name; it could be code")
                waiting.append(inner)


def _check_operator(name: str, path: Path) -> None:
    if not OPERATOR.fullmatch(name):
        raise InputError(f"{path} calls {name[:80]!r}, which is no operator of torch")


def _is_arithmetic(text: Any) -> bool:
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return False
        if isinstance(node, ast.Name) and not ARITHMETIC.fullmatch(node.id):
            return False
        if isinstance(node, ast.Constant) and type(node.value) not in (int, float, bool):
            if not (isinstance(node.value, str) and SYMBOL.fullmatch(node.value)):
                return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
    return True
