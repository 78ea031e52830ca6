"""Every option of every verb with values of any kind: an error of ours, or a sound network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import MirabelleError
from mirabelle.base.options import options_of
from tests.fuzz.declared import options_drawn
from tests.fuzz.outcomes import check_message

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
DATA = [(X[i : i + 6], (X[i : i + 6, 0] > 0).long()) for i in (0, 6)]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
            nn.Linear(8, 3),
        ).eval()  # fmt: skip


def _prune(options: dict[str, Any]) -> nn.Module:
    return mb.prune(network(), X[:2], **{"data": DATA, **options})


def _quantize(options: dict[str, Any]) -> nn.Module:
    return mb.quantize(network(), DATA, **options)


def _sparsify(options: dict[str, Any]) -> nn.Module:
    return mb.sparsify(network(), **{"data": DATA, **options})


def _factorize(options: dict[str, Any]) -> nn.Module:
    return mb.factorize(network(), X[:2], **{"data": DATA, **options})


def _fit(options: dict[str, Any]) -> nn.Module:
    return mb.fit(network(), DATA, **options)


def _distill(options: dict[str, Any]) -> nn.Module:
    return mb.distill(network(), network(1), DATA, **options)


VERBS: dict[str, tuple[Callable, Callable[[dict[str, Any]], nn.Module]]] = {
    "prune": (mb.prune, _prune),
    "quantize": (mb.quantize, _quantize),
    "sparsify": (mb.sparsify, _sparsify),
    "factorize": (mb.factorize, _factorize),
    "fit": (mb.fit, _fit),
    "distill": (mb.distill, _distill),
}


@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=max(6, settings().max_examples // 2))
@given(drawn=st.data())
def test_any_options_end_in_an_error_of_ours_or_a_sound_network(verb, drawn):
    declared, call = VERBS[verb]
    options = drawn.draw(options_drawn(options_of(declared)))
    before = {n: t.clone() for n, t in network().state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mb.MirabelleWarning)
        try:
            result = call(options)
        except MirabelleError as error:
            event("refused")
            check_message(error, *options)
            return
    event("done")
    with torch.no_grad():
        output = result(X)
    assert output.shape == (12, 3) and bool(torch.isfinite(output).all())
    assert all(torch.equal(t, before[n]) for n, t in network().state_dict().items())
