"""How many small changes of the code the tests notice: `python -m benchmarks.mutants`, or
`make mutants`.

Each mutant is one module with one change: another operator, a number that is one more, a condition
that is turned around, a name for its opposite. It is imported in place of the module in a process
of its own, in which the module's tests run until the first one fails. No file is touched. What
survives is listed with its line, for a test or a reason why it changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from mirabelle.base.files import write_json
from mirabelle.base.progress import bar

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mirabelle"
CALIBRATION, MEASUREMENT = "tests/quantization/calibration", "tests/measurement"
FIGURES = (
    *(f"{MEASUREMENT}/test_resamples.py", f"{MEASUREMENT}/test_metrics.py"),
    *("-k", "not a_file_gives and not come_as_they_are"),
)
ARITHMETIC = ("tests/integers/test_exact.py", "tests/integers/test_arithmetic.py")
GROUPS = ("tests/channels/test_group_figures.py", "tests/channels/test_groups.py")
GRIDS = tuple(f"{CALIBRATION}/test_{n}.py" for n in ("definitions", "histograms", "thresholds"))
MODULES = {
    "integers/arithmetic": ARITHMETIC,
    "integers/patches": ARITHMETIC,
    "channels/groups": GROUPS,
    "pruning/criteria": ("tests/pruning/test_criteria.py",),
    "quantization/calibration/histograms": GRIDS,
    "quantization/calibration/thresholds": GRIDS,
    "measurement/accumulator": FIGURES,
    "measurement/accuracy": FIGURES,
    "measurement/bootstrap": FIGURES,
    "measurement/macs": (f"{MEASUREMENT}/test_macs.py",),
}
LATER = 3.0  # times as long as the tests of the module take: then a mutant hangs, and is noticed
AT_LEAST = 30.0  # seconds
OPERATORS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift},
    **{ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
NAMES = {
    **{"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"},
    **{"amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin"},
    **{"floor": "ceil", "ceil": "floor", "any": "all", "all": "any", "sum": "mean", "mean": "sum"},
}


@dataclass(frozen=True)
class Mutant:
    """One change. place: the number of the node in the order of `ast.walk`."""

    module: str
    place: int
    line: int
    change: str


def changed(node: ast.AST) -> ast.AST | None:
    """The node with one change; None where it has none to make."""
    new = copy.deepcopy(node)
    if isinstance(new, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(new.op) in OPERATORS:
        new.op = OPERATORS[type(new.op)]()
    elif isinstance(new, ast.Compare) and type(new.ops[0]) in OPERATORS:
        new.ops[0] = OPERATORS[type(new.ops[0])]()
    elif isinstance(new, (ast.If, ast.IfExp, ast.While)):
        new.test = ast.UnaryOp(ast.Not(), new.test)
    elif isinstance(new, ast.Constant) and type(new.value) is bool:
        new.value = not new.value
    elif isinstance(new, ast.Constant) and type(new.value) in (int, float):
        new.value = new.value + 1
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, (ast.USub, ast.Not)):
        return new.operand
    elif isinstance(new, ast.Attribute) and new.attr in NAMES:
        new.attr = NAMES[new.attr]
    elif isinstance(new, ast.Name) and new.id in NAMES and isinstance(new.ctx, ast.Load):
        new.id = NAMES[new.id]
    else:
        return None
    return new


def _aside(tree: ast.AST) -> set[int]:
    """Nodes that compute nothing: types, what errors say, imports."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts = [node.returns, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            parts = list(node.decorator_list)
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            parts = [node.annotation]
        elif isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
            parts = [node]
        found |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    return found


