"""How much worse a network does, on the same samples."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from mirabelle.measurement.accuracy import predictor
from mirabelle.measurement.judge import Judge


def numbered(count: int) -> DataLoader:
    x = torch.arange(float(count))[:, None].expand(-1, 3).contiguous()
    return DataLoader(TensorDataset(x, torch.arange(count) % 4), batch_size=10, shuffle=True)


def test_shuffled_data_pair_all_the_same():
    """A network against itself loses nothing on any sample, whatever order a loader draws."""
    model = torch.nn.Linear(3, 4)
    judge = Judge(model, numbered(200), "top1", labeled=True)
    assert judge.drop(judge.of(predictor(model))) == (0.0, 0.0, 0.0)
    shifted = Judge(model, numbered(200), "top1", labeled=False)
    assert shifted.metric == "agreement" and shifted.scores.value == 1.0


def test_whether_there_are_labels_is_seen():
    model = torch.nn.Linear(3, 4)
    assert Judge(model, numbered(20), "top1").metric == "top1"
    assert Judge(model, [torch.randn(4, 3)], "top1").metric == "agreement"
