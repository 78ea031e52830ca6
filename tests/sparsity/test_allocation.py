"""Allocations of sparsity against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirabelle.sparsity import ALLOCATIONS

SCORES = {
    "a": torch.tensor([[9.0, 8.0], [7.0, 1.0]]),
    "b": torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 0.5]]),
}
SHAPES = {"a": (2, 2), "b": (1, 6)}


def test_global_keeps_the_largest_of_all():
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.5, 0.0) == {"a": 3, "b": 2}  # 9 8 7 | 6 5
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.2, 0.0) == {
        "a": 1,
        "b": 1,
    }  # every layer keeps at least one
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.5, 0.5) == {
        "a": 2,
        "b": 3,
    }  # and at least its share


def test_uniform_keeps_the_same_share():
    assert ALLOCATIONS["uniform"](SCORES, SHAPES, 0.5, 0.0) == {"a": 2, "b": 3}
    assert ALLOCATIONS["uniform"](SCORES, SHAPES, 0.3, 0.0) == {
        "a": 1,
        "b": 2,
    }  # 1.2 and 1.8: the larger remainder is rounded up


def test_erk_by_hand():
    # Two layers of 4 and 16 weights; (inputs + outputs) / (inputs * outputs): 4/4 = 1 and 8/16 =
    # 1/2. 6 of 20 stay: unit * (4 * 1 + 16 / 2) = 6, unit = 1/2.
    scores = {"small": torch.ones(2, 2), "large": torch.ones(4, 4)}
    shapes = {"small": (2, 2), "large": (4, 4)}
    assert ALLOCATIONS["erk"](scores, shapes, 0.3, 0.0) == {"small": 2, "large": 4}
    # 15 stay: unit = 5/4, small would keep 5 of 4; it keeps all, large the other 11.
    assert ALLOCATIONS["erk"](scores, shapes, 0.75, 0.0) == {"small": 4, "large": 11}
    # A 3x3 kernel adds its sizes: (2 + 2 + 3 + 3) / 36 against (2 + 2) / 4.
    scores = {"kernel": torch.ones(2, 18), "linear": torch.ones(2, 2)}
    assert ALLOCATIONS["erk"](scores, {"kernel": (2, 2, 3, 3), "linear": (2, 2)}, 7 / 40, 0.0) == {
        "kernel": 5,
        "linear": 2,
    }


def test_lamp_by_hand():
    # a: squares 1, 3 -> 1/4, 3/3; b: squares 16, 16, 8 -> sorted 8, 16, 16: 8/40, 16/32, 16/16. In
    # order: 1, 1, 1/2, 1/4, 1/5.
    scores = {"a": torch.tensor([[1.0, 3.0]]).sqrt(), "b": torch.tensor([[4.0, 4.0, math.sqrt(8)]])}
    kept = [ALLOCATIONS["lamp"](scores, {}, k / 5, 0.0) for k in (2, 3, 4, 5)]
    assert kept == [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}, {"a": 2, "b": 3}]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    density=st.floats(0.01, 1.0),
    least=st.floats(0.0, 0.3),
    seed=st.integers(0, 9),
)
def test_contract_of_allocations(name, sizes, density, least, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        str(i): torch.rand(s, generator=generator, dtype=torch.float64) for i, s in enumerate(sizes)
    }
    kept = ALLOCATIONS[name](scores, dict(zip(scores, sizes)), density, least)
    assert list(kept) == list(scores) or set(kept) == set(scores)
    total, floors = (
        sum(math.prod(s) for s in sizes),
        {n: max(1, math.ceil(least * s.numel() - 1e-9)) for n, s in scores.items()},
    )
    assert all(floors[n] <= kept[n] <= s.numel() for n, s in scores.items())
    assert sum(kept.values()) == max(round(density * total), sum(floors.values()))