def mutants_of(module: str) -> list[Mutant]:
    """All that can be made of a module."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    aside, found = _aside(tree), []
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in aside or (new := changed(node)) is None:
            continue
        change = f"{_brief(node)} -> {_brief(new)}"
        found.append(Mutant(module, place, getattr(node, "lineno", 0), change))
    return found


def _brief(node: ast.AST) -> str:
    if isinstance(node, (ast.If, ast.While)):
        return f"if {ast.unparse(node.test)}"
    return ast.unparse(node).split("\n")[0]


def mutated(mutant: Mutant) -> ast.Module:
    """The module with the change."""
    tree = ast.parse((PACKAGE / f"{mutant.module}.py").read_text())
    target = list(ast.walk(tree))[mutant.place]

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is target:
                new = changed(node)
                assert new is not None
                return ast.copy_location(new, node)
            return self.generic_visit(node)

    put: Any = Put().visit(tree)
    return ast.fix_missing_locations(put)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, tree: ast.Module):
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str):
        return compile(self.tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of its module."""

    def __init__(self, mutant: Mutant):
        self.name = f"mirabelle.{mutant.module.replace('/', '.')}"
        self.path, self.tree = str(PACKAGE / f"{mutant.module}.py"), mutated(mutant)

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, self.path, self.tree)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def run(tests: Sequence[str], mutant: Mutant | None, limit: float) -> str:
    """`killed`, `survived` or `hung`: what the tests make of a mutant, or of the module itself."""
    child = os.fork()
    if not child:
        _in_child(tests, mutant)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _in_child(tests: Sequence[str], mutant: Mutant | None) -> None:
    """Runs the tests and ends this process: nothing of it comes back."""
    code = 1
    try:
        for name in [n for n in sys.modules if n.partition(".")[0] == "mirabelle"]:
            del sys.modules[name]
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    except BaseException:  # a mutant that cannot be imported is noticed
        code = 1
    finally:
        os._exit(code)


def chosen(modules: Sequence[str], count: int, seed: int) -> Iterator[Mutant]:
    """So many mutants in all, as many of each module as there are, drawn from a seed."""
    for i, module in enumerate(modules):
        share = count // len(modules) + (i < count % len(modules))
        all_of_it = mutants_of(module)
        drawn = random.Random(f"{seed} {module}").sample(all_of_it, min(share, len(all_of_it)))
        yield from sorted(drawn, key=lambda m: m.place)


def summary(results: Sequence[tuple[Mutant, str]], seed: int) -> dict:
    """How many were tried and noticed, in all and by module; and what survived."""
    found: dict = {}
    for mutant, result in results:
        row = found.setdefault(mutant.module, {"tried": 0, "noticed": 0, "hung": 0, "left": []})
        row["tried"] += 1
        row["noticed"] += result != "survived"
        row["hung"] += result == "hung"
        if result == "survived":
            row["left"].append({k: v for k, v in asdict(mutant).items() if k != "module"})
    for row in found.values():
        row["share"] = row["noticed"] / row["tried"]
    tried, noticed = (sum(row[k] for row in found.values()) for k in ("tried", "noticed"))
    return {
        "seed": seed,
        "tried": tried,
        "noticed": noticed,
        "share": noticed / max(1, tried),
        "modules": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; all by default")
    parser.add_argument("--count", type=int, default=60, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/mutants.json")
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    if unknown := set(modules) - set(MODULES):
        parser.error(f"unknown module {sorted(unknown)[0]}; known: {', '.join(MODULES)}")
    os.chdir(ROOT)
    import torch.export  # noqa: F401  the children have it at once

    limits = {}
    for module in modules:
        begun = time.monotonic()
        if run(MODULES[module], None, 3600) != "survived":
            print(f"the tests of {module} fail as it is: {' '.join(MODULES[module])}")
            return 1
        limits[module] = max(AT_LEAST, LATER * (time.monotonic() - begun))
    mutants, results = list(chosen(modules, options.count, options.seed)), []
    with bar("mutants", len(mutants)) as shown:
        for mutant in mutants:
            results.append((mutant, run(MODULES[mutant.module], mutant, limits[mutant.module])))
            write_json(options.out, summary(results, options.seed))
            shown.advance()
    print(json.dumps(summary(results, options.seed), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
