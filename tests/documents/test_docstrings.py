"""Docstrings of the verbs: every argument is described, and every example runs."""

import doctest
import inspect
import re

import pytest
import torch

import mirabelle as mb

VERBS = sorted(n for n, home in mb._HOME.items() if n.islower() and not n.startswith("_"))


def described(verb) -> set[str]:
    """The arguments that a docstring lists, one a line."""
    lines = re.findall(r"^ *- ([\w, ]+): ", verb.__doc__, re.MULTILINE)
    return {name.strip() for line in lines for name in line.split(",")}


def documented(verb) -> set[str]:
    """The arguments whose declaration says what they are."""
    hints = inspect.signature(verb).parameters
    return {name for name, p in hints.items() if "Doc(" in str(p.annotation)}


@pytest.mark.parametrize("name", VERBS)
def test_every_argument_is_described(name):
    verb = getattr(mb, name)
    known = set(inspect.signature(verb).parameters)
    assert known - described(verb) - documented(verb) == set()
    assert described(verb) - known == set()


SLOW = {"compress": pytest.mark.slow}  # a search


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in VERBS])
def test_examples_run(name, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    verb = inspect.unwrap(getattr(mb, name))
    found = doctest.DocTestFinder(recurse=False).find(verb, name, globs={})
    assert found and found[0].examples, f"mb.{name} shows no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    text: list[str] = []
    runner.run(found[0], out=text.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(text)
