"""The arithmetic of the distillation benchmark: intervals, pairs by seed, the bias of a class that
was never seen.
"""

import math

import pytest
import torch

from benchmarks.distillation import MISSING, _best_shift
from benchmarks.distillation_bench import Batches
from benchmarks.distillation_table import by_name, interval, tables


def test_interval_by_hand():
    """1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303."""
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(interval([5.0])[1])


def test_differences_are_paired_by_seed():
    results = {
        f"few/{n}/{s}": {"top1": v + 0.1 * s}
        for n, v in (("cross-entropy, lr 0.03", 0.7), ("kd", 0.75))
        for s in (0, 1, 2)
    }
    results["labels/teacher"] = {"top1": 0.947}
    assert by_name(results, "labels", "top1")["teacher"] == {"": 0.947}
    assert "| kd | 3 | 85.00 ± 24.84 | 5.00 ± 0.00 |" in tables(results)


def test_best_shift_by_hand():
    """The first two are of the missing class, 1 and 3 below the best; the third, 2 below, is right
    already. A shift between 1 and 2 gets three of four right.
    """
    scores, labels = torch.zeros(4, 10), torch.tensor([MISSING, MISSING, 0, 0])
    scores[:, 0] = 5.0
    scores[:, MISSING] = torch.tensor([4.0, 2.0, 3.0, 0.0])
    shift = _best_shift(scores, labels)
    assert 1 < shift < 1.1
    scores[:, MISSING] += shift
    assert (scores.argmax(1) == labels).tolist() == [True, False, True, True]


def test_batches():
    x = torch.arange(10.0)[:, None]
    torch.manual_seed(0)
    seen = torch.cat(list(Batches(x, size=5)))
    assert sorted(seen.flatten().tolist()) == list(range(10)) and not torch.equal(seen, x)
    assert [len(b) for b in Batches(x, size=4)] == [4, 4] and len(Batches(x, size=128)) == 1
