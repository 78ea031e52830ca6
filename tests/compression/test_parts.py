"""The parts of the user's data: none is another's."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mirabelle.base.data import batches
from mirabelle.base.errors import InputError
from mirabelle.compression.parts import parts


def numbered(count, batch=10):
    x = torch.arange(float(count))[:, None].expand(-1, 3).contiguous()
    return DataLoader(TensorDataset(x, torch.arange(count) % 4), batch_size=batch, shuffle=True)


def seen(loader):
    return {int(v) for b in batches(loader) for v in b.args[0][:, 0]}


def test_one_loader_is_split_into_parts_without_common_samples():
    found = parts(numbered(200), seed=0)
    train, validation, test = seen(found.train), seen(found.validation), seen(found.test)
    assert train | validation | test == set(range(200))
    assert not train & validation and not train & test and not validation & test
    assert 24 <= len(test) <= 36 and 20 <= len(validation) <= 36
    assert seen(found.calibration) <= train
    assert found.labeled and "held back" in found.how["test"]
    assert all(b.target is None for b in found.calibration)


def test_the_same_seed_gives_the_same_parts():
    one, other, third = (parts(numbered(200), seed=s) for s in (3, 3, 4))
    assert seen(one.test) == seen(other.test) != seen(third.test)


def test_what_is_given_is_taken():
    given = {"train": numbered(100), "validation": numbered(30), "test": numbered(40)}
    found = parts(given, seed=0)
    assert (len(seen(found.train)), len(seen(found.validation)), len(seen(found.test))) == (
        100,
        30,
        40,
    )
    assert found.how["train"] == "given" and "training" in found.how["calibration"]


def test_an_object_with_loaders():
    class Loaders:
        train, calibration = numbered(100), numbered(20)
        test = validation = numbered(30)

    found = parts(Loaders(), seed=0)
    assert sum(b.size for b in found.calibration) == 20 and found.how["test"] == "given"


def test_without_labels():
    found = parts([torch.randn(8, 3) for _ in range(12)], seed=0)
    assert not found.labeled


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (iter([torch.ones(2, 3)]), "only once"),
        ([torch.ones(4, 3)], "at least 60 samples"),
        ({"train": [torch.ones(4, 3)], "val": []}, "'val'"),
        ([torch.full((4, 3), np.nan)] * 30, "NaN|nan"),
    ],
)
def test_data_that_cannot_be_split(data, word):
    with pytest.raises(InputError, match=word):
        parts(data, seed=0)
