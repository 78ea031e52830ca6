"""Targets and outputs of any form."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mirabelle.base.data import as_batch, batches
from mirabelle.base.errors import InputError
from mirabelle.base.structures import leaves, mapped, part, select

X = torch.arange(12.0).reshape(4, 3)


@dataclass
class Heads:
    box: torch.Tensor
    names: list


FORMS = {
    "tensor": X,
    "array": X.numpy(),
    "dict": {"a": X, "b": ["p", "q", "r", "s"]},
    "boxes": [torch.zeros(k, 5) for k in range(4)],
    "texts": ["a b", "c", "", "d"],
    "heads": (X, X[:, 0]),
    "dataclass": Heads(X, [1, 2, 3, 4]),
    "dicts": [{"boxes": torch.ones(k, 4)} for k in range(4)],
}


@pytest.mark.parametrize("name", FORMS)
def test_parts_hold_what_belongs_to_their_samples(name):
    value = FORMS[name]
    both = part(value, 1, 3, 4)
    chosen = select(value, [1, 2], 4)
    for one, other in zip(leaves(both), leaves(chosen), strict=True):
        torch.testing.assert_close(one, other)
    if name == "boxes":
        assert [len(b) for b in both] == [1, 2]
    elif name == "heads":
        assert [tuple(t.shape) for t in both] == [(2, 3), (2,)]
    elif name == "dict":
        assert both["b"] == ["q", "r"] and both["a"][0, 0] == 3.0
    elif name == "texts":
        assert both == ["c", ""]


def test_what_has_no_row_for_each_sample_is_said():
    with pytest.raises(InputError, match=r"\(5, 6\) for 4 samples.*a row, or an entry of a list"):
        part({"boxes": torch.zeros(5, 6)}, 0, 1, 4)


def test_structures_keep_their_kind():
    value = OrderedDict(a=X, b=(X, [X]))
    found = mapped(value, lambda t: t + 1)
    assert type(found) is OrderedDict and type(found["b"]) is tuple
    assert float(found["b"][1][0][0, 0]) == 1.0


def test_the_labels_of_a_dict_are_its_target():
    item = {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.tensor([0, 1])}
    batch = as_batch(item)
    assert list(batch.kwargs) == ["input_ids"] and batch.target.tolist() == [0, 1]
    assert next(batches([item], labeled=True)).size == 2
    assert "labels" in item


def test_a_dict_with_a_target_beside_it_keeps_its_labels():
    item = {"x": X, "labels": X[:, 0]}
    batch = as_batch((item, torch.zeros(4)))
    assert list(batch.kwargs) == ["x", "labels"] and batch.target.sum() == 0


def test_targets_are_searched_for_what_is_not_finite():
    boxes = [torch.zeros(2, 4), torch.tensor([[0.0, 1.0, float("nan"), 2.0]])]
    with pytest.raises(InputError, match=r"the target of .* is nan at index \[0, 2\]"):
        as_batch((torch.zeros(2, 3), boxes))


def test_lists_of_numbers_and_arrays_become_tensors():
    batch = as_batch((X, [1, 2, 3, 4]))
    assert batch.target.tolist() == [1, 2, 3, 4]
    nested = as_batch((X, {"a": np.arange(4), "t": ["w"] * 4})).target
    assert isinstance(nested["a"], torch.Tensor) and nested["t"] == ["w"] * 4
    assert as_batch((X, nested)).part(1, 2).target["a"].tolist() == [1]
