"""`keep=` says the same to every verb: one name or several, modules with all in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.base.keep import check_keep, covers, names_of


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def test_a_module_covers_what_is_in_it_and_no_namesake():
    assert covers(["layer1"], "layer1") and covers("layer1", "layer1.conv.weight")
    assert not covers(["layer1"], "layer10", "layer") and not covers([], "layer1")
    assert covers(["fc.weight"], "other", "fc.weight")


def test_a_single_name_is_not_its_letters():
    assert names_of("fc") == ["fc"] and names_of(n for n in ("a", "b")) == ["a", "b"]


def test_unknown_names_are_errors_with_the_nearest():
    with pytest.raises(InputError, match="keep names '9', .* parameter of Sequential"):
        check_keep(layers(), "9")
    with pytest.raises(InputError, match="did you mean '0.weight'"):
        check_keep(layers(), ["0.wieght"])


@pytest.mark.parametrize("keep", [[None], b"fc", b"", {}, {"0": 1}, [3], ("0", b"0"), {3}, [["0"]]])
def test_what_is_no_list_of_names(keep):
    for call in (
        lambda: mb.sparsify(layers(), sparsity=0.5, keep=keep),
        lambda: mb.factorize(layers(), rank=1, keep=keep),
        lambda: mb.quantize(layers(), [torch.ones(2, 4)], keep=keep),
    ):
        with pytest.raises(InputError, match="^keep is .*; expected a list of modules"):
            call()


@pytest.mark.parametrize("keep", [lambda: iter([3]), lambda: torch.ones(2)])
def test_what_is_no_name(keep):
    with pytest.raises(InputError, match=r"keep names a \w+, .*expected names of modules"):
        mb.sparsify(layers(), sparsity=0.5, keep=keep())


@pytest.mark.parametrize("form", [str, lambda n: [n], lambda n: iter([n])])
@pytest.mark.parametrize("verb", ["prune", "sparsify", "factorize"])
def test_every_verb_takes_a_name_a_list_and_an_iterator(verb, form):
    model, x, keep = layers(), torch.randn(4, 8), form("2")
    if verb == "prune":
        found = mb.prune(model, x, macs=0.9, keep=keep, align=1, repair=None)
    elif verb == "sparsify":
        found = mb.sparsify(model, sparsity=0.5, keep=keep, rounds=2)
    else:
        found = mb.factorize(model, x, rank=2, keep=keep)
    assert torch.equal(found[2].weight, model[2].weight)
    assert not all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters()))
