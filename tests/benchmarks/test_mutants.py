"""Mutants change one place, run in place of their module, and touch no file."""

import ast

from benchmarks import mutants
from benchmarks.mutants import Mutant, changed, mutants_of, mutated, summary


def _change(text):
    node = ast.parse(text, mode="eval").body
    new = changed(node)
    return None if new is None else ast.unparse(new)


def test_each_kind_of_change():
    assert _change("a + b") == "a - b" and _change("a <= b") == "a < b"
    assert _change("3") == "4" and _change("True") == "False" and _change("-a") == "a"
    assert _change("a and b") == "a or b" and _change("a is None") == "a is not None"
    assert _change("x if a else b") == "x if not a else b" and _change("x.min") == "x.max"
    assert _change("'text'") is None and _change("f") is None


def test_types_errors_and_imports_are_left_alone():
    for module in mutants.MODULES:
        found = mutants_of(module)
        lines = (mutants.PACKAGE / f"{module}.py").read_text().splitlines()
        assert len(found) > 20
        assert not any(lines[m.line - 1].startswith(("import", "from", "@")) for m in found)


def test_a_mutant_differs_in_one_place():
    module = "integers/arithmetic"
    before = ast.unparse(ast.parse((mutants.PACKAGE / f"{module}.py").read_text())).splitlines()
    for mutant in mutants_of(module)[::25]:
        after = ast.unparse(mutated(mutant)).splitlines()
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after)) == 1


def test_what_survives_is_listed():
    one, other = (Mutant("m", i, i + 10, f"{i} -> {i + 1}") for i in (1, 2))
    found = summary([(one, "killed"), (other, "survived")], 0)
    assert found["share"] == 0.5
    assert found["modules"]["m"]["left"] == [{"place": 2, "line": 12, "change": "2 -> 3"}]
