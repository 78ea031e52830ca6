"""The code that a callable of the user's depends on: its own file and those that this imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from mirabelle.base.names import load

PACKAGE = Path(__file__).parents[1]  # its own code is hashed once for all steps
INSTALLED = ("site-packages", "dist-packages")  # known by the versions of the libraries


def files_hash(*paths: Path) -> str:
    """The SHA-256 of files, by name and content, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def code_hash(reference: str) -> str | None:
    """The hash of the files that `module:callable` comes from: the one that defines it, and all
    that these import from the user's folders, by whatever path. None where it has no file.

    Imports are read from the sources, inside functions too; nothing is imported for that. What
    code imports by a name that it computes is not seen. Installed packages and Python's own are
    left out.
    """
    function = inspect.unwrap(load(reference, "callable"))
    try:
        file = inspect.getsourcefile(function)
    except TypeError:  # written in C, or an object that can be called
        file = None
    named = _spec(reference.partition(":")[0])
    found: dict[Path, None] = {}
    waiting = [(getattr(function, "__module__", ""), Path(file))] if file else []
    if named is not None and named.origin is not None:  # it may come from another module
        waiting.append((named.name, Path(named.origin)))
    while waiting:
        module, path = waiting.pop()
        if path in found or not _is_the_users(path):
            continue
        found[path] = None
        waiting += [(s.name, Path(s.origin)) for s in _imported(module, path) if s.origin]
    if not found and file:
        found = {Path(file): None}
    return files_hash(*found) if found else None


def _is_the_users(path: Path) -> bool:
    standard = {Path(sysconfig.get_path(n)).resolve() for n in ("stdlib", "platstdlib")}
    path = path.resolve()
    return (
        path.is_file()
        and PACKAGE not in path.parents
        and not any(part in INSTALLED for part in path.parts)
        and not standard & set(path.parents)
    )


def _imported(module: str, path: Path) -> Iterator[ModuleSpec]:
    """The modules that a file imports, and the packages around them, whose `__init__` runs too."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for name in dict.fromkeys(_names(ast.walk(tree), package)):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            if (spec := _spec(".".join(parts[:i]))) is None:
                break
            yield spec


def _names(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Of modules, and of what may be a module of a package or something in it."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(
                [*(above if node.level else []), *([node.module] if node.module else [])]
            )
            yield from (f"{start}.{alias.name}" if start else alias.name for alias in node.names)


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, without running anything; None for what is not in a file."""
    top, _, rest = name.partition(".")
    if top in sys.stdlib_module_names or not top:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module that was run, not imported
        return None
    path = top
    for part in filter(None, rest.split(".")):
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    return spec
