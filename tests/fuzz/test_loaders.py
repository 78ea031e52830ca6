"""Loaders that yield anything: an error of ours, or a sound result; the data stay as they were."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

import mirabelle as mb
from mirabelle.base.errors import MirabelleError
from tests.fuzz.outcomes import check_message
from tests.fuzz.test_options import network

TYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)
VALUES = (0.5, math.nan, math.inf, -math.inf, 1e30, -1e38)


@st.composite
def arrays(draw: st.DrawFn, rows: int) -> Any:
    """Inputs of so many rows, now and then of a form that nothing can take."""
    width = draw(st.sampled_from((4, 4, 4, 4, 3, 0)))
    shape = draw(st.sampled_from(((rows, width), (rows, width), (rows, width), (rows,), ())))
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    if tensor.numel() and draw(st.integers(0, 5)) == 0:
        tensor.view(-1)[0] = draw(st.sampled_from(VALUES))
    tensor = tensor.to(draw(st.sampled_from((TYPES[0], TYPES[0], TYPES[0], *TYPES))))
    form = draw(st.integers(0, 9))
    if form == 0:
        return tensor.numpy().astype(tensor.numpy().dtype.newbyteorder(">"))
    if form == 1:
        return tensor.numpy()[::-1] if tensor.ndim else tensor.numpy()
    if form == 2:
        array = tensor.numpy().copy()
        array.setflags(write=False)
        return array
    if form == 3:
        return draw(st.sampled_from((np.array(["a"] * rows), None, "text", [1, "b"], 3)))
    return tensor


def targets(rows: int) -> st.SearchStrategy[Any]:
    labels = torch.arange(rows) % 3
    return st.sampled_from(
        (
            *(labels, labels, labels, labels.int(), labels.numpy(), labels.tolist()),
            *(labels.float(), labels + 7, labels - 1, labels[: rows - 1], labels[:, None]),
            *(None, "text", {"a": labels}, ["x"] * rows, [labels, labels], object()),
            *(torch.full((rows,), math.nan), torch.zeros(rows, 3), (labels, labels)),
        )
    )


@st.composite
def loaders(draw: st.DrawFn) -> Any:
    items = []
    for _ in range(draw(st.integers(0, 4))):
        rows = draw(st.sampled_from((4, 4, 4, 1, 7, 0)))
        x, y = draw(arrays(rows)), draw(targets(rows))
        items.append(
            draw(
                st.sampled_from(
                    (
                        *((x, y), (x, y), (x, y), [x, y], x, (x,), (x, y, y), ()),
                        *({"input": x, "labels": y}, ({"input": x}, y), ((x,), y), {}),
                    )
                )
            )
        )
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return iter(items)
    if kind == 1:
        return tuple(items)
    if kind == 2:
        return _Stream(items)
    if kind == 3:
        return DataLoader(_Stream(items), batch_size=None)
    if kind == 4:
        return draw(st.sampled_from((None, 3, "text", {}, object(), torch.ones(3, 4))))
    return items


class _Stream(IterableDataset):
    def __init__(self, items: list):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def _fit(loader: Any) -> nn.Module:
    return mb.fit(network(), loader, steps=2, lr=1e-3)


def _choosing(loader: Any) -> nn.Module:
    return mb.fit(network(), loader, epochs=1)


def _sparsify(loader: Any) -> nn.Module:
    return mb.sparsify(network(), sparsity=0.5, data=loader, criterion="taylor", repair="bn")


def _quantize(loader: Any) -> nn.Module:
    return mb.quantize(network(), loader, threshold="absmax", repair=None)


def _measure(loader: Any) -> nn.Module:
    found = mb.measure(network(), loader, runs=1)
    assert found.score is None or 0 <= found.score.value <= 1
    return network()


CALLS = {
    "fit": _fit,
    "fit, choosing": _choosing,
    "sparsify": _sparsify,
    "quantize": _quantize,
    "measure": _measure,
}


def _content(loader: Any) -> list[bytes]:
    if not isinstance(loader, (list, tuple)):
        return []
    flat = pytree.tree_leaves(loader)
    return [
        np.asarray(v).tobytes() for v in flat if isinstance(v, (torch.Tensor, np.ndarray))
        and np.asarray(v).dtype.kind in "biuf"
    ]  # fmt: skip


@pytest.mark.parametrize("verb", CALLS)
@settings(max_examples=max(6, settings().max_examples // 2))
@given(loader=loaders())
def test_any_loader_ends_in_an_error_of_ours_or_a_sound_network(verb, loader):
    before = copy.deepcopy(_content(loader))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mb.MirabelleWarning)
        try:
            result = CALLS[verb](loader)
        except MirabelleError as error:
            event("refused")
            check_message(error, "batch", "data", "metric", "loader")
            assert _content(loader) == before
            return
    event("done")
    assert _content(loader) == before
    with torch.no_grad():
        assert bool(torch.isfinite(result(torch.ones(2, 4))).all())
